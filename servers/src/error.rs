//! The reasons why a private server does not run, each with the remedy.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use orgstream_stream::broker::BrokerError;

/// The reason why a private server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program is not on this machine.
    #[error("{server} was not found. {fix}")]
    NotInstalled {
        /// The program.
        server: &'static str,
        /// The remedy.
        fix: &'static str,
    },
    /// The program exists, but is too old.
    #[error("{} is version {found}, but {server} {wanted} or newer is needed. {fix}", path.display())]
    TooOld {
        /// The program.
        server: &'static str,
        /// Its path.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest supported one.
        wanted: String,
        /// The remedy.
        fix: &'static str,
    },
    /// Another process has the folder.
    #[error("{} is in use by another orgstream{}: stop that one, or choose another data directory", dir.display(), by_pid(*pid))]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// The process, if known.
        pid: Option<u32>,
    },
    /// An error of its accounts.
    #[error(transparent)]
    Access(#[from] BrokerError),
    /// Its streams are where no account of this installation can reach them.
    #[error("the streams in {} are from before NATS had accounts: delete the data folder to start afresh", dir.display())]
    BeforeAccounts {
        /// The folder of the streams.
        dir: PathBuf,
    },
    /// It ended, or never answered.
    #[error("{server} did not start: {reason}. The end of {}:\n{tail}", log.display())]
    NotReady {
        /// The program.
        server: &'static str,
        /// The observed failure.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The folder is not in the required state.
    #[error("{}: {problem}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The problem, and the remedy.
        problem: String,
    },
    /// An error of the operating system.
    #[error("cannot {what}")]
    Io {
        /// The operation.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// An error of the database.
    #[error("the private PostgreSQL refused")]
    Database(#[from] sqlx::Error),
}

fn by_pid(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl ServerError {
    /// Makes a constructor for an I/O error of this operation.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(super) fn not_ready(server: &'static str, reason: impl Into<String>, log: &Path) -> Self {
        Self::NotReady { server, reason: reason.into(), log: log.to_owned(), tail: tail(log) }
    }
}

/// The last lines of a log, as many as fit into an error message.
fn tail(log: &Path) -> String {
    const BYTES: u64 = 4096;
    const LINES: usize = 15;
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(cannot be read: {error})"));
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines.get(from..).unwrap_or_default().iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
