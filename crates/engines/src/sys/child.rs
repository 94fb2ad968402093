//! Starts child processes that the kernel kills when the thread that started them ends. A child can be confined; the
//! caller then defines its permissions.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use landlock::{RulesetCreated, RulesetStatus};
use nix::libc;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::seccomp::{Filter, Supervisor};

use crate::thread_limit;

/// The permissions and limits of a confined child.
pub struct Confinement {
    /// The files that the child can access.
    pub files: RulesetCreated,
    /// The system calls that the child can make.
    pub calls: Filter,
    /// The maximum number of descriptors that the child can have open.
    pub descriptors: u64,
    /// The largest file that the child can write, in bytes.
    pub file_bytes: u64,
    /// The maximum size of the child's private memory, in bytes (`RLIMIT_DATA`).
    pub data_bytes: u64,
}

/// Why a child could not be confined: the failed step and its error.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct NotConfined {
    step: &'static str,
    source: io::Error,
}

/// The error text for the failure of each step between fork and exec, in the order of the steps.
const STEPS: [&str; 6] = [
    "the child cannot be tied to the life of this program",
    "the child cannot be kept from inheriting open descriptors",
    "the child's capabilities cannot be dropped",
    "the child's resources cannot be limited",
    "the child's files cannot be limited (Landlock, Linux 5.13 or newer)",
    "the child's system calls cannot be supervised (seccomp user notification, Linux 5.14 or newer)",
];

/// A lock that is held from before each fork until the child's exec. In between, the child has copies of all
/// descriptors of this process.
static STARTING: Mutex<()> = Mutex::new(());

pub(crate) fn being_started() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until every pending fork has reached its exec.
pub(crate) fn await_started() {
    drop(being_started());
}

/// Starts a child in its own process group. The kernel kills the child when the calling thread ends, so that thread
/// must live as long as the child.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    let parent = rustix::process::getpid();
    let tie = move || {
        tie_to(parent)?;
        // Best effort: this child is not confined, so it may run even if it inherits descriptors.
        keep_descriptors().ok();
        Ok(())
    };
    command.process_group(0);
    // SAFETY: between fork and exec `tie` only makes system calls that touch no memory of the parent's threads.
    unsafe { command.pre_exec(tie) };
    let _starting = being_started();
    command.spawn().map_err(thread_limit::explained)
}

/// Like [`spawn`], but confines the child. The returned supervisor receives those system calls of the child for which
/// the filter's action is `SyscallAction::Ask`.
pub fn spawn_confined(mut command: Command, confinement: Confinement) -> io::Result<(Child, Supervisor)> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let parent = rustix::process::getpid();
    let Confinement { files, mut calls, descriptors, file_bytes, data_bytes } = confinement;
    let mut files = Some(files);
    let mut step = move |number: u8, theirs: &OwnedFd| match number {
        0 => tie_to(parent),
        1 => keep_descriptors(),
        2 => give_up_capabilities(),
        3 => limit_resources(file_bytes, data_bytes),
        4 => files.take().map_or(Err(Errno::INVAL.into()), limit_files),
        _ => {
            let asks = calls.install()?;
            send_descriptor(theirs, &asks)?;
            // The exec closes this descriptor. Closing it here could be a supervised call, which gets no answer before
            // the exec.
            std::mem::forget(asks);
            Ok(())
        }
    };
    let confine = move || {
        for number in 0..STEPS.len() as u8 {
            if let Err(error) = step(number, &theirs) {
                // Reports the failed step to the parent, which otherwise gets only an errno.
                rustix::net::send(&theirs, &[number], SendFlags::empty()).ok();
                return Err(error);
            }
        }
        Ok(())
    };
    command.process_group(0);
    // SAFETY: between fork and exec `confine` makes system calls and touches only its own memory. The few allocations
    // and frees are sound, because glibc's fork leaves the allocator usable in the child.
    unsafe { command.pre_exec(confine) };
    let spawned = {
        let _starting = being_started();
        command.spawn()
    };
    // Closes the child's end of the pair; the child has sent its messages before its exec.
    drop(command);
    let (failed_step, fd) = receive(&ours).unwrap_or_default();
    match (spawned, fd) {
        (Ok(mut child), fd) => {
            // Sets the limit after the exec, because before it the child had copies of all descriptors of this process.
            let limited = limit(Resource::Nofile, descriptors, Some(Pid::from_child(&child)));
            match (fd, limited) {
                (Some(fd), Ok(())) => Ok((child, Supervisor::new(fd))),
                (fd, limited) => {
                    // The child must not run without a supervisor or limits.
                    child.kill().ok();
                    child.wait().ok();
                    Err(limited.err().filter(|_| fd.is_some()).unwrap_or_else(|| io::ErrorKind::InvalidData.into()))
                }
            }
        }
        (Err(source), None) => match failed_step.and_then(|number| STEPS.get(usize::from(number))) {
            Some(step) => Err(io::Error::new(io::ErrorKind::Unsupported, NotConfined { step, source })),
            None => Err(thread_limit::explained(source)),
        },
        // The child was confined, but its program could not be started.
        (Err(source), Some(_)) => Err(source),
    }
}

fn tie_to(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the child was tied to it.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::PIPE.into()) }
}

/// Sets close-on-exec on all descriptors except the standard streams, so that the child does not inherit them.
/// Descriptors that this process opened have the flag already, but those that this process inherited may lack it.
fn keep_descriptors() -> io::Result<()> {
    // SAFETY: the call only marks descriptors of this process; those of the standard library and ours are already
    // marked.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Clears the inheritable, the ambient and the bounding capability set. At its exec, a program gets capabilities from
/// the first two sets. A program that root starts also gets all capabilities of the bounding set, unless a secure bit
/// forbids it (capabilities(7)).
fn give_up_capabilities() -> io::Result<()> {
    let own = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..own })?;
    // A kernel without ambient capabilities has none to clear.
    rustix::thread::clear_ambient_capability_set().ok();
    let mut is_left = false;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // The kernel also refuses to remove a capability that it does not know.
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            is_left |= rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false);
        }
    }
    // The bounding set gives no capabilities to a normal user, but root with a full bounding set would keep all
    // capabilities.
    let is_root = rustix::process::getuid().is_root() || rustix::process::geteuid().is_root();
    if is_left && is_root { Err(Errno::PERM.into()) } else { Ok(()) }
}

fn limit_resources(file_bytes: u64, data_bytes: u64) -> io::Result<()> {
    limit(Resource::Core, 0, None)?;
    limit(Resource::Data, data_bytes, None)?;
    limit(Resource::Fsize, file_bytes, None)
}

fn limit(resource: Resource, most: u64, of: Option<Pid>) -> io::Result<()> {
    // The limit is never higher than that of this process.
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |allowed| allowed.min(most));
    rustix::process::prlimit(of, resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(())
}

/// Enforces the Landlock rules `files` on the calling thread. Also sets no_new_privs, which the kernel requires before
/// it installs a seccomp filter.
fn limit_files(files: RulesetCreated) -> io::Result<()> {
    let status = files.restrict_self().map_err(|_| io::Error::from(Errno::OPNOTSUPP))?;
    let is_limited = status.ruleset != RulesetStatus::NotEnforced && status.no_new_privs;
    if is_limited { Ok(()) } else { Err(Errno::OPNOTSUPP.into()) }
}

fn send_descriptor(to: &OwnedFd, what: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [what.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let done = [STEPS.len() as u8];
    rustix::net::sendmsg(to, &[io::IoSlice::new(&done)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Receives the message of a confined child, if it has sent one: the number of the failed step, or, if all steps
/// succeeded, the number of steps and the seccomp descriptor.
fn receive(from: &OwnedFd) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(from, &mut [io::IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.next().and_then(|mut fds| fds.next());
    Ok(((got.bytes > 0).then_some(byte[0]), fd))
}
