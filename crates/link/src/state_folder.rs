//! The folder in which a program keeps its key and its database: only its own user can look into it, whatever folder the
//! user names.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

/// The folder that is made inside one that others can enter.
pub const PRIVATE: &str = "private";

/// Permission bits of the group and of all others.
const OTHERS: u32 = 0o077;
/// Their right to write.
const OTHERS_WRITE: u32 = 0o022;

/// Why a folder can't hold the state.
#[derive(Debug, thiserror::Error)]
pub enum StateFolderError {
    /// It belongs to another user, who could replace everything in it.
    #[error("{} belongs to user {owner}, and this program runs as user {user}", .path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// What stands there is no folder.
    #[error("{} is no folder", .path.display())]
    NotAFolder {
        /// What was found.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A folder with mode 0700 that belongs to this program's user.
#[derive(Debug, PartialEq, Eq)]
pub struct StateFolder {
    /// Where it is: the folder that was named, or [`PRIVATE`] in it.
    pub path: PathBuf,
    /// What had to be changed for it, if anything.
    pub change: Option<Change>,
}

/// What was changed to make a folder private.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The folder was open to others, with this mode, and no longer is.
    Tightened {
        /// The mode before.
        mode: u32,
    },
    /// [`PRIVATE`] was made in a folder that is open to others, and these files were moved into it.
    Moved {
        /// Their names.
        files: Vec<String>,
    },
}

/// Makes or finds the private folder for the state at `named`. `is_own` says whether a name is one that the program gives
/// to its files.
///
/// A folder that is ours and 0700 is used as it is, and one that is not there is made so. One that is ours, is no mount
/// point, and holds nothing but our own files is made 0700. In every other one that others can enter (a volume with mode
/// 0777, a home folder) a folder [`PRIVATE`] holds the state; a store that stands there already is moved into it. A folder
/// of another user than root is refused.
pub fn open(named: &Path, is_own: impl Fn(&str) -> bool) -> Result<StateFolder, StateFolderError> {
    let user = rustix::process::geteuid().as_raw();
    DirBuilder::new().recursive(true).mode(0o700).create(named).map_err(io_error("make", named))?;
    let about = fs::metadata(named).map_err(io_error("look at", named))?;
    let owner = about.uid();
    if owner != user && owner != 0 {
        return Err(StateFolderError::Foreign { path: named.to_owned(), owner, user });
    }
    if about.mode() & OTHERS == 0 {
        return Ok(StateFolder { path: named.to_owned(), change: None });
    }
    let own_files = own_files(named, user, &is_own)?;
    if owner == user && !is_mount_point(named)? && own_files.nothing_else {
        fs::set_permissions(named, Permissions::from_mode(0o700)).map_err(io_error("change the mode of", named))?;
        let change = Some(Change::Tightened { mode: about.mode() & 0o7777 });
        return Ok(StateFolder { path: named.to_owned(), change });
    }
    let path = named.join(PRIVATE);
    let is_new = make_private(&path, user)?;
    let files = move_files(named, &path, own_files.movable)?;
    let change = (is_new || !files.is_empty()).then_some(Change::Moved { files });
    Ok(StateFolder { path, change })
}

/// Where the state of `named` is, without making or changing anything: for commands that only read. Root may look into the
/// folder of another user.
pub fn locate(named: &Path) -> PathBuf {
    let user = rustix::process::geteuid();
    let private = named.join(PRIVATE);
    let is_open = fs::metadata(named).is_ok_and(|about| about.mode() & OTHERS != 0);
    // No link is followed: others may have put it there.
    let is_ours = |about: Metadata| about.is_dir() && (about.uid() == user.as_raw() || user.is_root());
    if is_open && fs::symlink_metadata(&private).is_ok_and(is_ours) { private } else { named.to_owned() }
}

/// Makes the folder `path`, or finds one that is ours; whether it is new. No link is followed: others may have put it there.
fn make_private(path: &Path, user: u32) -> Result<bool, StateFolderError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(io_error("make", path)(source)),
    }
    let about = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    if !about.is_dir() {
        return Err(StateFolderError::NotAFolder { path: path.to_owned() });
    }
    if about.uid() != user {
        return Err(StateFolderError::Foreign { path: path.to_owned(), owner: about.uid(), user });
    }
    if about.mode() & OTHERS != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io_error("change the mode of", path))?;
    }
    Ok(false)
}

/// What of a folder is ours.
struct OwnFiles {
    /// Names of what is ours by name and owner, and that no other user could have changed.
    movable: Vec<String>,
    /// Whether there is nothing else.
    nothing_else: bool,
}

fn own_files(folder: &Path, user: u32, is_own: impl Fn(&str) -> bool) -> Result<OwnFiles, StateFolderError> {
    let mut own = OwnFiles { movable: vec![], nothing_else: true };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // One that we may enter and not list.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(OwnFiles { movable: vec![], nothing_else: false });
        }
        Err(source) => return Err(io_error("list", folder)(source)),
    };
    let unchanged = |about: &Metadata| {
        (about.is_file() || about.is_dir()) && about.uid() == user && about.mode() & OTHERS_WRITE == 0
    };
    for entry in entries {
        let entry = entry.map_err(io_error("list", folder))?;
        // Does not follow links.
        let about = entry.metadata().map_err(io_error("look at", &entry.path()))?;
        match entry.file_name().to_str().filter(|name| is_own(name)) {
            Some(name) if unchanged(&about) => own.movable.push(name.to_owned()),
            // A killed program left it; the next one makes it anew.
            Some(_) if about.file_type().is_socket() && about.uid() == user => {}
            // The folder for the state, too: once there, it stays in use.
            _ => own.nothing_else = false,
        }
    }
    Ok(own)
}

/// Moves files from one folder into the other, the longest names first: a database's journal before the database. What
/// stands there already stays.
fn move_files(from: &Path, to: &Path, mut names: Vec<String>) -> Result<Vec<String>, StateFolderError> {
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let mut moved = vec![];
    for name in names {
        let (old, new) = (from.join(&name), to.join(&name));
        if fs::symlink_metadata(&new).is_ok() {
            continue;
        }
        match fs::rename(&old, &new) {
            Ok(()) => moved.push(name),
            // Another start of the program was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("move", &old)(source)),
        }
    }
    moved.sort();
    Ok(moved)
}

/// Whether something is mounted there: its mode is not ours to change.
fn is_mount_point(folder: &Path) -> Result<bool, StateFolderError> {
    let look = |path: &Path| statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
    let failed = |error: rustix::io::Errno| io_error("look at", folder)(error.into());
    let here = look(folder).map_err(failed)?;
    if here.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(here.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8: another file system than the folder above.
    let above = look(&folder.join("..")).map_err(failed)?;
    Ok((here.stx_dev_major, here.stx_dev_minor) != (above.stx_dev_major, above.stx_dev_minor))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFolderError {
    let path = path.to_owned();
    move |source| StateFolderError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_own(name: &str) -> bool {
        name == "key" || name.starts_with("db")
    }

    fn folder(mode: u32, files: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let kept = tempfile::tempdir().unwrap();
        let path = kept.path().join("state");
        DirBuilder::new().create(&path).unwrap();
        for file in files {
            fs::write(path.join(file), *file).unwrap();
            fs::set_permissions(path.join(file), Permissions::from_mode(0o600)).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (kept, path)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_reader_finds_the_state_and_makes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(locate(folder.path()), folder.path());
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(locate(folder.path()), folder.path());
        assert!(!folder.path().join(PRIVATE).exists());
        fs::create_dir(folder.path().join(PRIVATE)).unwrap();
        assert_eq!(locate(folder.path()), folder.path().join(PRIVATE));
        assert_eq!(locate(&folder.path().join("nowhere")), folder.path().join("nowhere"));
    }

    #[test]
    fn one_that_is_not_there_is_made_private() {
        let kept = tempfile::tempdir().unwrap();
        let path = kept.path().join("a/b");
        assert_eq!(open(&path, is_own).unwrap(), StateFolder { path: path.clone(), change: None });
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn one_with_our_files_alone_is_tightened() {
        let (_kept, path) = folder(0o755, &["key", "db", "db-wal"]);
        let found = open(&path, is_own).unwrap();
        assert_eq!(found, StateFolder { path: path.clone(), change: Some(Change::Tightened { mode: 0o755 }) });
        assert_eq!(mode(&path), 0o700);
        assert_eq!(open(&path, is_own).unwrap().change, None);
    }

    #[test]
    fn beside_other_files_the_state_moves_into_a_private_folder() {
        for open_to in [0o755, 0o777, 0o1777, 0o710] {
            let (_kept, path) = folder(open_to, &["key", "db", "db-wal", "photos"]);
            let found = open(&path, is_own).unwrap();
            let files = ["db", "db-wal", "key"].map(str::to_owned).to_vec();
            assert_eq!(found, StateFolder { path: path.join(PRIVATE), change: Some(Change::Moved { files }) });
            assert_eq!((mode(&path), mode(&found.path)), (open_to, 0o700));
            assert_eq!(fs::read_to_string(found.path.join("db")).unwrap(), "db");
            assert!(path.join("photos").exists() && !path.join("db").exists());
            assert_eq!(open(&path, is_own).unwrap(), StateFolder { path: path.join(PRIVATE), change: None });
        }
    }

    #[test]
    fn what_others_could_have_written_is_not_taken_over() {
        let (_kept, path) = folder(0o777, &["key", "db", "photos"]);
        fs::set_permissions(path.join("key"), Permissions::from_mode(0o666)).unwrap();
        fs::remove_file(path.join("db")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path.join("db")).unwrap();
        let found = open(&path, is_own).unwrap();
        assert_eq!(found.change, Some(Change::Moved { files: vec![] }));
        assert_eq!(fs::read_dir(&found.path).unwrap().count(), 0);
    }

    #[test]
    fn a_private_folder_that_is_none_is_refused() {
        let (_kept, path) = folder(0o777, &["photos"]);
        std::os::unix::fs::symlink("/tmp", path.join(PRIVATE)).unwrap();
        assert!(matches!(open(&path, is_own), Err(StateFolderError::NotAFolder { .. })));
        fs::remove_file(path.join(PRIVATE)).unwrap();
        DirBuilder::new().mode(0o755).create(path.join(PRIVATE)).unwrap();
        assert_eq!(mode(&open(&path, is_own).unwrap().path), 0o700);
    }

    #[test]
    fn a_file_is_no_folder() {
        let (_kept, path) = folder(0o700, &["key"]);
        assert!(matches!(open(&path.join("key"), is_own), Err(StateFolderError::Io { doing: "make", .. })));
    }
}
