//! Re-binds a port that this process has just released, while a forked child may still hold it.

use std::io;

use crate::sys::child;

/// Calls `bind`, which binds a port. If the port is in use, waits until every pending fork has reached its exec, and
/// calls `bind` once more. Until its exec, a forked child holds copies of all sockets that were open at the fork, even
/// if this process has closed them since.
pub fn bind_after_pending_forks<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            child::await_started();
            bind()
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_port_in_use_is_bound_after_pending_forks() {
        let starting = child::being_started();
        let is_started = AtomicBool::new(false);
        let (try_sender, tried) = channel();
        std::thread::scope(|scope| {
            let claiming = scope.spawn(|| {
                bind_after_pending_forks(|| {
                    try_sender.send(()).unwrap();
                    is_started.load(Ordering::SeqCst).then_some(()).ok_or_else(|| io::ErrorKind::AddrInUse.into())
                })
            });
            tried.recv().unwrap();
            is_started.store(true, Ordering::SeqCst);
            drop(starting);
            claiming.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_port_of_another_process_is_tried_twice() {
        let (try_sender, tried) = channel();
        let held = bind_after_pending_forks(|| {
            try_sender.send(()).unwrap();
            Err::<(), _>(io::ErrorKind::AddrInUse.into())
        });
        assert_eq!(held.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(tried.try_iter().count(), 2);
        let no_address = bind_after_pending_forks(|| Err::<(), _>(io::ErrorKind::AddrNotAvailable.into()));
        assert_eq!(no_address.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
