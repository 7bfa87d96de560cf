//! The places of the accounts' files: a folder for each part, so that each can be given its own and nothing else.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::BrokerError;

/// The files that `orgstream nats init` writes.
#[derive(Debug, Clone)]
pub struct AccessFiles {
    dir: PathBuf,
}

impl AccessFiles {
    /// The paths of the files in `dir`, whether they exist or not.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration that nats-server includes.
    pub fn server(&self) -> PathBuf {
        self.dir.join("server/access.conf")
    }

    /// The credentials of `orgstream serve`.
    pub fn serve(&self) -> PathBuf {
        self.dir.join("serve/nats.creds")
    }

    /// The key by which `orgstream serve` signs producers' credentials.
    pub fn producers(&self) -> PathBuf {
        self.dir.join("serve/producers.json")
    }

    /// The credentials of `orgstream work`, and of an operator's commands that read the log.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work/nats.creds")
    }

    /// The credentials of the administrator, who creates the streams.
    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin/nats.creds")
    }

    /// The keys that have signed all of it.
    pub fn offline(&self) -> PathBuf {
        self.dir.join("offline/keys.json")
    }

    fn all(&self) -> [PathBuf; 6] {
        [self.server(), self.serve(), self.producers(), self.work(), self.admin(), self.offline()]
    }

    /// Whether all of them exist.
    pub fn exist(&self) -> bool {
        self.all().iter().all(|file| file.exists())
    }

    pub(super) fn refuse_existing(&self) -> Result<(), BrokerError> {
        match self.all().iter().find(|file| file.exists()) {
            Some(file) => Err(BrokerError::Exists(file.display().to_string())),
            None => Ok(()),
        }
    }

    /// Writes a file for its owner alone, and makes its folder.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), BrokerError> {
        let failed = |source| BrokerError::Io { what: format!("{} cannot be written", path.display()), source };
        fs::create_dir_all(&self.dir).map_err(failed)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            DirBuilder::new().mode(0o700).create(folder).map_err(failed)?;
        }
        write_private(path, text.as_bytes()).map_err(failed)
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let draft = path.with_extension("new");
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(content).and_then(|()| file.sync_all())?;
    fs::rename(&draft, path)
}
