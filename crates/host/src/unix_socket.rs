//! Listening unix sockets, and their files. The socket file of a killed server is replaced. A socket at which a process
//! answers, and a file that is not a socket, are not replaced.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Why the server cannot listen on a unix socket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields need no comment")]
pub enum UnixSocketError {
    /// The folder of the socket belongs to another user, who could replace the socket.
    #[error("{} belongs to user {owner}, but this program runs as user {user}", folder.display())]
    Foreign { folder: PathBuf, owner: u32, user: u32 },
    /// Another process answers at the socket.
    #[error("another process already answers at {}", path.display())]
    InUse { path: PathBuf },
    /// The path exists and is not a socket.
    #[error("{} exists, and is not a socket", path.display())]
    NotASocket { path: PathBuf },
    /// The kernel refused an operation.
    #[error("cannot {doing} {}: {source}", path.display())]
    Unusable { doing: &'static str, path: PathBuf, source: io::Error },
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixSocket {
    /// Listens at `path` with mode 0660. Creates the folder if it does not exist.
    pub fn bind(path: &Path) -> Result<Self, UnixSocketError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
            let owner = std::fs::metadata(folder).map_err(failed("read", folder))?.uid();
            let user = rustix::process::geteuid().as_raw();
            if owner != user && owner != 0 {
                return Err(UnixSocketError::Foreign { folder: folder.to_owned(), owner, user });
            }
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(UnixSocketError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(UnixSocketError::InUse { path: path.to_owned() });
            }
            Ok(_) => std::fs::remove_file(path).map_err(failed("replace", path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", path)(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed("bind", path))?;
        let bound = Self { listener, path: path.to_owned() };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(failed("set the mode of", path))?;
        Ok(bound)
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // The file may be gone already.
        std::fs::remove_file(&self.path).ok();
    }
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> UnixSocketError {
    let path = path.to_owned();
    move |source| UnixSocketError::Unusable { doing, path: path.clone(), source }
}
