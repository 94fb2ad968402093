//! Sends without copying: memory pages are put into a pipe by reference, and moved from the pipe to a socket
//! (vmsplice(2), splice(2)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::mm::Advice;
use rustix::pipe::{IoSliceRaw, PipeFlags, SpliceFlags};

/// Asks the kernel for huge pages for the memory of `bytes`, because it sends a huge page with less work than many
/// small pages. A huge page needs [`HUGE`] bytes that begin at a multiple of [`HUGE`]. Ignores a refusal.
pub(crate) fn prefer_huge_pages(bytes: &mut [u8]) {
    // SAFETY: the memory is exclusively ours for the call; this advice changes neither its content nor its mapping
    // (madvise(2), MADV_HUGEPAGE).
    unsafe { rustix::mm::madvise(bytes.as_mut_ptr().cast(), bytes.len(), Advice::LinuxHugepage) }.ok();
}

/// The size in bytes of a huge page on x86-64, and on arm64 with pages of 4 KiB.
pub(crate) const HUGE: usize = 2 << 20;

/// A pipe that holds memory pages by reference.
pub(crate) struct PagePipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// The number of bytes in the pipe.
    held: usize,
}

impl PagePipe {
    /// A pipe for `capacity` bytes of whole pages, or less if the system's limit is lower (pipe(7)).
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Best effort: a smaller pipe needs more calls.
        rustix::pipe::fcntl_setpipe_size(&writer, capacity).ok();
        Ok(Self { reader, writer, held: 0 })
    }

    /// The number of bytes in the pipe.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Puts as much of `pages` into the pipe as fits, and returns the number of bytes put. Never waits. The bytes must
    /// never change, because the kernel reads them whenever it sends or retransmits them.
    pub(crate) fn put(&mut self, pages: &'static [u8]) -> io::Result<usize> {
        let slices = [IoSliceRaw::from_slice(pages)];
        // SAFETY: `writer` is the pipe's write end, so the kernel only reads the memory. The memory is `'static` and
        // shared, so it stays unchanged for as long as the kernel refers to it.
        let put = unsafe { rustix::pipe::vmsplice(&self.writer, &slices, SpliceFlags::NONBLOCK) };
        match put {
            Ok(put) => {
                self.held += put;
                Ok(put)
            }
            // The pipe is full.
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Moves the bytes in the pipe to `socket`, which may accept fewer. Blocks like a write to the socket. Returns the
    /// number of moved bytes.
    pub(crate) fn send(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let sent = rustix::pipe::splice(&self.reader, None, socket, None, self.held, SpliceFlags::MOVE)?;
        self.held -= sent;
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    static PAGES: [u8; 3 * 4096] = {
        let mut pages = [0; 3 * 4096];
        let mut at = 0;
        while at < pages.len() {
            pages[at] = (at / 7) as u8;
            at += 1;
        }
        pages
    };

    #[test]
    fn the_bytes_in_the_pipe_arrive_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let mut pipe = PagePipe::new(64 * 1024).unwrap();
        assert_eq!(pipe.put(&PAGES[..5000]).unwrap(), 5000);
        assert_eq!(pipe.put(&PAGES[5000..]).unwrap(), PAGES.len() - 5000);
        while pipe.held() > 0 {
            assert!(pipe.send(&ours).unwrap() > 0);
        }
        drop((pipe, ours));
        let mut came = Vec::new();
        theirs.read_to_end(&mut came).unwrap();
        assert!(came == PAGES);
    }

    #[test]
    fn advice_changes_nothing_in_the_memory() {
        let mut bytes = vec![7; 3 * HUGE];
        prefer_huge_pages(&mut bytes);
        let start = bytes.as_ptr().align_offset(HUGE);
        prefer_huge_pages(&mut bytes[start..start + HUGE]);
        prefer_huge_pages(&mut []);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_full_pipe_accepts_nothing_and_does_not_wait() {
        let mut pipe = PagePipe::new(4096).unwrap();
        let mut put = 0;
        loop {
            match pipe.put(&PAGES[..4096]).unwrap() {
                0 => break,
                more => put += more,
            }
        }
        assert_eq!(pipe.held(), put);
        assert!(put > 0);
    }

    #[test]
    fn another_file_than_a_socket_is_an_error_and_loses_nothing() {
        let mut pipe = PagePipe::new(4096).unwrap();
        pipe.put(&PAGES[..100]).unwrap();
        let folder = std::fs::File::open("/").unwrap();
        assert!(pipe.send(&folder).is_err());
        assert_eq!(pipe.held(), 100);
    }
}
