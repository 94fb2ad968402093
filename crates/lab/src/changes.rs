//! Waits for a change of files with inotify, instead of polling on a timer.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Calls `look` now and after each change in `folder` until it returns a value; `None` if that takes longer than `within`.
pub fn until<T>(folder: &Path, within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + within;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).expect("inotify");
    let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, folder, changes).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    loop {
        // The watch was added before this call of `look`, so a change in between wakes the poll below.
        if let Some(found) = look() {
            return Some(found);
        }
        let left = until.checked_duration_since(Instant::now())?;
        let left = Timespec::try_from(left).expect("a time-out of a test");
        let mut fds = [PollFd::new(&watch, PollFlags::IN)];
        if poll(&mut fds, Some(&left)).is_ok_and(|ready| ready > 0) {
            // The events themselves are not needed; discard them.
            let mut buffer = [0; 4096];
            while rustix::io::read(&watch, &mut buffer).is_ok_and(|read| read > 0) {}
        }
    }
}
