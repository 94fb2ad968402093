//! Listening unix sockets, and their files. A new server replaces the socket file that a killed server left. It does
//! not replace a socket at which a process still answers, or a file that is not a socket.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

/// The maximum number of connections that wait to be accepted: -1 requests as many as the kernel allows.
const BACKLOG: i32 = -1;

/// Why the server cannot listen on a unix socket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields need no comment")]
pub enum UnixSocketError {
    /// The folder of the socket belongs to another user, who could replace the socket.
    #[error("{} belongs to user {owner}, but this program runs as user {user}", folder.display())]
    Foreign { folder: PathBuf, owner: u32, user: u32 },
    /// Another process answers at the socket.
    #[error("another process already answers at the socket {}", path.display())]
    InUse { path: PathBuf },
    /// The path exists and is not a socket.
    #[error("{} exists and is not a socket: move it away", path.display())]
    NotASocket { path: PathBuf },
    /// The kernel refused an operation.
    #[error("cannot {doing} {}: {source}", path.display())]
    Unusable { doing: &'static str, path: PathBuf, source: io::Error },
}

/// A listening unix socket. Dropping the value removes the socket's file.
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
        let listener = bind_private(path).and_then(UnixListener::from_std).map_err(failed("bind", path))?;
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

/// Listens at `path` with mode 0600. The mode is set before the socket is bound, and the kernel gives the socket file
/// this mode, less the umask (`unix_bind` of Linux). If the mode were set later, another user could connect in between.
fn bind_private(path: &Path) -> io::Result<StdListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> UnixSocketError {
    let path = path.to_owned();
    move |source| UnixSocketError::Unusable { doing, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    #[test]
    fn a_socket_is_private_until_its_mode_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service.sock");
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        let listener = bind_private(&path).unwrap();
        assert_eq!(mode(), 0o600);
        assert!(StdStream::connect(&path).is_ok());
        let taken = bind_private(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let socket = UnixSocket::bind(&path).unwrap();
            assert_eq!(mode(), 0o660);
            let _client = UnixStream::connect(&path).await.unwrap();
            socket.accept().await.unwrap();
        });
        assert!(!path.exists());
    }
}
