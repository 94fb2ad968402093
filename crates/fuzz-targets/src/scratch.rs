//! A temporary folder for fuzz targets whose code under test reads files. Each thread has its own folder and reuses it
//! for every input.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a temporary folder");
}

/// Calls `use_it` with the path of the temporary folder of this thread.
pub(crate) fn in_folder<T>(use_it: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|folder| use_it(folder.path()))
}

/// Writes a new file, after it deletes an old file of this name. To overwrite the old file would be slow, because ext4
/// then waits for the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    // Ignore the error: the file may not exist.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap_or_else(|why| panic!("cannot write {}: {why}", path.display()));
}

/// Deletes all files in `folder`, then writes `files` (name and contents) into it.
pub(crate) fn fill(folder: &Path, files: &[(String, Vec<u8>)]) {
    for entry in fs::read_dir(folder).expect("a folder of our own") {
        let entry = entry.expect("a folder of our own");
        fs::remove_file(entry.path()).expect("a file of our own");
    }
    for (name, bytes) in files {
        write(&folder.join(name), bytes);
    }
}
