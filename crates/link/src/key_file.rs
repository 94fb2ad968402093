//! Loads, creates and rotates the file with a device's secret key. The file contains only the key.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::admission::unhex_into;
use crate::identity::KeyGenerationError;
use crate::{EndpointId, SecretKey};

/// The start of a key file's only line: the name and version of the format. The seed follows in hexadecimal.
const MAGIC: &str = "packetparamedic-key-v1 ";

/// More bytes than any key file has. A file of this length or more is not a key file.
const MAX_LEN: usize = 256;

/// Why no key could be loaded or stored. Each message names the file or its folder, and most messages also name the
/// remedy.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum KeyFileError {
    /// The key file does not exist.
    #[error("there is no key file {}: it is created when the program first pairs or first runs as a service", .path.display())]
    Absent { path: PathBuf },
    /// The path is a folder, a symbolic link or a device.
    #[error("{} is not a regular file: move it away, or choose another state folder", .path.display())]
    NotAFile { path: PathBuf },
    /// The file belongs to another user, who can read and change the key.
    #[error("{} belongs to user {owner}, but this program runs as user {user}: run the program as user {owner}, or `chown {user}` the file", .path.display())]
    NotOurs {
        path: PathBuf,
        /// The user id of the file's owner.
        owner: u32,
        /// The user id that this program runs as.
        user: u32,
    },
    /// The file's permissions let other users read or change the key.
    #[error("other users can access the key in {} (its mode is {mode:04o}): `chmod 600` the file; if another user may have read the key, replace it with the command `rotate-identity`", .path.display())]
    Exposed {
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The key file that a service manager should provide does not exist.
    #[error("the provided key file {} does not exist", .path.display())]
    NotProvided { path: PathBuf },
    /// Other users can read or change a provided key file: it belongs to neither root nor this program's user, or its
    /// permissions are too wide.
    #[error("other users can access the provided key in {} (owner {owner}, mode {mode:04o}): give the file to user {user} with mode 0400, or to root with mode 0400 or 0440", .path.display())]
    ProvidedExposed {
        path: PathBuf,
        /// The user id of the file's owner.
        owner: u32,
        /// The permission bits of the file.
        mode: u32,
        /// The user id that this program runs as.
        user: u32,
    },
    /// The file does not contain a valid key. The program leaves the file unchanged.
    #[error("{} does not contain a valid key: restore the file from a backup, or move it away to get a new identity (every pairing is then lost)", .path.display())]
    Corrupt { path: PathBuf },
    /// An operation on the key file failed.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// The operation that failed, as a verb, for example `open`.
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Another process holds the lock of the key's folder, for example a running reflector or another key rotation.
    #[error("another process uses {}: stop that process first", .folder.display())]
    InUse { folder: PathBuf },
    /// No key could be generated.
    #[error("cannot generate a key for {}: {source}", .path.display())]
    NoKey {
        /// The file for which the key was to be generated.
        path: PathBuf,
        source: KeyGenerationError,
    },
}

/// The result of a key rotation.
#[derive(Debug)]
pub struct Rotated {
    /// The previous identity of the device.
    pub old: EndpointId,
    /// The new key, already on disk.
    pub new: SecretKey,
    /// The path of the file that keeps the old key.
    pub kept: PathBuf,
}

/// Loads the key in `path`, or creates it if the file does not exist. Two programs that start at the same time get the
/// same key: an existing file is never overwritten. The folder must exist.
pub fn load_or_create(path: &Path) -> Result<SecretKey, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Absent { .. }) => {}
        found => return found,
    }
    let key = SecretKey::generate().map_err(|source| KeyFileError::NoKey { path: path.to_owned(), source })?;
    let temporary = TemporaryKey::write(path, &key)?;
    match temporary.rename_to_unused(path) {
        Ok(()) => Ok(key),
        // Another process created the file first: its key is the device's key.
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(other) => Err(other),
    }
}

/// Loads the key in `path`. Fails if the file does not exist, or if other users can access it.
pub fn load(path: &Path) -> Result<SecretKey, KeyFileError> {
    // Do not follow links, and do not block on a named pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let mut file = file.map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => KeyFileError::Absent { path: path.to_owned() },
        Some(Errno::LOOP | Errno::NXIO | Errno::NODEV) => KeyFileError::NotAFile { path: path.to_owned() },
        _ => KeyFileError::Io { doing: "open", path: path.to_owned(), source },
    })?;
    let (owner, mode) = about(&file, path)?;
    let user = rustix::process::geteuid().as_raw();
    if owner != user {
        return Err(KeyFileError::NotOurs { path: path.to_owned(), owner, user });
    }
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    read(&mut file, path)
}

/// Loads a key file that a service manager provides, such as a systemd credential or a container secret. If root owns
/// the file, its group may read it, because the ACL of a systemd credential appears as group permissions. Symbolic
/// links are followed, because container secrets are symbolic links.
pub fn load_provided(path: &Path) -> Result<SecretKey, KeyFileError> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path);
    let mut file = file.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::NotProvided { path: path.to_owned() },
        _ => KeyFileError::Io { doing: "open", path: path.to_owned(), source },
    })?;
    let (owner, mode) = about(&file, path)?;
    let user = rustix::process::geteuid().as_raw();
    let open_to = if owner == 0 { 0o037 } else { 0o077 };
    if (owner != 0 && owner != user) || mode & open_to != 0 {
        return Err(KeyFileError::ProvidedExposed { path: path.to_owned(), owner, mode, user });
    }
    read(&mut file, path)
}

/// Checks that a key file is a regular file. Returns the user id of its owner and its permission bits.
fn about(file: &File, path: &Path) -> Result<(u32, u32), KeyFileError> {
    let metadata = file.metadata().map_err(io_error("read the attributes of", path))?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile { path: path.to_owned() });
    }
    Ok((metadata.uid(), metadata.mode() & 0o7777))
}

/// Reads the key from an open file.
fn read(file: &mut File, path: &Path) -> Result<SecretKey, KeyFileError> {
    let mut text = Zeroizing::new([0; MAX_LEN]);
    let mut length = 0;
    while length < MAX_LEN {
        match file.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(KeyFileError::Io { doing: "read", path: path.to_owned(), source }),
        }
    }
    // A full buffer means that the file is longer than any key file.
    let whole = (length < MAX_LEN).then_some(&text[..length]);
    whole.and_then(parse_key).ok_or_else(|| KeyFileError::Corrupt { path: path.to_owned() })
}

/// Replaces the device's key with a new one. The old key stays in the same folder, in a file named after its Endpoint
/// ID. A crash leaves a complete key file at `path`, with either the old or the new identity. Fails at once if another
/// process holds the lock of the folder, because that process would continue to use the old key.
pub fn rotate(path: &Path) -> Result<Rotated, KeyFileError> {
    let _lock = lock_folder_of(path)?;
    let old = load(path)?;
    let kept = keep_old(path, &old)?;
    let new = SecretKey::generate().map_err(|source| KeyFileError::NoKey { path: path.to_owned(), source })?;
    TemporaryKey::write(path, &new)?.replace_target(path)?;
    Ok(Rotated { old: old.id(), new, kept })
}

/// Makes `key` the device's key. Keeps an existing key in another file, as [`rotate`] does, and returns the path of
/// that file. `None` if there was no key.
pub fn replace(path: &Path, key: &SecretKey) -> Result<Option<PathBuf>, KeyFileError> {
    let _lock = lock_folder_of(path)?;
    let kept = match load(path) {
        Err(KeyFileError::Absent { .. }) => None,
        old => Some(keep_old(path, &old?)?),
    };
    TemporaryKey::write(path, key)?.replace_target(path)?;
    Ok(kept)
}

/// Locks the folder of the key against concurrent changes. Without the lock, one change could report a key that another
/// has just replaced.
fn lock_folder_of(path: &Path) -> Result<File, KeyFileError> {
    let folder = folder_of(path);
    let lock = File::open(folder).map_err(io_error("open", folder))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(KeyFileError::InUse { folder: folder.to_owned() }),
        locked => locked.map(|()| lock).map_err(|e| io_error("lock", folder)(e.into())),
    }
}

/// Writes the key `old` into a file beside `path` that is named after the key's Endpoint ID. Returns the file's path.
fn keep_old(path: &Path, old: &SecretKey) -> Result<PathBuf, KeyFileError> {
    let kept = with_suffix(path, &format!(".old-{}", old.id()));
    match TemporaryKey::write(&kept, old)?.rename_to_unused(&kept) {
        // An earlier change, which was interrupted, has already kept this key.
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            if load(&kept)?.id() != old.id() {
                return Err(KeyFileError::Corrupt { path: kept });
            }
        }
        placed => placed?,
    }
    Ok(kept)
}

/// Reads the key from the text of a key file. `None` if the text contains no valid key.
pub fn parse_key(text: &[u8]) -> Option<SecretKey> {
    let digits = std::str::from_utf8(text).ok()?.trim_end().strip_prefix(MAGIC)?;
    let mut seed = Zeroizing::new([0; SecretKey::LEN]);
    unhex_into(digits, &mut *seed).then(|| SecretKey::of_seed(&seed).ok())?
}

/// A key in a temporary file with mode 0600. The file is removed on drop unless it was renamed to its target.
struct TemporaryKey {
    path: Option<PathBuf>,
}

impl TemporaryKey {
    /// Writes `key` to a new file beside `target` and syncs that file to disk.
    fn write(target: &Path, key: &SecretKey) -> Result<Self, KeyFileError> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| KeyFileError::NoKey { path: target.to_owned(), source: KeyGenerationError })?;
        let path = with_suffix(target, &format!(".{}.new", crate::admission::hex(&random)));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("create", &path))?;
        let temporary = Self { path: Some(path.clone()) };
        let line = key_line(key);
        file.write_all(line.as_bytes()).map_err(io_error("write", &path))?;
        file.sync_all().map_err(io_error("write", &path))?;
        Ok(temporary)
    }

    /// Renames the temporary file to `target`. Fails with `AlreadyExists` if `target` exists.
    fn rename_to_unused(mut self, target: &Path) -> Result<(), KeyFileError> {
        let Some(path) = self.path.as_ref() else { return Ok(()) };
        match rustix::fs::renameat_with(CWD, path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => self.path = None,
            // The file system does not support RENAME_NOREPLACE. A hard link never replaces a file either; the
            // temporary name is removed on drop.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM) => {
                fs::hard_link(path, target).map_err(io_error("create", target))?;
            }
            Err(e) => return Err(io_error("create", target)(e.into())),
        }
        drop(self);
        sync_folder_of(target)
    }

    /// Renames the temporary file to `target`, replacing an existing file.
    fn replace_target(mut self, target: &Path) -> Result<(), KeyFileError> {
        let Some(path) = self.path.as_ref() else { return Ok(()) };
        fs::rename(path, target).map_err(io_error("replace", target))?;
        self.path = None;
        sync_folder_of(target)
    }
}

impl Drop for TemporaryKey {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // If this fails, an unused key remains in a file with mode 0600.
            drop(fs::remove_file(path));
        }
    }
}

/// The text of a key file that contains `key`.
pub fn key_line(key: &SecretKey) -> Zeroizing<String> {
    // Allocate once: a string that reallocates leaves a copy of the secret in freed memory.
    let mut line = Zeroizing::new(String::with_capacity(MAX_LEN));
    line.push_str(MAGIC);
    data_encoding::HEXLOWER.encode_append(key.seed(), &mut line);
    line.push('\n');
    line
}

/// Syncs the folder that contains `path`, so that a rename in the folder is durable.
fn sync_folder_of(path: &Path) -> Result<(), KeyFileError> {
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("write", folder))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KeyFileError + 'a {
    move |source| KeyFileError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::Barrier;

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self) -> PathBuf {
            self.0.path().join("identity.key")
        }

        fn with(text: &str) -> Self {
            let folder = Self::new();
            fs::write(folder.file(), text).unwrap();
            folder.permit(0o600);
            folder
        }

        fn permit(&self, mode: u32) {
            fs::set_permissions(self.file(), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.path()).unwrap();
            let mut names = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
            names.sort();
            names
        }
    }

    #[test]
    fn a_created_key_is_private_and_found_again() {
        let folder = Folder::new();
        let key = load_or_create(&folder.file()).unwrap();
        assert_eq!(fs::metadata(folder.file()).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(load(&folder.file()).unwrap().id(), key.id());
        assert_eq!(load_or_create(&folder.file()).unwrap().id(), key.id());
        assert_eq!(folder.names(), ["identity.key"]);
    }

    #[test]
    fn a_key_is_replaced_by_a_given_one_and_the_former_one_is_kept() {
        let folder = Folder::new();
        let given = SecretKey::from_seed(Zeroizing::new([0x2a; 32])).unwrap();
        assert_eq!(replace(&folder.file(), &given).unwrap(), None);
        assert_eq!(load(&folder.file()).unwrap().id(), given.id());
        let other = SecretKey::from_seed(Zeroizing::new([0x2b; 32])).unwrap();
        let kept = replace(&folder.file(), &other).unwrap().unwrap();
        assert_eq!((load(&folder.file()).unwrap().id(), load(&kept).unwrap().id()), (other.id(), given.id()));
        // The key changes back to the first one, whose file from the first change still exists.
        replace(&folder.file(), &given).unwrap();
        assert_eq!(replace(&folder.file(), &other).unwrap(), Some(kept));
        assert_eq!(folder.names().len(), 3);
    }

    #[test]
    fn the_file_format_is_stable() {
        let folder = Folder::with(&format!("packetparamedic-key-v1 {}\n", "2a".repeat(32)));
        let key = SecretKey::from_seed(Zeroizing::new([0x2a; 32])).unwrap();
        assert_eq!(load(&folder.file()).unwrap().id(), key.id());
        assert_eq!(fs::read_to_string(folder.file()).unwrap(), *key_line(&key));
    }

    #[test]
    fn programs_that_start_at_the_same_time_get_one_key() {
        for _ in 0..20 {
            let folder = Folder::new();
            let (path, together) = (folder.file(), Barrier::new(8));
            let ids = std::thread::scope(|scope| {
                let one = || {
                    together.wait();
                    load_or_create(&path).unwrap().id()
                };
                let all = (0..8).map(|_| scope.spawn(one)).collect::<Vec<_>>();
                all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert!(ids.iter().all(|id| *id == load(&path).unwrap().id()));
            assert_eq!(folder.names(), ["identity.key"]);
        }
    }

    #[test]
    fn a_key_file_that_other_users_can_access_is_refused() {
        for mode in [0o604, 0o640, 0o620, 0o602, 0o660, 0o644, 0o601] {
            let folder = Folder::new();
            load_or_create(&folder.file()).unwrap();
            folder.permit(mode);
            let error = load_or_create(&folder.file()).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { mode: seen, .. } if seen == mode));
            let text = error.to_string();
            assert!(text.contains("chmod 600") && text.contains(folder.file().to_str().unwrap()), "{text}");
            folder.permit(0o400);
            assert!(load(&folder.file()).is_ok());
        }
    }

    #[test]
    fn a_corrupt_file_is_refused_and_not_changed() {
        let digits = "ab".repeat(32);
        for text in [
            String::new(),
            "\n".to_owned(),
            digits.clone(),
            format!("packetparamedic-key-v2 {digits}\n"),
            format!("packetparamedic-key-v1 {}\n", &digits[2..]),
            format!("packetparamedic-key-v1 {digits}00\n"),
            format!("packetparamedic-key-v1 {digits}\n").repeat(2),
            format!("packetparamedic-key-v1 {}\n", "zz".repeat(32)),
            format!("packetparamedic-key-v1 {digits}{}", " ".repeat(MAX_LEN)) + "x",
        ] {
            let folder = Folder::with(&text);
            assert!(matches!(load_or_create(&folder.file()), Err(KeyFileError::Corrupt { .. })), "{text}");
            assert!(matches!(rotate(&folder.file()), Err(KeyFileError::Corrupt { .. })), "{text}");
            assert_eq!(fs::read_to_string(folder.file()).unwrap(), text);
            assert_eq!(folder.names(), ["identity.key"]);
        }
    }

    #[test]
    fn a_path_that_is_not_a_regular_file_is_refused_without_blocking() {
        let folder = Folder::new();
        fs::create_dir(folder.file()).unwrap();
        assert!(matches!(load_or_create(&folder.file()), Err(KeyFileError::NotAFile { .. })));

        let folder = Folder::new();
        let target = folder.0.path().join("target");
        load_or_create(&target).unwrap();
        symlink(&target, folder.file()).unwrap();
        assert!(matches!(load_or_create(&folder.file()), Err(KeyFileError::NotAFile { .. })));

        let folder = Folder::new();
        symlink(folder.0.path().join("nowhere"), folder.file()).unwrap();
        assert!(matches!(load_or_create(&folder.file()), Err(KeyFileError::NotAFile { .. })));
        assert_eq!(folder.names(), ["identity.key"]);

        let folder = Folder::new();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(CWD, folder.file(), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(load_or_create(&folder.file()), Err(KeyFileError::NotAFile { .. })));
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let folder = Folder::new();
        load_or_create(&folder.file()).unwrap();
        std::os::unix::fs::chown(folder.file(), Some(65_534), None).unwrap();
        let error = load_or_create(&folder.file()).unwrap_err();
        assert!(matches!(error, KeyFileError::NotOurs { owner: 65_534, user: 0, .. }), "{error}");
    }

    #[test]
    fn a_provided_key_may_belong_to_root_and_be_a_link() {
        let folder = Folder::new();
        let id = load_or_create(&folder.file()).unwrap().id();
        let link = folder.0.path().join("link");
        symlink(folder.file(), &link).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        for mode in [0o400, 0o600, 0o440, 0o640, 0o404, 0o644, 0o660, 0o620, 0o602, 0o606] {
            folder.permit(mode);
            let loaded = load_provided(&link);
            // The group may read a provided file only if root owns the file.
            if mode & 0o077 == 0 || (is_root && mode & 0o037 == 0) {
                assert_eq!(loaded.unwrap().id(), id, "{mode:04o}");
            } else {
                assert!(matches!(loaded, Err(KeyFileError::ProvidedExposed { mode: seen, .. }) if seen == mode));
            }
        }
        folder.permit(0o600);
        if is_root {
            std::os::unix::fs::chown(folder.file(), Some(65_534), None).unwrap();
            assert!(matches!(load_provided(&link), Err(KeyFileError::ProvidedExposed { owner: 65_534, .. })));
        }
        let nowhere = folder.0.path().join("nowhere");
        assert!(matches!(load_provided(&nowhere), Err(KeyFileError::NotProvided { .. })));
        assert!(matches!(load_provided(folder.0.path()), Err(KeyFileError::NotAFile { .. })));
    }

    #[test]
    fn an_absent_file_and_an_absent_folder_have_different_errors() {
        let folder = Folder::new();
        assert!(matches!(load(&folder.file()), Err(KeyFileError::Absent { .. })));
        assert!(matches!(rotate(&folder.file()), Err(KeyFileError::Absent { .. })));
        let nowhere = folder.0.path().join("none").join("identity.key");
        assert!(matches!(load_or_create(&nowhere), Err(KeyFileError::Io { doing: "create", .. })));
    }

    #[test]
    fn a_rotation_keeps_the_old_key_under_its_id() {
        let folder = Folder::new();
        let first = load_or_create(&folder.file()).unwrap().id();
        let rotated = rotate(&folder.file()).unwrap();
        assert_eq!(rotated.old, first);
        assert_ne!(rotated.new.id(), first);
        assert_eq!(load(&folder.file()).unwrap().id(), rotated.new.id());
        assert_eq!(load(&rotated.kept).unwrap().id(), first);
        assert!(rotated.kept.to_str().unwrap().ends_with(&format!("identity.key.old-{first}")));
        assert_eq!(folder.names().len(), 2);
    }

    #[test]
    fn an_interrupted_rotation_can_be_repeated() {
        let folder = Folder::new();
        let first = load_or_create(&folder.file()).unwrap().id();
        fs::copy(folder.file(), with_suffix(&folder.file(), &format!(".old-{first}"))).unwrap();
        assert_eq!(rotate(&folder.file()).unwrap().old, first);
        assert_eq!(folder.names().len(), 2);
    }

    #[test]
    fn concurrent_rotations_lose_no_key() {
        let folder = Folder::new();
        let first = load_or_create(&folder.file()).unwrap().id();
        let path = folder.file();
        let rotated = std::thread::scope(|scope| {
            let until_rotated = || loop {
                match rotate(&path) {
                    Err(KeyFileError::InUse { .. }) => std::thread::yield_now(),
                    rotated => return rotated.unwrap(),
                }
            };
            let all = (0..4).map(|_| scope.spawn(until_rotated)).collect::<Vec<_>>();
            all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let last = load(&path).unwrap().id();
        let mut seen = rotated.iter().map(|r| r.old).collect::<Vec<_>>();
        assert!(seen.contains(&first) && !seen.contains(&last));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 4, "each rotation replaced another key");
        assert_eq!(folder.names().len(), 5);
    }

    #[test]
    fn a_key_that_another_process_works_with_is_not_rotated() {
        let folder = Folder::new();
        let key = load_or_create(&folder.file()).unwrap().id();
        let running = File::open(folder_of(&folder.file())).unwrap();
        rustix::fs::flock(&running, FlockOperation::LockExclusive).unwrap();
        assert!(matches!(rotate(&folder.file()), Err(KeyFileError::InUse { .. })));
        assert_eq!(load(&folder.file()).unwrap().id(), key);
        drop(running);
        assert_eq!(rotate(&folder.file()).unwrap().old, key);
    }
}
