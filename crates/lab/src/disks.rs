//! Full disks.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Fills the file system of `folder` to the last byte. Remove the returned file to free the space.
pub fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("what-else-is-on-the-disk");
    let mut file = File::create(&path).unwrap();
    // Large pieces first, then single bytes.
    for piece in [vec![b'x'; 4096], vec![b'x'; 1]] {
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    path
}
