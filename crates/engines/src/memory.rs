//! Limits how much freed memory the allocator keeps.

use crate::sys;

/// The number of malloc arenas that all threads share. The byte loops do not allocate, so contention is rare.
const ARENAS: u16 = 2;

/// Lets all threads allocate from a few arenas. Call it before the first thread starts.
///
/// glibc gives each new thread its own arena, up to eight per core, and an arena keeps most of its freed memory. A
/// program that starts threads for each test then grows by about 1 MiB per arena, even long after its start.
pub fn share_arenas() {
    sys::limit_arenas(ARENAS);
}
