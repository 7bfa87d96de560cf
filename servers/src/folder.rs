//! A server's folder: one owner at a time, and the ports of the last run.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use orgstream_stream::broker;

use crate::ServerError;

/// Ports below those that the kernel assigns to outgoing connections. A client that reconnects to a port in that range
/// while the server is down can be assigned the very port it connects to, and would then be connected to itself.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A folder that is locked until this is dropped, or until the process ends in any way.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Creates the folder if it is missing, and locks it.
    pub(super) fn take(path: &Path) -> Result<Self, ServerError> {
        create(path, 0o711)?;
        let path = fs::canonicalize(path).map_err(ServerError::io(format!("open {}", path.display())))?;
        let file = path.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&file);
        let mut lock = open.map_err(ServerError::io(format!("open {}", file.display())))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = lock.read_to_string(&mut text);
                return Err(ServerError::InUse { dir: path, pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(ServerError::io(format!("lock {}", file.display()))(error)),
        }
        // For another process that finds the lock taken; the lock itself is the kernel's, so it cannot be left behind.
        let _ = lock.set_len(0);
        let _ = writeln!(lock, "{}", std::process::id());
        Ok(Self { path, _lock: lock })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the ports of the last run where they are still free, else others.
    pub(super) fn ports<const N: usize>(&self) -> Result<[u16; N], ServerError> {
        let stored: Vec<u16> = fs::read(self.join("ports.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        // Held until all are chosen, so that none is chosen twice.
        let mut held = Vec::with_capacity(N);
        for place in 0..N {
            let last = stored.get(place).and_then(|port| bind(*port));
            held.push(last.map_or_else(free, Ok).map_err(ServerError::io("find a free port on 127.0.0.1"))?);
        }
        let mut ports = [0; N];
        for (port, listener) in ports.iter_mut().zip(&held) {
            *port = listener.local_addr().map_err(ServerError::io("find a free port on 127.0.0.1"))?.port();
        }
        self.write("ports.json", &serde_json::to_vec(ports.as_slice()).unwrap_or_default())?;
        Ok(ports)
    }

    /// Writes a file that only its owner can read.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), ServerError> {
        write_private(&self.join(name), content)
    }
}

/// Listens on the loopback port that `dir` had last time; on another only when there was no last time.
///
/// For servers that others know by their address, so that a taken port is an error and not a new identity.
pub fn stable_listener(dir: &Path) -> Result<TcpListener, ServerError> {
    create(dir, 0o700)?;
    let file = dir.join("port");
    let stored = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u16>().ok());
    let listener = match stored {
        Some(port) => TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .map_err(ServerError::io(format!("listen on port {port}, which {} is known by", dir.display())))?,
        None => free().map_err(ServerError::io("find a free port on 127.0.0.1"))?,
    };
    let port = listener.local_addr().map_err(ServerError::io("find a free port on 127.0.0.1"))?.port();
    write_private(&file, format!("{port}\n").as_bytes())?;
    Ok(listener)
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), ServerError> {
    broker::write_private(path, content).map_err(ServerError::io(format!("write {}", path.display())))
}

/// Creates a folder and its missing parents.
pub(super) fn create(path: &Path, mode: u32) -> Result<(), ServerError> {
    let made = match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    };
    let made = made.and_then(|()| match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        // Independent of the umask: another account may have to pass.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        other => other,
    });
    made.map_err(ServerError::io(format!("create {}", path.display())))
}

fn bind(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
}

fn free() -> std::io::Result<TcpListener> {
    let tried = (0..64).find_map(|_| bind(rand::random_range(PORTS)));
    tried.map_or_else(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), Ok)
}
