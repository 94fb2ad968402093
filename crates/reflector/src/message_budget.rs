//! Limits the control messages and new links of one device, over all its links. Decides how long a link waits before it
//! reads on. Waiting messages take no memory of the reflector: TCP holds them back at the device. Pure: no I/O, no
//! clock.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::EndpointId;
use paramedic_link::frame::MAX_FRAME;

/// The cost of one message. Costs and budgets are durations: a device regains one second of budget per second, so it
/// may send 200 messages per second.
const EACH: Duration = Duration::from_millis(5);
/// The budget that a device may use up before it has to wait.
const BURST: Duration = Duration::from_secs(2);

/// The cost of one welcome (the answer to the first message of a link). A device may open 20 links per second.
const EACH_WELCOME: Duration = Duration::from_millis(50);
/// The budget for welcomes that a device may use up before it has to wait: one for each link that it may have open.
const WELCOME_BURST: Duration = Duration::from_millis(64 * 50);

/// The longest time that a device waits for new budget. It is shorter than the silence after which its links would be
/// ended.
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// The events that take from the budget of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// A message that the reflector answers or executes. Each full 16 KiB that arrived for it counts as a further
    /// message.
    Message {
        /// The number of bytes that arrived for the message, TLS records included.
        arrived: u64,
    },
    /// The answer to the first message of a link. It has a budget of its own, so a device that used up its message
    /// budget still gets a link.
    Welcome,
    /// A link that was opened.
    Link,
    /// A request that can never be granted, or bytes that are not a message. A device that repeats these is faulty.
    Fault,
}

impl Cost {
    fn time(self) -> Duration {
        match self {
            Cost::Message { arrived } => {
                let more = arrived / MAX_FRAME as u64;
                EACH.saturating_mul(u32::try_from(more).unwrap_or(u32::MAX).saturating_add(1))
            }
            Cost::Welcome => EACH_WELCOME,
            Cost::Link | Cost::Fault => EACH * 20,
        }
    }

    fn budget(self) -> Budget {
        match self {
            Cost::Welcome => Budget::Welcomes,
            Cost::Message { .. } | Cost::Link | Cost::Fault => Budget::Messages,
        }
    }
}

/// One of the two budgets that each device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Budget {
    Messages,
    Welcomes,
}

impl Budget {
    fn burst(self) -> Duration {
        match self {
            Budget::Messages => BURST,
            Budget::Welcomes => WELCOME_BURST,
        }
    }
}

/// The budgets of all devices. Only budgets that are not full are in memory.
#[derive(Debug, Default)]
pub struct MessageBudgets {
    /// When each budget of each device will be full again.
    earned_back: BTreeMap<(EndpointId, Budget), Duration>,
}

impl MessageBudgets {
    /// Charges `cost` to `device`. Returns how long the link must wait before it reads its next message or is welcomed.
    /// `now` is the time of a monotonic clock.
    #[must_use]
    pub fn charge(&mut self, device: EndpointId, cost: Cost, now: Duration) -> Duration {
        self.earned_back.retain(|_, at| *at > now);
        let burst = cost.budget().burst();
        let earned_back = self.earned_back.entry((device, cost.budget())).or_insert(now);
        *earned_back = earned_back.saturating_add(cost.time()).min(now.saturating_add(burst + LONGEST_WAIT));
        earned_back.saturating_sub(burst).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Cost = Cost::Message { arrived: 60 };
    const A: EndpointId = EndpointId::from_bytes([1; 32]);
    const B: EndpointId = EndpointId::from_bytes([2; 32]);

    #[test]
    fn a_device_has_a_burst_and_then_two_hundred_messages_a_second() {
        let mut budgets = MessageBudgets::default();
        let mut now = Duration::from_secs(1);
        let free = (0..1000).take_while(|_| budgets.charge(A, MESSAGE, now).is_zero()).count();
        assert_eq!(free, 400);
        assert!(budgets.charge(B, MESSAGE, now).is_zero(), "another device is not charged");
        let mut answered = 0;
        let end = now + Duration::from_secs(10);
        while now < end {
            now += budgets.charge(A, MESSAGE, now);
            answered += 1;
        }
        assert!((1990..=2010).contains(&answered), "{answered}");
    }

    #[test]
    fn links_of_one_device_share_its_budget_and_all_progress() {
        let mut budgets = MessageBudgets::default();
        let mut due = vec![Duration::ZERO; 64];
        let mut answered = [0; 64];
        loop {
            let (link, now) = due.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
            if now > Duration::from_secs(20) {
                break;
            }
            due[link] = now + budgets.charge(A, MESSAGE, now);
            answered[link] += 1;
        }
        assert!(answered.iter().sum::<u32>() <= 400 + 20 * 200 + 64);
        assert!(answered.iter().all(|count| *count >= 60), "{answered:?}");
    }

    #[test]
    fn a_device_has_64_links_welcomed_at_once_and_then_twenty_a_second() {
        let mut budgets = MessageBudgets::default();
        let mut now = Duration::from_secs(1);
        for _ in 0..1000 {
            let _ = budgets.charge(A, MESSAGE, now);
        }
        let free = (0..1000).take_while(|_| budgets.charge(A, Cost::Welcome, now).is_zero()).count();
        assert_eq!(free, 64, "independent of the cost of its messages");
        let mut welcomed = 0;
        let end = now + Duration::from_secs(10);
        while now < end {
            now += budgets.charge(A, Cost::Welcome, now);
            welcomed += 1;
        }
        assert!((199..=201).contains(&welcomed), "{welcomed}");
    }

    #[test]
    fn faults_cost_as_much_as_twenty_messages() {
        let mut budgets = MessageBudgets::default();
        let free = (0..100).take_while(|_| budgets.charge(A, Cost::Fault, Duration::ZERO).is_zero()).count();
        assert_eq!(free, 20);
        assert_eq!(budgets.charge(A, Cost::Fault, Duration::ZERO), Duration::from_millis(200));
    }

    #[test]
    fn no_wait_lasts_as_long_as_the_silence_that_ends_a_link() {
        let mut budgets = MessageBudgets::default();
        for _ in 0..1000 {
            assert!(budgets.charge(A, Cost::Link, Duration::ZERO) <= LONGEST_WAIT);
        }
        assert!(LONGEST_WAIT < paramedic_link::message::END_AFTER_SILENCE);
    }

    #[test]
    fn every_16_kib_that_arrive_cost_another_message() {
        let mut budgets = MessageBudgets::default();
        let large = Cost::Message { arrived: 49 << 10 };
        let now = Duration::from_secs(1);
        assert_eq!((0..1000).take_while(|_| budgets.charge(A, large, now).is_zero()).count(), 100);
        let mut budgets = MessageBudgets::default();
        assert!(budgets.charge(A, Cost::Message { arrived: u64::MAX }, now) <= LONGEST_WAIT);
    }

    #[test]
    fn an_idle_device_uses_no_memory() {
        let mut budgets = MessageBudgets::default();
        let _ = budgets.charge(A, Cost::Link, Duration::ZERO);
        let _ = budgets.charge(B, Cost::Link, Duration::from_secs(1));
        assert_eq!(budgets.earned_back.len(), 1);
    }
}
