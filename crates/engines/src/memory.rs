//! Limits how much freed memory the allocator keeps.

use crate::sys;

/// The number of malloc arenas that all threads share. The loops that move bytes do not allocate, so contention is
/// rare.
const ARENAS: u16 = 2;

/// Makes all threads allocate from the same few arenas. Must be called before the first thread starts.
///
/// glibc gives each new thread its own arena, up to eight per core, and an arena keeps most of its freed memory. By
/// default, a program that starts threads for each test therefore grows by about 1 MiB per arena, even long after its
/// start.
pub fn share_arenas() {
    sys::limit_arenas(ARENAS);
}

/// The size in bytes of the smallest block that the allocator gives back to the system as soon as it is freed. It is
/// glibc's initial threshold.
const RETURNED_BYTES: u32 = 128 * 1024;

/// Makes the allocator give each large block back to the system as soon as the block is freed.
///
/// By default, glibc raises its threshold to the size of the largest block that was freed, up to 32 MiB, and then keeps
/// later blocks below the threshold. Without this call, the program would never give back the 19 MiB that hashing a
/// password takes.
pub fn return_large_blocks() {
    sys::fix_mmap_threshold(RETURNED_BYTES);
}
