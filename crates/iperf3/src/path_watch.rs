//! Watches whether the path between a running client and its server is alive, by the kernel's state of the client's TCP
//! connections. iperf3 itself would notice a dead path only after minutes.
//!
//! Keepalives on the control connection make the server's kernel answer each second, even if the server only receives
//! datagrams.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use paramedic_engines::socket;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::cookie::Cookie;

/// The bytes that a client's kernel counts as acknowledged before a stream's payload: the SYN and the cookie.
const BEFORE_PAYLOAD: u64 = 1 + Cookie::LEN as u64;

/// A running client whose path to its server is watched.
pub(super) struct PathWatch {
    process: OwnedFd,
    /// The folder in /proc with the client's descriptors.
    descriptors: PathBuf,
    server: SocketAddr,
    has_keepalive: bool,
}

/// The state of the path between a client and its server.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathState {
    /// How long ago anything last arrived from the server.
    pub(super) silent_for: Duration,
    /// The payload bytes that the server's kernel has acknowledged.
    pub(super) acknowledged: u64,
}

impl PathWatch {
    /// Starts to watch the process `client`, which must not be reaped yet.
    pub(super) fn open(client: Pid, server: SocketAddr) -> rustix::io::Result<Self> {
        let process = pidfd_open(client, PidfdFlags::empty())?;
        let descriptors = PathBuf::from(format!("/proc/{}/fd", client.as_raw_nonzero()));
        Ok(Self { process, descriptors, server, has_keepalive: false })
    }

    /// The current state of the path. `None` while the client has no connection, or if the kernel forbids this process
    /// to copy the client's descriptors (ptrace(2), "Ptrace access mode checking").
    pub(super) fn look(&mut self) -> Option<PathState> {
        let connections = self.connections();
        // iperf3 opens the control connection first.
        let control = connections.first()?;
        if !self.has_keepalive {
            let set = socket::keep_alive_each_second(control);
            self.has_keepalive =
                set.inspect_err(|error| tracing::debug!(%error, "cannot turn on keepalives for iperf3")).is_ok();
        }
        let silent_for = connections.iter().filter_map(socket::since_last_arrival).min()?;
        let acknowledged = connections.iter().skip(1).filter_map(socket::counts);
        let payload = acknowledged.map(|(acknowledged, _)| acknowledged.saturating_sub(BEFORE_PAYLOAD));
        Some(PathState { silent_for, acknowledged: payload.fold(0, u64::saturating_add) })
    }

    /// Copies of the client's TCP connections to its server, ordered by descriptor. Drop the copies right after use: an
    /// open copy keeps its connection open, and the server waits for the connection's end.
    pub(super) fn connections(&self) -> Vec<TcpStream> {
        // A process that has exited has no descriptors.
        let Ok(entries) = fs::read_dir(&self.descriptors) else { return vec![] };
        let is_socket = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        let sockets = entries.filter_map(Result::ok).filter(is_socket);
        let mut numbers = sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect::<Vec<_>>();
        numbers.sort_unstable();
        let copies = numbers.into_iter().map(|number| pidfd_getfd(&self.process, number, PidfdGetfdFlags::empty()));
        let is_same = |at: SocketAddr| {
            (at.ip().to_canonical(), at.port()) == (self.server.ip().to_canonical(), self.server.port())
        };
        copies
            .filter_map(|copy| copy.inspect_err(|errno| tracing::debug!(%errno, "cannot copy a socket of iperf3")).ok())
            .map(TcpStream::from)
            .filter(|socket| socket.peer_addr().is_ok_and(is_same) && socket::since_last_arrival(socket).is_some())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_connections_of_another_process_are_found_and_have_keepalives() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        // A client with two connections, of which the second has sent more than a cookie.
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port} 4<>/dev/tcp/127.0.0.1/{port}; printf %0100d 0 >&4; read -r line",
            port = server.port()
        );
        let mut client = Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let mut accepted = [listener.accept().unwrap().0, listener.accept().unwrap().0];
        accepted[1].read_exact(&mut [0; 100]).unwrap();
        let mut watch = PathWatch::open(Pid::from_child(&client), server).unwrap();
        let state = watch.look().unwrap();
        assert_eq!(state.acknowledged, 100 - Cookie::LEN as u64);
        assert!(watch.has_keepalive);
        let mut elsewhere = PathWatch::open(Pid::from_child(&client), listener_address()).unwrap();
        assert!(elsewhere.look().is_none(), "connections to another server are not the client's path");
        drop(client.stdin.take());
        client.wait().unwrap();
        assert!(watch.look().is_none());
    }

    fn listener_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }
}
