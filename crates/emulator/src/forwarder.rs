//! Moves packets between two TUN devices as [`LinkDirection`] decides, with one thread for each direction. With side
//! effects: reads the clock.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};
use tun_rs::SyncDevice;

use crate::direction::{Fate, LinkDirection, Way};
use crate::priority::make_real_time;
use crate::record::{LinkRecord, WatchRule};
use crate::settings::DirectionSettings;

/// The maximum number of packets that a thread reads before it checks for departures.
const BATCH: usize = 32;

/// The shortest sleep of a thread; packets that are due within it leave together. Without this limit, a thread would
/// never sleep at a high rate, and would take the processor from the programs under test.
const SHORTEST_SLEEP: Duration = Duration::from_micros(20);

/// A running link between two TUN devices. Dropping this value ends the link.
#[derive(Debug)]
pub struct Link {
    began: Instant,
    /// The two directions, indexed by [`Way`].
    directions: [Arc<Direction>; 2],
    threads: Vec<JoinHandle<()>>,
}

/// The state that the thread of a direction shares with the owner of the link.
#[derive(Debug)]
struct Direction {
    state: Mutex<State>,
    /// An eventfd that wakes the thread after a change of the settings.
    wake: OwnedFd,
    is_over: AtomicBool,
}

#[derive(Debug)]
struct State {
    link: LinkDirection<Vec<u8>>,
    record: LinkRecord,
}

impl Direction {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Writing fails only if the counter is full, and then the thread is awake.
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The devices at the ends of a link; `near` is on the appliance's side.
pub(crate) struct Devices {
    pub(crate) near: Arc<SyncDevice>,
    pub(crate) far: Arc<SyncDevice>,
}

impl Link {
    /// Starts to forward between the devices, with a seed for the random decisions. The records of the link follow each
    /// packet that matches one of the `rules`.
    pub(crate) fn start(
        devices: &Devices,
        up: &DirectionSettings,
        down: &DirectionSettings,
        seed: u64,
        rules: &[WatchRule],
    ) -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the zero of the link's clock")]
        let began = Instant::now();
        let direction = |settings: &DirectionSettings, seed| {
            let state =
                State { link: LinkDirection::new(settings.clone(), seed), record: LinkRecord::new(rules.to_vec()) };
            let wake =
                eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context("cannot create an eventfd")?;
            let is_over = AtomicBool::new(false);
            anyhow::Ok(Arc::new(Direction { state: Mutex::new(state), wake, is_over }))
        };
        // Directions must not lose the same packets.
        let directions = [direction(up, seed)?, direction(down, seed ^ u64::MAX)?];
        let ways = [(&devices.near, &devices.far), (&devices.far, &devices.near)];
        let threads = ways.into_iter().zip(&directions).map(|((from, to), direction)| {
            let (from, to, direction) = (Arc::clone(from), Arc::clone(to), Arc::clone(direction));
            std::thread::spawn(move || {
                make_real_time();
                Forwarder { from, to, direction, began, pool: Vec::new() }.run();
            })
        });
        let threads = threads.collect();
        Ok(Self { began, directions, threads })
    }

    /// The time since the link's start: the clock to which the times in its records refer.
    #[expect(clippy::disallowed_methods, reason = "reads the link's clock")]
    pub fn now(&self) -> Duration {
        Instant::now() - self.began
    }

    /// Changes the settings of a direction from now on.
    pub fn change(&self, way: Way, settings: DirectionSettings) {
        self.change_at(way, self.now(), settings);
    }

    /// Changes the settings of a direction at the time `at` of the link's clock.
    pub fn change_at(&self, way: Way, at: Duration, settings: DirectionSettings) {
        let direction = &self.directions[way as usize];
        direction.state().link.change(at, settings);
        direction.wake();
    }

    /// The settings that apply to a direction now.
    pub fn settings(&self, way: Way) -> DirectionSettings {
        self.directions[way as usize].state().link.settings().clone()
    }

    /// Takes the record of a direction so far. The next record begins empty, except its packet counts, which always
    /// cover the whole life of the link. The link's clock goes on.
    pub fn take_record(&self, way: Way) -> LinkRecord {
        let mut state = self.directions[way as usize].state();
        let rules = state.record.rules().to_vec();
        let (counts, first_number) = (state.link.counts(), state.link.next_number());
        let mut record = std::mem::replace(&mut state.record, LinkRecord::new(rules).starting_at(first_number));
        drop(state);
        record.counts = counts;
        record
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for direction in &self.directions {
            direction.is_over.store(true, Ordering::Relaxed);
            direction.wake();
        }
        for thread in self.threads.drain(..) {
            // A panic in the thread has been printed already.
            let _ = thread.join();
        }
    }
}

/// The work of the thread of one direction.
struct Forwarder {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    direction: Arc<Direction>,
    began: Instant,
    /// Buffers of packets that have left, for reuse.
    pool: Vec<Vec<u8>>,
}

impl Forwarder {
    fn run(&mut self) {
        let mut buffer = vec![0; 65_536];
        // The kernel's timers have a slack of 50 us for threads without real-time priority.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut turn_began = self.now();
        while !self.direction.is_over.load(Ordering::Relaxed) {
            let is_backlogged = self.take_entering(&mut buffer);
            let next = self.hand_out();
            let now = self.now();
            let took = now.saturating_sub(turn_began);
            let mut state = self.direction.state();
            state.record.longest_turn = state.record.longest_turn.max(took);
            drop(state);
            if is_backlogged {
                turn_began = now;
                continue;
            }
            self.sleep(next.map(|next| next.saturating_sub(now).max(SHORTEST_SLEEP)));
            turn_began = self.now();
        }
    }

    /// Reads packets from the device and lets them enter the link. Returns whether the device may have more packets.
    fn take_entering(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..BATCH {
            let length = match read(self.from.as_fd(), &mut *buffer) {
                Ok(length) => length,
                Err(Errno::INTR) => continue,
                // There is nothing to read, or the device is down.
                Err(_) => return false,
            };
            let mut packet = self.pool.pop().unwrap_or_default();
            packet.clear();
            packet.extend_from_slice(&buffer[..length]);
            let now = self.now();
            let mut state = self.direction.state();
            let State { link, record } = &mut *state;
            record.entered(&packet, link.next_number(), now);
            link.enter(now, length, packet);
        }
        true
    }

    /// Writes each packet that is due to leave the link to the other device. Returns when to call this function again;
    /// `None` if no packet is inside the link.
    fn hand_out(&mut self) -> Option<Duration> {
        loop {
            let now = self.now();
            let mut state = self.direction.state();
            let State { link, record } = &mut *state;
            let Some(fate) = link.next_fate(now) else { return link.next_event() };
            let packet = match fate {
                Fate::Dropped { packet, number, reason } => {
                    record.dropped(&packet, number, reason, now);
                    packet
                }
                Fate::Delivered(departure) => {
                    // Record the packet before it leaves: its receiver may ask for the record at once.
                    record.left(&departure, now);
                    drop(state);
                    // The kernel runs the receiver's side of the network stack inside this call.
                    if write(self.to.as_fd(), &departure.packet).is_err() {
                        self.direction.state().record.refused += 1;
                    }
                    departure.packet
                }
            };
            if self.pool.len() < 4096 {
                self.pool.push(packet);
            }
        }
    }

    /// Waits until a packet arrives, the settings change, or the time `sleep` is over. With `None`, there is no time
    /// limit.
    fn sleep(&self, sleep: Option<Duration>) {
        let timeout = sleep.and_then(|sleep| Timespec::try_from(sleep).ok());
        let mut fds = [
            PollFd::from_borrowed_fd(self.from.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.direction.wake.as_fd(), PollFlags::IN),
        ];
        // Treat an interrupted wait as a wait that is over: the caller checks everything again.
        let _ = poll(&mut fds, timeout.as_ref());
        if fds[1].revents().contains(PollFlags::IN) {
            let _ = read(&self.direction.wake, &mut [0; 8]);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "reads the link's clock")]
    fn now(&self) -> Duration {
        Instant::now() - self.began
    }
}
