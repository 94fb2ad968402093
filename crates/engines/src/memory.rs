//! How the process keeps memory that it has freed.

use crate::sys;

/// Arenas shared by all threads. The byte loops do not allocate, so contention is rare.
const ARENAS: u16 = 2;

/// Lets all threads allocate from a few arenas. Call it before the first thread starts.
///
/// glibc gives each new thread its own arena, up to eight per core, and an arena keeps most of what was freed in
/// it. A program that starts threads for each test then grows by about a mebibyte for each arena, long after its start.
pub fn share_arenas() {
    sys::limit_arenas(ARENAS);
}
