//! The state folder, which holds a program's key and database. Only the program's user may enter it. If other users can
//! enter the configured folder, [`open`] makes that folder private, or uses a private folder inside it.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

/// The name of the private folder that is created inside a folder that other users can enter.
pub const PRIVATE: &str = "private";

/// Permission bits of the group and of other users.
const OTHERS: u32 = 0o077;
/// Write permission of the group and of other users.
const OTHERS_WRITE: u32 = 0o022;

/// Why a folder cannot hold the program's state.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum StateFolderError {
    /// The folder belongs to another user, who could replace everything in it.
    #[error("{} belongs to user {owner}, but this program runs as user {user}", .path.display())]
    Foreign {
        path: PathBuf,
        /// The user id of the folder's owner.
        owner: u32,
        /// The user id that this program runs as.
        user: u32,
    },
    /// The path is not a folder.
    #[error("{} is not a folder", .path.display())]
    NotAFolder { path: PathBuf },
    /// An operation on the folder failed.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// The operation that failed, as a verb, for example `create`.
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// A folder with mode 0700 that belongs to this program's user.
#[derive(Debug, PartialEq, Eq)]
pub struct StateFolder {
    /// The configured folder, or [`PRIVATE`] inside it.
    pub path: PathBuf,
    /// What was changed to make the folder private, if anything.
    pub change: Option<Change>,
}

/// What was changed to make a folder private.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The folder was open to other users; its mode is now 0700.
    Tightened {
        /// The previous mode of the folder.
        mode: u32,
    },
    /// The state is in [`PRIVATE`], because the configured folder is open to other users. [`PRIVATE`] was created now,
    /// or it existed and files were moved into it.
    Moved {
        /// The names of the files that were moved into [`PRIVATE`]; may be empty if [`PRIVATE`] was created.
        files: Vec<String>,
    },
}

/// What a file in the state folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnFile {
    /// State that persists between runs. If the state folder is [`PRIVATE`], files of this kind are moved into it.
    Store,
    /// A file that each run creates again. It is not moved, because a running program may be using it.
    Transient,
}

/// Finds or creates the private folder for the state at `named`. `own_file` classifies the names of the program's
/// files, and returns `None` for every other name. The first rule that matches applies:
///
/// - A folder that does not exist is created with mode 0700.
/// - A folder that belongs to another user, except root, is refused.
/// - A folder without permissions for other users (mode 0700) is used unchanged.
/// - A folder that belongs to the program's user, is not a mount point, and contains only the program's files gets mode
///   0700.
/// - In any other folder (a volume with mode 0777, a home folder) the state goes into a folder [`PRIVATE`] inside it.
///   State files that are already in the outer folder are moved into [`PRIVATE`].
pub fn open(named: &Path, own_file: impl Fn(&str) -> Option<OwnFile>) -> Result<StateFolder, StateFolderError> {
    let user = rustix::process::geteuid().as_raw();
    DirBuilder::new().recursive(true).mode(0o700).create(named).map_err(io_error("create", named))?;
    let about = fs::metadata(named).map_err(io_error("read the attributes of", named))?;
    let owner = about.uid();
    if owner != user && owner != 0 {
        return Err(StateFolderError::Foreign { path: named.to_owned(), owner, user });
    }
    if about.mode() & OTHERS == 0 {
        return Ok(StateFolder { path: named.to_owned(), change: None });
    }
    let mut own = own_files(named, user, &own_file)?;
    if owner == user && !is_mount_point(named)? && own.is_all {
        let set = |mode| {
            fs::set_permissions(named, Permissions::from_mode(mode)).map_err(io_error("change the mode of", named))
        };
        set(0o700)?;
        // Another user may have replaced a file since the check.
        own = own_files(named, user, &own_file)?;
        let mode = about.mode() & 0o7777;
        if own.is_all {
            return Ok(StateFolder { path: named.to_owned(), change: Some(Change::Tightened { mode }) });
        }
        set(mode)?;
    }
    let path = named.join(PRIVATE);
    let is_new = make_private(&path, user)?;
    let files = move_files(named, &path, own.movable, user)?;
    let change = (is_new || !files.is_empty()).then_some(Change::Moved { files });
    Ok(StateFolder { path, change })
}

/// Finds the folder that holds the state configured as `named`, for commands that only read. Creates and changes
/// nothing. Root may read the folder of another user.
pub fn locate(named: &Path) -> PathBuf {
    let user = rustix::process::geteuid();
    let private = named.join(PRIVATE);
    let is_open = fs::metadata(named).is_ok_and(|about| about.mode() & OTHERS != 0);
    // Links are not followed: another user may have created them.
    let is_ours = |about: Metadata| about.is_dir() && (about.uid() == user.as_raw() || user.is_root());
    if is_open && fs::symlink_metadata(&private).is_ok_and(is_ours) { private } else { named.to_owned() }
}

/// Like [`locate`], for commands that use the key or the database. Refuses a folder of another user even if this
/// program runs as root, because that user controls its content. As in [`open`], `named` itself may belong to root.
pub fn locate_own(named: &Path) -> Result<PathBuf, StateFolderError> {
    let user = rustix::process::geteuid().as_raw();
    let path = locate(named);
    for (folder, may_be_roots) in [(named, true), (&path, path == named)] {
        // A folder that does not exist belongs to no user.
        let Ok(owner) = fs::metadata(folder).map(|about| about.uid()) else { continue };
        if owner != user && !(may_be_roots && owner == 0) {
            return Err(StateFolderError::Foreign { path: folder.to_owned(), owner, user });
        }
    }
    Ok(path)
}

/// Creates the folder `path`, or accepts an existing one that belongs to `user`. Returns whether it is new. Links are
/// not followed: another user may have created them.
fn make_private(path: &Path, user: u32) -> Result<bool, StateFolderError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(io_error("create", path)(source)),
    }
    let about = fs::symlink_metadata(path).map_err(io_error("read the attributes of", path))?;
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

/// What [`own_files`] found in a folder.
struct OwnFiles {
    /// Names of the state files that belong to the program's user and that other users cannot write.
    movable: Vec<String>,
    /// Whether the folder contains only files of the program, and no other user can have written them.
    is_all: bool,
}

fn own_files(
    folder: &Path,
    user: u32,
    own_file: impl Fn(&str) -> Option<OwnFile>,
) -> Result<OwnFiles, StateFolderError> {
    let mut own = OwnFiles { movable: vec![], is_all: true };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // This user may enter the folder but not list it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(OwnFiles { movable: vec![], is_all: false });
        }
        Err(source) => return Err(io_error("list", folder)(source)),
    };
    for entry in entries {
        let entry = entry.map_err(io_error("list", folder))?;
        // `DirEntry::metadata` does not follow links.
        let about = entry.metadata().map_err(io_error("read the attributes of", &entry.path()))?;
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| Some((name, own_file(name)?)));
        match name {
            Some((name, OwnFile::Store)) if is_unchanged(&about, user) => own.movable.push(name.to_owned()),
            Some((_, OwnFile::Transient)) if is_unchanged(&about, user) => {}
            // A socket that a killed program left behind. The next run creates it again.
            Some(_) if about.file_type().is_socket() && about.uid() == user => {}
            // Includes `PRIVATE`: once created, it stays in use.
            _ => own.is_all = false,
        }
    }
    Ok(own)
}

/// Whether `about` describes a file or folder that only `user` can have written.
fn is_unchanged(about: &Metadata, user: u32) -> bool {
    (about.is_file() || about.is_dir()) && about.uid() == user && about.mode() & OTHERS_WRITE == 0
}

/// Moves files from one folder to another, longest names first, so that a database's journal moves before the database.
/// An existing file in `to` is not replaced, and an existing database gets no journal of another database.
fn move_files(from: &Path, to: &Path, mut names: Vec<String>, user: u32) -> Result<Vec<String>, StateFolderError> {
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let mut moved = vec![];
    for name in names {
        let (old, new) = (from.join(&name), to.join(&name));
        let belongs_to = name.rsplit_once('-').map(|(database, _)| to.join(database));
        if [Some(&new), belongs_to.as_ref()].into_iter().flatten().any(|there| fs::symlink_metadata(there).is_ok()) {
            continue;
        }
        match fs::rename(&old, &new) {
            Ok(()) => {
                // Since the check, another user may have replaced the file in `from`. In `to`, no other user can
                // replace it.
                let about = fs::symlink_metadata(&new).map_err(io_error("read the attributes of", &new))?;
                if is_unchanged(&about, user) {
                    moved.push(name);
                } else {
                    fs::rename(&new, &old).map_err(io_error("move", &new))?;
                }
            }
            // Another process of this program has moved the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("move", &old)(source)),
        }
    }
    moved.sort();
    Ok(moved)
}

/// Whether `folder` is a mount point. [`open`] does not change the mode of a mount point.
fn is_mount_point(folder: &Path) -> Result<bool, StateFolderError> {
    let look = |path: &Path| statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
    let failed = |error: rustix::io::Errno| io_error("read the attributes of", folder)(error.into());
    let here = look(folder).map_err(failed)?;
    if here.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(here.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8: compare the file system with that of the parent folder.
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

    fn own_file(name: &str) -> Option<OwnFile> {
        match name {
            "scratch" => Some(OwnFile::Transient),
            "key" => Some(OwnFile::Store),
            _ => name.starts_with("db").then_some(OwnFile::Store),
        }
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
    fn locate_finds_the_state_and_creates_nothing() {
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
    fn a_folder_of_another_user_is_located_only_to_inspect_it() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can give a folder away");
            return;
        }
        let (_kept, path) = folder(0o755, &["key"]);
        assert_eq!(locate_own(&path).unwrap(), path);
        assert_eq!(locate_own(&path.join("nowhere")).unwrap(), path.join("nowhere"));
        fs::create_dir(path.join(PRIVATE)).unwrap();
        for foreign in [path.join(PRIVATE), path.clone()] {
            std::os::unix::fs::chown(&foreign, Some(65_534), None).unwrap();
            let refused = locate_own(&path).unwrap_err();
            assert!(matches!(refused, StateFolderError::Foreign { owner: 65_534, user: 0, .. }), "{refused}");
            assert_eq!(locate(&path), path.join(PRIVATE));
            assert!(matches!(open(&path, own_file), Err(StateFolderError::Foreign { .. })), "the same");
            std::os::unix::fs::chown(&foreign, Some(0), None).unwrap();
        }
    }

    #[test]
    fn a_new_folder_is_private() {
        let kept = tempfile::tempdir().unwrap();
        let path = kept.path().join("a/b");
        assert_eq!(open(&path, own_file).unwrap(), StateFolder { path: path.clone(), change: None });
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_folder_with_only_own_files_is_made_private() {
        let (_kept, path) = folder(0o755, &["key", "db", "db-wal", "scratch"]);
        let found = open(&path, own_file).unwrap();
        assert_eq!(found, StateFolder { path: path.clone(), change: Some(Change::Tightened { mode: 0o755 }) });
        assert_eq!(mode(&path), 0o700);
        assert_eq!(open(&path, own_file).unwrap().change, None);
    }

    #[test]
    fn in_a_folder_with_other_files_the_state_moves_into_a_private_folder() {
        for open_to in [0o755, 0o777, 0o1777, 0o710] {
            let (_kept, path) = folder(open_to, &["key", "db", "db-wal", "photos", "scratch"]);
            let found = open(&path, own_file).unwrap();
            let files = ["db", "db-wal", "key"].map(str::to_owned).to_vec();
            assert_eq!(found, StateFolder { path: path.join(PRIVATE), change: Some(Change::Moved { files }) });
            assert_eq!((mode(&path), mode(&found.path)), (open_to, 0o700));
            assert_eq!(fs::read_to_string(found.path.join("db")).unwrap(), "db");
            assert!(path.join("photos").exists() && !path.join("db").exists());
            assert!(path.join("scratch").exists(), "a running program may be working there");
            assert_eq!(open(&path, own_file).unwrap(), StateFolder { path: path.join(PRIVATE), change: None });
        }
    }

    #[test]
    fn files_that_other_users_could_have_written_are_not_moved() {
        let (_kept, path) = folder(0o777, &["key", "db", "photos"]);
        fs::set_permissions(path.join("key"), Permissions::from_mode(0o666)).unwrap();
        fs::remove_file(path.join("db")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path.join("db")).unwrap();
        let found = open(&path, own_file).unwrap();
        assert_eq!(found.change, Some(Change::Moved { files: vec![] }));
        assert_eq!(fs::read_dir(&found.path).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_was_replaced_after_the_check_is_not_moved() {
        let (_kept, path) = folder(0o777, &["key", "db", "db-wal"]);
        let private = path.join(PRIVATE);
        DirBuilder::new().mode(0o700).create(&private).unwrap();
        let user = rustix::process::geteuid().as_raw();
        let names = || ["key", "db", "db-wal"].map(str::to_owned).to_vec();
        fs::remove_file(path.join("key")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path.join("key")).unwrap();
        fs::set_permissions(path.join("db"), Permissions::from_mode(0o666)).unwrap();
        assert_eq!(move_files(&path, &private, names(), user).unwrap(), ["db-wal"]);
        assert!(path.join("key").is_symlink() && path.join("db").exists());
        // A file of another user is not moved, even if its mode is right.
        fs::set_permissions(path.join("db"), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(move_files(&path, &private, names(), user + 1).unwrap(), [""; 0]);
        assert_eq!(move_files(&path, &private, names(), user).unwrap(), ["db"]);
    }

    #[test]
    fn a_database_gets_no_journal_of_another_one() {
        let (_kept, path) = folder(0o777, &["db-wal", "photos"]);
        DirBuilder::new().mode(0o700).create(path.join(PRIVATE)).unwrap();
        fs::write(path.join(PRIVATE).join("db"), "db").unwrap();
        assert_eq!(open(&path, own_file).unwrap().change, None);
        assert!(path.join("db-wal").exists() && !path.join(PRIVATE).join("db-wal").exists());
    }

    #[test]
    fn a_link_in_place_of_the_private_folder_is_refused() {
        let (_kept, path) = folder(0o777, &["photos"]);
        std::os::unix::fs::symlink("/tmp", path.join(PRIVATE)).unwrap();
        assert!(matches!(open(&path, own_file), Err(StateFolderError::NotAFolder { .. })));
        fs::remove_file(path.join(PRIVATE)).unwrap();
        DirBuilder::new().mode(0o755).create(path.join(PRIVATE)).unwrap();
        assert_eq!(mode(&open(&path, own_file).unwrap().path), 0o700);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_refused() {
        let (_kept, path) = folder(0o700, &["key"]);
        assert!(matches!(open(&path.join("key"), own_file), Err(StateFolderError::Io { doing: "create", .. })));
    }
}
