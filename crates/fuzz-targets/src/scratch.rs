//! A folder for targets whose code under test reads files: one a thread, used again by each input.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a temporary folder");
}

/// Hands the thread's folder to `use_it`.
pub(crate) fn in_folder<T>(use_it: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|folder| use_it(folder.path()))
}

/// Writes the whole file as a new one: ext4 waits for the disk when a file is closed that was emptied and written again.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    // Absent is as good.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap_or_else(|why| panic!("cannot write {}: {why}", path.display()));
}

/// Makes these the only files of the folder.
pub(crate) fn fill(folder: &Path, files: &[(String, Vec<u8>)]) {
    for entry in fs::read_dir(folder).expect("a folder of our own") {
        let entry = entry.expect("a folder of our own");
        fs::remove_file(entry.path()).expect("a file of our own");
    }
    for (name, bytes) in files {
        write(&folder.join(name), bytes);
    }
}
