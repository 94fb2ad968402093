//! Filters the system calls of a child, and answers its supervised calls (seccomp(2), seccomp_unotify(2)). The caller
//! defines the rules.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc::{self, c_int, c_long, c_ulong};

/// The processor architecture of this program in the kernel's notation for filters (linux/audit.h). `None` on
/// architectures for which no filter can be built.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xC000_003E)
} else if cfg!(target_arch = "aarch64") {
    Some(0xC000_00B7)
} else {
    None
};

/// The action of a filter for a system call of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallAction {
    /// The kernel runs the call.
    Allow,
    /// The kernel does not run the call and returns 0 (success).
    Pretend,
    /// The kernel does not run the call and returns this errno.
    Refuse(c_int),
    /// The child waits until its [`Supervisor`] answers the call.
    Ask,
}

/// One 32-bit half of a system call's 64-bit argument, because filters compare 32 bits. The value is the number of the
/// argument, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentHalf {
    /// The low half of the argument, which is all of an `int`.
    Low(u8),
    /// The high half of the argument, which only a pointer or a `long` uses.
    High(u8),
}

/// A condition of a rule: the value that half of an argument must have for the rule to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// The half of an argument that is compared.
    pub part: ArgumentHalf,
    /// The bits of the half that are compared.
    pub mask: u32,
    /// The value that the bits in `mask` must have.
    pub is: Value,
}

/// The value with which an argument of a system call is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A constant number.
    Number(u32),
    /// The process id of the child itself.
    OwnPid,
}

/// A rule for one system call. If all arguments match, the action is `then`. If not, the action is `otherwise`, or, if
/// `otherwise` is `None`, the following rules apply.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The number of the system call.
    pub call: c_long,
    /// The conditions on the arguments. Without any, the rule always matches.
    pub arguments: &'static [Argument],
    /// The action if all arguments match.
    pub then: SyscallAction,
    /// The action if an argument does not match.
    pub otherwise: Option<SyscallAction>,
}

/// A seccomp filter, ready to be installed in the kernel.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
    /// The positions of the instructions in `program` that compare with the child's process id, which is known only
    /// after the fork.
    own_pid_at: Vec<usize>,
}

impl Filter {
    /// Builds a filter from `rules`. The first rule that matches a call applies. Calls that no rule matches fail with
    /// `ENOSYS`. Libraries handle this error already, because an older kernel returns it for a newer call.
    pub fn new(rules: &[Rule]) -> io::Result<Self> {
        let architecture = ARCHITECTURE.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let mut filter = Self { program: Vec::new(), own_pid_at: Vec::new() };
        // Refuses other architectures, in which system call numbers have other meanings.
        filter.load(ARCHITECTURE_AT);
        filter.jump_if_equal(architecture, 1, 0);
        filter.give(libc::SECCOMP_RET_KILL_PROCESS);
        for rule in rules {
            filter.judge(rule)?;
        }
        filter.give(return_value(SyscallAction::Refuse(libc::ENOSYS)));
        Ok(filter)
    }

    fn judge(&mut self, rule: &Rule) -> io::Result<()> {
        let call = u32::try_from(rule.call).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // The rest of the rule has three instructions for each argument, and one or two verdicts at the end.
        let rest = u8::try_from(rule.arguments.len() * 3 + 1 + usize::from(rule.otherwise.is_some()));
        self.load(NUMBER_AT);
        self.jump_if_equal(call, 0, rest.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?);
        let mut left = rule.arguments.len();
        for argument in rule.arguments {
            left -= 1;
            self.load(offset_of(argument.part));
            self.put(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, argument.mask, 0, 0);
            let number = match argument.is {
                Value::Number(number) => number,
                Value::OwnPid => {
                    self.own_pid_at.push(self.program.len());
                    0
                }
            };
            // Jumps over the remaining arguments and the first verdict, to the second verdict or the next rule. This
            // distance fits in 8 bits, because `rest` did.
            self.jump_if_equal(number, 0, (left * 3 + 1) as u8);
        }
        self.give(return_value(rule.then));
        if let Some(otherwise) = rule.otherwise {
            self.give(return_value(otherwise));
        }
        Ok(())
    }

    fn load(&mut self, at: u32) {
        self.put(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    }

    fn jump_if_equal(&mut self, to: u32, then_over: u8, else_over: u8) {
        self.put(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to, then_over, else_over);
    }

    fn give(&mut self, verdict: u32) {
        self.put(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
    }

    fn put(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        // Every BPF code fits in its 16 bits.
        self.program.push(libc::sock_filter { code: code as u16, jt, jf, k });
    }

    /// Installs the filter for the calling thread and all its descendants. An installed filter cannot be removed. The
    /// thread must have set no_new_privs. Returns the descriptor at which the supervised calls arrive; an exec closes
    /// it.
    pub(super) fn install(&mut self) -> io::Result<OwnedFd> {
        let own_pid = std::process::id();
        for at in &self.own_pid_at {
            self.program[*at].k = own_pid;
        }
        let len = u16::try_from(self.program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let program = libc::sock_fprog { len, filter: self.program.as_mut_ptr() };
        // Speculation in the child cannot reveal anything that the child may not read, and disabling it would slow the
        // measurement.
        let flags: c_ulong = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        // Once the supervisor has received a call, only a fatal signal may interrupt it. Otherwise the child could
        // interrupt a call on which the supervisor has already acted, so that the call never happens.
        match install_with(&program, flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
            // Kernels before Linux 5.19 do not know the flag.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install_with(&program, flags),
            installed => installed,
        }
    }
}

/// Installs `program` for the calling thread. Returns the descriptor at which the supervised calls arrive.
fn install_with(program: &libc::sock_fprog, flags: c_ulong) -> io::Result<OwnedFd> {
    // SAFETY: `program` points to `len` instructions that live through the call, which only reads them.
    let fd = unsafe {
        libc::syscall(libc::SYS_seccomp, c_ulong::from(libc::SECCOMP_SET_MODE_FILTER), flags, &raw const *program)
    };
    let fd = c_int::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just returned this new descriptor, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The offsets of the call's number and of its architecture in `struct seccomp_data` (linux/seccomp.h).
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

fn offset_of(part: ArgumentHalf) -> u32 {
    let (number, is_high) = match part {
        ArgumentHalf::Low(number) => (number, false),
        ArgumentHalf::High(number) => (number, true),
    };
    16 + 8 * u32::from(number) + if is_high == cfg!(target_endian = "little") { 4 } else { 0 }
}

fn return_value(verdict: SyscallAction) -> u32 {
    match verdict {
        SyscallAction::Allow => libc::SECCOMP_RET_ALLOW,
        // The error 0 means success.
        SyscallAction::Pretend => libc::SECCOMP_RET_ERRNO,
        SyscallAction::Refuse(errno) => libc::SECCOMP_RET_ERRNO | (errno.unsigned_abs() & libc::SECCOMP_RET_DATA),
        SyscallAction::Ask => libc::SECCOMP_RET_USER_NOTIF,
    }
}

/// A supervised system call of a child, which waits for the supervisor's answer.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    id: u64,
    /// The number of the system call.
    pub call: c_long,
    /// The arguments of the call, as the child passed them.
    pub arguments: [u64; 6],
}

/// Receives the supervised calls of a child and answers them. The supervisor can be polled for input; a hang-up means
/// that the child and its descendants have ended. Once the supervisor is dropped, the kernel refuses all further
/// supervised calls.
#[derive(Debug)]
pub struct Supervisor(OwnedFd);

impl Supervisor {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Waits for the next supervised call. `None` if the child has ended or was interrupted in the meantime. From Linux
    /// 5.19 on, only a fatal signal interrupts a call that the supervisor has received.
    pub fn next(&self) -> io::Result<Option<Question>> {
        let mut notification = MaybeUninit::<libc::seccomp_notif>::zeroed();
        // SAFETY: the descriptor is open; the kernel requires zeroes and writes one `seccomp_notif`, for which there is
        // room.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, notification.as_mut_ptr()) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: plain integers that were zeroed and then written by the kernel.
        let notification = unsafe { notification.assume_init() };
        Ok(Some(Question { id: notification.id, call: notification.data.nr.into(), arguments: notification.data.args }))
    }

    /// Makes the supervised call `question` fail with `errno`. Has no effect if the child has ended.
    pub fn refuse(&self, question: Question, errno: c_int) {
        let mut answer = libc::seccomp_notif_resp { id: question.id, val: 0, error: -errno, flags: 0 };
        // SAFETY: the descriptor is open and `answer` a valid `seccomp_notif_resp`, which is only read.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut answer) };
    }

    /// Lets the kernel run the supervised call `question`. A check of the call's arguments is no security check,
    /// because the child may change the memory behind its pointers in the meantime.
    pub fn let_happen(&self, question: Question) {
        let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        let mut answer = libc::seccomp_notif_resp { id: question.id, val: 0, error: 0, flags };
        // SAFETY: the descriptor is open and `answer` a valid `seccomp_notif_resp`, which is only read.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut answer) };
    }

    /// Duplicates the descriptor `what` into the child with close-on-exec, makes the supervised call `question` return
    /// the duplicate, and returns the number of the duplicate in the child. Fails with `NotFound` if the child no
    /// longer waits.
    pub fn hand_over(&self, question: Question, what: BorrowedFd<'_>) -> io::Result<i32> {
        let mut gift = libc::seccomp_notif_addfd {
            id: question.id,
            // Duplicates and answers in one step, so that an interrupted call leaves no descriptor behind.
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            srcfd: what.as_raw_fd().unsigned_abs(),
            newfd: 0,
            newfd_flags: libc::O_CLOEXEC.unsigned_abs(),
        };
        // SAFETY: both descriptors are open and `gift` a valid `seccomp_notif_addfd`, which is only read.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw mut gift) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }
}

impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
