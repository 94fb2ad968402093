//! Ports that were ours a moment ago and are to be ours again.

use std::io;

use crate::sys::child;

/// Claims a port by `bind`. Where it is in use, a child of ours may hold it that is being started: until it has become
/// another program it has a copy of all that was open as it was forked, also of what was closed here since. So children
/// that are being started are waited for, and then it is tried once more.
pub fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
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
    fn who_finds_a_port_in_use_waits_for_children_that_are_being_started() {
        let starting = child::being_started();
        let is_started = AtomicBool::new(false);
        let (try_, tried) = channel();
        std::thread::scope(|scope| {
            let claiming = scope.spawn(|| {
                patiently(|| {
                    try_.send(()).unwrap();
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
    fn a_port_that_a_stranger_holds_is_asked_for_twice() {
        let (try_, tried) = channel();
        let held = patiently(|| {
            try_.send(()).unwrap();
            Err::<(), _>(io::ErrorKind::AddrInUse.into())
        });
        assert_eq!(held.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(tried.try_iter().count(), 2);
        let no_address = patiently(|| Err::<(), _>(io::ErrorKind::AddrNotAvailable.into()));
        assert_eq!(no_address.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
