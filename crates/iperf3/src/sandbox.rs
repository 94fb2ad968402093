//! The rules that confine an iperf3 server. It may only accept the connections that the supervisor passes to it, and
//! move bytes. `paramedic_engines::sys` enforces the rules.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::libc::{self, c_int, c_long};
use paramedic_engines::sys::child::Confinement;
use paramedic_engines::sys::seccomp::{Argument, ArgumentHalf, Filter, Rule, SyscallAction, Value};

/// The maximum number of open descriptors of the child. They suffice for 64 streams in each direction with a file and a
/// buffer each.
const DESCRIPTORS: u64 = 512;
/// The size limit of a file that the child writes, in bytes. iperf3 keeps the block of each stream in a file of at most
/// 1 MiB.
const FILE_BYTES: u64 = 2 << 20;
/// The limit of the child's memory, apart from the memory of its streams, in bytes.
const DATA_BYTES: u64 = 128 << 20;
/// The memory that the child may use in addition for each stream, in bytes: for the stream's blocks and, since iperf3
/// 3.16, the stack of its thread.
const DATA_BYTES_PER_STREAM: u64 = 12 << 20;

/// Folders of programs and libraries. The child may read and execute their files, but not write them.
const LIBRARIES: [&str; 6] = ["/usr", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];
/// Files that programs read when they start and that hold no secret.
const COMMON_FILES: [&str; 6] =
    ["/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/ssl/openssl.cnf", "/dev/urandom", "/dev/null"];

/// The confinement of the program at the path `program`, which serves at most `streams` streams and may write only to
/// `folder`.
pub(super) fn confinement(program: &Path, folder: &Path, streams: usize) -> io::Result<Confinement> {
    Ok(Confinement {
        files: files(program, folder).map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?,
        calls: Filter::new(&rules())?,
        descriptors: DESCRIPTORS,
        file_bytes: FILE_BYTES,
        data_bytes: DATA_BYTES + DATA_BYTES_PER_STREAM * streams as u64,
    })
}

/// The newest version of Landlock whose restrictions are used. An older kernel enforces those that it supports.
const NEWEST: ABI = ABI::V6;

fn files(program: &Path, folder: &Path) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let mut rules = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .set_compatibility(CompatLevel::BestEffort);
    for path in LIBRARIES {
        rules = allow(rules, Path::new(path), read)?;
    }
    // The program may be in another folder, whose other files it must not read.
    rules = allow(rules, program, AccessFs::ReadFile | AccessFs::Execute)?;
    for path in COMMON_FILES {
        rules = allow(rules, Path::new(path), AccessFs::ReadFile.into())?;
    }
    let write =
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate;
    allow(rules, folder, write)
}

/// Allows `access` to `path` and everything below it. Adds no rule if `path` does not exist.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(rules),
    }
}

/// The rules for the system calls of iperf3 3.9 to 3.22 with the C library of Debian 11 to 13, the most frequent calls
/// first. All other calls fail. The child can start no unconfined program and no process, and cannot signal another
/// process.
fn rules() -> Vec<Rule> {
    let mut rules = ALLOWED.iter().map(|call| always(*call, SyscallAction::Allow)).collect::<Vec<_>>();
    rules.extend(ALLOWED_BY_ARCHITECTURE.iter().map(|call| always(*call, SyscallAction::Allow)));
    // Before 6.2, the kernel has no Landlock right to truncate, so a child could empty files that it may only read.
    for (call, flags) in OPEN_CALLS {
        for arguments in flags {
            rules.push(Rule { call, arguments, then: SyscallAction::Refuse(libc::EACCES), otherwise: None });
        }
        rules.push(always(call, SyscallAction::Allow));
    }
    // The supervisor hands over sockets and connections.
    rules.extend(ASKED.iter().map(|call| always(*call, SyscallAction::Ask)));
    // The supervisor counts a connection before it is closed. Therefore the child must not duplicate descriptors.
    rules.push(always(libc::SYS_close, SyscallAction::Ask));
    // Allows only the commands in `FCNTL`: none duplicates a descriptor or sets an owner that receives signals.
    for arguments in FCNTL {
        rules.push(Rule { call: libc::SYS_fcntl, arguments, then: SyscallAction::Allow, otherwise: None });
    }
    rules.push(always(libc::SYS_fcntl, SyscallAction::Refuse(libc::EPERM)));
    // The child's listener is a substitute that needs neither bind nor listen.
    rules.extend(PRETENDED.iter().map(|call| always(*call, SyscallAction::Pretend)));
    rules.push(always(libc::SYS_connect, SyscallAction::Refuse(libc::EACCES)));
    rules.push(always(libc::SYS_ioctl, SyscallAction::Refuse(libc::ENOTTY)));
    rules.push(always(libc::SYS_kill, SyscallAction::Refuse(libc::EPERM)));
    // With `SO_LINGER` a close could block, even that of the reflector's own copy.
    rules.push(Rule {
        call: libc::SYS_setsockopt,
        arguments: LINGER,
        then: SyscallAction::Refuse(libc::EPERM),
        otherwise: None,
    });
    // Pretends that `IPV6_V6ONLY` was set, because the child's listener is not an IPv6 socket.
    rules.push(Rule {
        call: libc::SYS_setsockopt,
        arguments: V6_ONLY,
        then: SyscallAction::Pretend,
        otherwise: Some(SyscallAction::Allow),
    });
    // Allows threads with a shared descriptor table, but no processes. A filter cannot see the flags of clone3, so
    // clone3 fails and libraries fall back to clone.
    const THREAD: u32 = (libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM | libc::CLONE_FILES) as u32;
    rules.push(Rule {
        call: libc::SYS_clone,
        arguments: &[Argument { part: ArgumentHalf::Low(0), mask: THREAD, is: Value::Number(THREAD) }],
        then: SyscallAction::Allow,
        otherwise: Some(SyscallAction::Refuse(libc::EPERM)),
    });
    // The child may read its own limits but set none: both halves of the pointer to new limits must be 0.
    rules.push(Rule {
        call: libc::SYS_prlimit64,
        arguments: ASKING_ITS_LIMITS,
        then: SyscallAction::Allow,
        otherwise: Some(SyscallAction::Refuse(libc::EPERM)),
    });
    rules.push(Rule {
        call: libc::SYS_tgkill,
        arguments: &[Argument { part: ArgumentHalf::Low(0), mask: u32::MAX, is: Value::OwnPid }],
        then: SyscallAction::Allow,
        otherwise: Some(SyscallAction::Refuse(libc::EPERM)),
    });
    rules
}

/// A condition on a 32-bit argument, whose high half the kernel ignores.
const fn low(at: u8, is: u32) -> Argument {
    Argument { part: ArgumentHalf::Low(at), mask: u32::MAX, is: Value::Number(is) }
}

fn always(call: c_long, verdict: SyscallAction) -> Rule {
    Rule { call, arguments: &[], then: verdict, otherwise: None }
}

/// The allowed commands of fcntl(2): those for a descriptor's own flags.
const FCNTL: [&[Argument]; 4] = [
    &[low(1, libc::F_GETFD as u32)],
    &[low(1, libc::F_SETFD as u32)],
    &[low(1, libc::F_GETFL as u32)],
    &[low(1, libc::F_SETFL as u32)],
];

/// Matches the flags of open(2) that truncate a file and have the access mode `access`. `flags_at` is the number of the
/// argument with the flags. The callers use the two modes without write access: `O_RDONLY`, and 3, which gives neither
/// read nor write access.
const fn truncates(flags_at: u8, access: c_int) -> Argument {
    let mask = (libc::O_ACCMODE | libc::O_TRUNC) as u32;
    Argument { part: ArgumentHalf::Low(flags_at), mask, is: Value::Number((access | libc::O_TRUNC) as u32) }
}

/// The calls that open a file, and the flags for which they are refused.
#[cfg(target_arch = "x86_64")]
const OPEN_CALLS: [(c_long, [&[Argument]; 2]); 2] = [
    (libc::SYS_openat, [&[truncates(2, libc::O_RDONLY)], &[truncates(2, libc::O_ACCMODE)]]),
    (libc::SYS_open, [&[truncates(1, libc::O_RDONLY)], &[truncates(1, libc::O_ACCMODE)]]),
];
#[cfg(not(target_arch = "x86_64"))]
const OPEN_CALLS: [(c_long, [&[Argument]; 2]); 1] =
    [(libc::SYS_openat, [&[truncates(2, libc::O_RDONLY)], &[truncates(2, libc::O_ACCMODE)]])];

const LINGER: &[Argument] = &[low(1, libc::SOL_SOCKET as u32), low(2, libc::SO_LINGER as u32)];

const V6_ONLY: &[Argument] = &[low(1, libc::IPPROTO_IPV6 as u32), low(2, libc::IPV6_V6ONLY as u32)];

const ASKING_ITS_LIMITS: &[Argument] =
    &[low(0, 0), low(2, 0), Argument { part: ArgumentHalf::High(2), mask: u32::MAX, is: Value::Number(0) }];

const ASKED: &[c_long] = &[libc::SYS_socket, libc::SYS_accept, libc::SYS_accept4];

const PRETENDED: &[c_long] = &[libc::SYS_bind, libc::SYS_listen];

const ALLOWED: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pselect6,
    libc::SYS_sendfile,
    libc::SYS_clock_gettime,
    libc::SYS_futex,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    // The child passes the filter's own descriptor to the supervisor, which discards what the child passes on later.
    libc::SYS_sendmsg,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_ppoll,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_unlinkat,
    libc::SYS_getcwd,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Needed to start the child. A later execve can only run confined programs.
    libc::SYS_execve,
];

/// Allowed system calls that exist only on older architectures, where newer calls have replaced them.
#[cfg(target_arch = "x86_64")]
const ALLOWED_BY_ARCHITECTURE: &[c_long] = &[
    libc::SYS_select,
    libc::SYS_poll,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_unlink,
    libc::SYS_readlink,
    libc::SYS_arch_prctl,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_BY_ARCHITECTURE: &[c_long] = &[];

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;
    use paramedic_engines::sys::child::spawn_confined;

    fn perl(script: &str, folder: &Path) -> Command {
        let mut command = Command::new(Path::new("/usr/bin/perl").canonicalize().unwrap());
        command.args(["-MSocket", "-e", script]).current_dir(folder).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// The output of a perl script under the confinement of iperf3. Sockets are refused, closing is allowed.
    fn confined(script: &str, folder: &Path) -> String {
        let command = perl(script, folder);
        let confinement = confinement(Path::new(command.get_program()), folder, 1).unwrap();
        let (mut child, supervisor) = spawn_confined(command, confinement).unwrap();
        let answering = std::thread::spawn(move || {
            loop {
                let mut polled = [PollFd::new(&supervisor, PollFlags::IN)];
                poll(&mut polled, None).unwrap();
                // Without a child `next` would never return.
                if !polled[0].revents().contains(PollFlags::IN) {
                    return;
                }
                match supervisor.next().unwrap() {
                    Some(question) if question.call == libc::SYS_close => supervisor.let_happen(question),
                    Some(question) => supervisor.refuse(question, libc::EACCES),
                    None => {}
                }
            }
        });
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        child.wait().unwrap();
        answering.join().unwrap();
        printed
    }

    #[test]
    fn a_signal_does_not_interrupt_a_call_that_the_supervisor_has_received() {
        let system = rustix::system::uname();
        let release = system.release().to_string_lossy();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
        if (numbers.next(), numbers.next()) < (Some(5), Some(19)) {
            eprintln!("SKIPPED: Linux {release} lets signals interrupt supervised calls");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = "$| = 1; $SIG{USR1} = sub {}; socket(S, PF_INET, SOCK_STREAM, 0) or print($! + 0);";
        let command = perl(script, folder.path());
        let confinement = confinement(Path::new(command.get_program()), folder.path(), 1).unwrap();
        let (mut child, supervisor) = spawn_confined(command, confinement).unwrap();
        let mut output = child.stdout.take().unwrap();
        loop {
            let mut polled = [PollFd::new(&supervisor, PollFlags::IN)];
            poll(&mut polled, None).unwrap();
            if !polled[0].revents().contains(PollFlags::IN) {
                break;
            }
            match supervisor.next().unwrap() {
                Some(question) if question.call == libc::SYS_close => supervisor.let_happen(question),
                Some(question) => {
                    kill_process(Pid::from_child(&child), Signal::USR1).unwrap();
                    // Time for an interrupted child to print the error EINTR.
                    let limit = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
                    poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&limit)).unwrap();
                    supervisor.refuse(question, libc::EACCES);
                }
                None => {}
            }
        }
        let mut printed = String::new();
        output.read_to_string(&mut printed).unwrap();
        child.wait().unwrap();
        assert_eq!(printed, libc::EACCES.to_string(), "the call got the supervisor's answer");
    }

    #[test]
    fn a_confined_child_cannot_let_a_close_wait() {
        let folder = tempfile::tempdir().unwrap();
        let option = |name| format!("syscall({}, 99, {}, {name}, $a, 8)", libc::SYS_setsockopt, libc::SOL_SOCKET);
        for (call, answer) in [(option(libc::SO_LINGER), libc::EPERM), (option(libc::SO_KEEPALIVE), libc::EBADF)] {
            let script = format!("$a = pack('ii', 1, 20); {call}; print($! + 0);");
            let free = perl(&script, folder.path()).output().unwrap().stdout;
            assert_eq!(
                String::from_utf8(free).unwrap(),
                libc::EBADF.to_string(),
                "{call}: there is no such descriptor"
            );
            assert_eq!(confined(&script, folder.path()), answer.to_string(), "{call}");
        }
    }

    #[test]
    fn a_confined_child_reaches_no_network_and_no_file_and_starts_no_program() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "secret\n").unwrap();
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let (tcp, udp) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let dial = |kind: &str, port: u16| {
            format!("socket(S, PF_INET, {kind}, 0) && connect(S, pack_sockaddr_in({port}, inet_aton('127.0.0.1')))")
        };
        // A descriptor that the parent process accidentally left open.
        let open = rustix::io::dup(secret.as_file()).unwrap();
        let tries = [
            format!("open(F, '<&=', {})", open.as_raw_fd()),
            dial("SOCK_STREAM", tcp),
            dial("SOCK_DGRAM", udp),
            "socketpair(A, B, AF_UNIX, SOCK_STREAM, 0)".to_owned(),
            format!("open(F, '<', '{}') && <F>", secret.path().display()),
            "open(F, '<', '/etc/passwd') && <F>".to_owned(),
            "open(F, '<', '/proc/self/status') && <F>".to_owned(),
            format!("open(F, '>', '{}') && print(F 'x')", secret.path().display()),
            format!("open(F, '>', '{}/new')", elsewhere.path().display()),
            "open(F, '>&', \\*STDOUT)".to_owned(),
            "kill(0, getppid())".to_owned(),
            // prlimit64 with new limits: for the process itself, and for its parent.
            format!("($l = pack('QQ', 0, 0)) && syscall({}, 0, 4, $l, 0) == 0", libc::SYS_prlimit64),
            format!("($l = pack('QQ', 0, 0)) && syscall({}, getppid(), 4, 0, $l) == 0", libc::SYS_prlimit64),
            "fcntl(STDOUT, 8, getppid())".to_owned(),
            "($n = 1 << 30) && length('x' x $n)".to_owned(),
            "open(F, '<', '/usr/bin/../../etc/hostname')".to_owned(),
            "defined(fork)".to_owned(),
            "!system('/bin/true')".to_owned(),
        ];
        for attempt in tries {
            let script = format!("$| = 1; print 'begun'; print ' done' if {attempt};");
            let free = perl(&script, folder.path()).output().unwrap().stdout;
            let free = String::from_utf8(free).unwrap();
            assert!(free.starts_with("begun done"), "{attempt} works without confinement: {free}");
            assert_eq!(confined(&script, folder.path()), "begun", "{attempt}");
        }
        // Landlock allows truncation in the child's own folder, and everywhere before kernel 6.2, so the filter must
        // refuse it.
        for flags in [libc::O_RDONLY | libc::O_TRUNC, libc::O_ACCMODE | libc::O_TRUNC] {
            for (call, _) in OPEN_CALLS {
                let at = if call == libc::SYS_openat { "-100, " } else { "" };
                let script = format!(
                    "open(F, '>', 'kept') && print(F 'x') && close(F); $p = 'kept'; syscall({call}, {at}$p, {flags}); print(-s 'kept');"
                );
                let free = perl(&script, folder.path()).output().unwrap().stdout;
                assert_eq!(String::from_utf8(free).unwrap(), "0", "{call} {flags} truncates without confinement");
                assert_eq!(confined(&script, folder.path()), "1", "{call} {flags}");
            }
        }
        let own = "open(F, '>', 'own') && print(F 'x') && close(F) && open(F, '<', 'own') && print(<F>)";
        assert_eq!(confined(own, folder.path()), "x", "its own folder is readable and writable");
    }
}
