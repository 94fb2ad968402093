//! The file that holds a device's secret key: the only disk access of this crate. Nothing else is ever kept in it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::admission::unhex;
use crate::identity::NoKey;
use crate::{EndpointId, SecretKey};

/// What the one line begins with: what it is and in which version of this format.
const MAGIC: &str = "packetparamedic-key-v1 ";

/// More than any key file has; what is longer is none.
const MAX_LEN: usize = 256;

/// Why there is no key to use. Each names the file and the mend.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is none.
    #[error("there is no key file {}: it is made when the program first runs as a service or pairs", .path.display())]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A folder, a symbolic link, a device: whatever it is, not a file of this program.
    #[error("{} is no regular file: move it away, or name another state folder", .path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// Someone else's file: its owner can read and change the key.
    #[error("{} belongs to user {owner}, this runs as user {user}: run it as {owner}, or `chown {user}` it", .path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
        /// The user id that this program runs as.
        user: u32,
    },
    /// Its permissions let others read or change the key.
    #[error("others can get at the key in {} (its mode is {mode:04o}): `chmod 600` it, or make a new identity if someone may have read it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds no key. It is left as it is.
    #[error("{} holds no key of this program: restore it from a backup, or move it away to get a new identity (every pairing is then lost)", .path.display())]
    Corrupt {
        /// The file.
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
    /// No new key could be made.
    #[error("no key for {}: {source}", .path.display())]
    NoKey {
        /// The file that it was for.
        path: PathBuf,
        /// Why not.
        source: NoKey,
    },
}

/// A device that has a new key.
#[derive(Debug)]
pub struct Rotated {
    /// Who it was.
    pub old: EndpointId,
    /// Its new key, on disk already.
    pub new: SecretKey,
    /// Where the old key is kept.
    pub kept: PathBuf,
}

/// The key in `path`, or a new one where there is none. The folder must exist. Two programs that start together end
/// with the same key. Nothing that stands there is ever overwritten.
pub fn load_or_create(path: &Path) -> Result<SecretKey, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Absent { .. }) => {}
        found => return found,
    }
    let key = SecretKey::generate().map_err(|source| KeyFileError::NoKey { path: path.to_owned(), source })?;
    let draft = Draft::write(path, &key)?;
    match draft.place_where_nothing_is(path) {
        Ok(()) => Ok(key),
        // Someone was faster: theirs is the device's key.
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(other) => Err(other),
    }
}

/// The key in `path`.
pub fn load(path: &Path) -> Result<SecretKey, KeyFileError> {
    // No following of links, and no waiting for the writer of a named pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let mut file = file.map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => KeyFileError::Absent { path: path.to_owned() },
        Some(Errno::LOOP | Errno::NXIO | Errno::NODEV) => KeyFileError::NotAFile { path: path.to_owned() },
        _ => KeyFileError::Io { doing: "open", path: path.to_owned(), source },
    })?;
    let about = file.metadata().map_err(io_error("look at", path))?;
    if !about.is_file() {
        return Err(KeyFileError::NotAFile { path: path.to_owned() });
    }
    let user = rustix::process::geteuid().as_raw();
    if about.uid() != user {
        return Err(KeyFileError::NotOurs { path: path.to_owned(), owner: about.uid(), user });
    }
    if about.mode() & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode: about.mode() & 0o7777 });
    }
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
    // A full buffer may be the beginning of anything.
    let whole = (length < MAX_LEN).then_some(&text[..length]);
    whole.and_then(key_in).ok_or_else(|| KeyFileError::Corrupt { path: path.to_owned() })
}

/// Gives the device a new key. The old one is kept beside it, in a file that carries its Endpoint ID. At every moment
/// there is one whole key file at `path`, so that a crash leaves the old identity or the new one.
pub fn rotate(path: &Path) -> Result<Rotated, KeyFileError> {
    // Of two rotations at once, one would report a key that the other has just replaced.
    let folder = folder_of(path);
    let lock = File::open(folder).map_err(io_error("open", folder))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| io_error("lock", folder)(e.into()))?;

    let old = load(path)?;
    let kept = with_suffix(path, &format!(".old-{}", old.id()));
    match Draft::write(&kept, &old)?.place_where_nothing_is(&kept) {
        // Kept already, by a rotation that did not come to its end.
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            if load(&kept)?.id() != old.id() {
                return Err(KeyFileError::Corrupt { path: kept });
            }
        }
        placed => placed?,
    }
    let new = SecretKey::generate().map_err(|source| KeyFileError::NoKey { path: path.to_owned(), source })?;
    Draft::write(path, &new)?.place_over(path)?;
    Ok(Rotated { old: old.id(), new, kept })
}

/// The key that the file's text holds.
fn key_in(text: &[u8]) -> Option<SecretKey> {
    let digits = std::str::from_utf8(text).ok()?.trim_end().strip_prefix(MAGIC)?;
    SecretKey::from_seed(Zeroizing::new(unhex(digits)?)).ok()
}

/// A key on disk under a name of its own, private from its first moment; removed unless it is put into its place.
struct Draft {
    path: Option<PathBuf>,
}

impl Draft {
    /// Writes `key` beside `target`, durably.
    fn write(target: &Path, key: &SecretKey) -> Result<Self, KeyFileError> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| KeyFileError::NoKey { path: target.to_owned(), source: NoKey })?;
        let path = with_suffix(target, &format!(".{}.new", crate::admission::hex(&random)));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("create", &path))?;
        let draft = Self { path: Some(path.clone()) };
        let line = line_of(key);
        file.write_all(line.as_bytes()).map_err(io_error("write", &path))?;
        file.sync_all().map_err(io_error("write", &path))?;
        Ok(draft)
    }

    /// Gives it its name, unless something has that name: then `AlreadyExists`.
    fn place_where_nothing_is(mut self, target: &Path) -> Result<(), KeyFileError> {
        let Some(path) = self.path.as_ref() else { return Ok(()) };
        match rustix::fs::renameat_with(CWD, path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => self.path = None,
            // A file system that has no such rename; a link never replaces either. The draft's own name goes on drop.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM) => {
                fs::hard_link(path, target).map_err(io_error("create", target))?;
            }
            Err(e) => return Err(io_error("create", target)(e.into())),
        }
        drop(self);
        sync_folder_of(target)
    }

    /// Gives it its name, in place of whatever has that name.
    fn place_over(mut self, target: &Path) -> Result<(), KeyFileError> {
        let Some(path) = self.path.as_ref() else { return Ok(()) };
        fs::rename(path, target).map_err(io_error("replace", target))?;
        self.path = None;
        sync_folder_of(target)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Where even this fails, a key that nobody uses is left in a private file.
            let _ = fs::remove_file(path);
        }
    }
}

/// The file's one line.
fn line_of(key: &SecretKey) -> Zeroizing<String> {
    // With room for all of it: a string that grows leaves a copy of the secret behind.
    let mut line = Zeroizing::new(String::with_capacity(MAX_LEN));
    line.push_str(MAGIC);
    data_encoding::HEXLOWER.encode_append(key.seed(), &mut line);
    line.push('\n');
    line
}

/// Makes the folder's entries durable.
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
    fn the_format_stays_readable_for_ever() {
        let folder = Folder::with(&format!("packetparamedic-key-v1 {}\n", "2a".repeat(32)));
        let key = SecretKey::from_seed(Zeroizing::new([0x2a; 32])).unwrap();
        assert_eq!(load(&folder.file()).unwrap().id(), key.id());
        assert_eq!(fs::read_to_string(folder.file()).unwrap(), *line_of(&key));
    }

    #[test]
    fn programs_that_start_together_end_with_one_key() {
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
    fn a_key_that_others_can_reach_is_refused_with_the_mend() {
        for mode in [0o604, 0o640, 0o620, 0o602, 0o660, 0o644, 0o601] {
            let folder = Folder::new();
            load_or_create(&folder.file()).unwrap();
            folder.permit(mode);
            let error = load_or_create(&folder.file()).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { mode: seen, .. } if seen == mode));
            let said = error.to_string();
            assert!(said.contains("chmod 600") && said.contains(folder.file().to_str().unwrap()), "{said}");
            folder.permit(0o400);
            assert!(load(&folder.file()).is_ok());
        }
    }

    #[test]
    fn a_corrupt_file_is_named_and_left_as_it_is() {
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
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let folder = Folder::new();
        fs::create_dir(folder.file()).unwrap();
        assert!(matches!(load_or_create(&folder.file()), Err(KeyFileError::NotAFile { .. })));

        let folder = Folder::new();
        let elsewhere = folder.0.path().join("elsewhere");
        load_or_create(&elsewhere).unwrap();
        symlink(&elsewhere, folder.file()).unwrap();
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
    fn someone_elses_file_is_refused() {
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
    fn an_absent_file_or_folder_is_told_apart_from_a_broken_one() {
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
    fn a_rotation_that_was_cut_off_is_taken_up_again() {
        let folder = Folder::new();
        let first = load_or_create(&folder.file()).unwrap().id();
        fs::copy(folder.file(), with_suffix(&folder.file(), &format!(".old-{first}"))).unwrap();
        assert_eq!(rotate(&folder.file()).unwrap().old, first);
        assert_eq!(folder.names().len(), 2);
    }

    #[test]
    fn rotations_at_once_lose_no_key() {
        let folder = Folder::new();
        let first = load_or_create(&folder.file()).unwrap().id();
        let path = folder.file();
        let rotated = std::thread::scope(|scope| {
            let all = (0..4).map(|_| scope.spawn(|| rotate(&path).unwrap())).collect::<Vec<_>>();
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
}
