//! A temporary folder for targets whose code under test reads files. Each thread has one and uses it again for each
//! input.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a temporary folder");
}

/// Calls `use_it` with the folder of this thread.
pub(crate) fn in_folder<T>(use_it: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|folder| use_it(folder.path()))
}

/// Deletes the file and writes it anew, because ext4 waits for the disk when a file is closed that was truncated and
/// written again.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    // Ignore the error: the file may not exist.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap_or_else(|why| panic!("cannot write {}: {why}", path.display()));
}

/// Replaces the content of the folder by these files.
pub(crate) fn fill(folder: &Path, files: &[(String, Vec<u8>)]) {
    for entry in fs::read_dir(folder).expect("a folder of our own") {
        let entry = entry.expect("a folder of our own");
        fs::remove_file(entry.path()).expect("a file of our own");
    }
    for (name, bytes) in files {
        write(&folder.join(name), bytes);
    }
}
