//! Why a private server does not run, each with the way out.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use orgstream_stream::broker::BrokerError;

/// Why a private server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program is not on this machine.
    #[error("{server} was not found. {fix}")]
    NotInstalled {
        /// Which program.
        server: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// The program is there, but too old.
    #[error("{} is version {found}, but {server} {wanted} or newer is needed. {fix}", path.display())]
    TooOld {
        /// Which program.
        server: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest that will do.
        wanted: String,
        /// What to do.
        fix: &'static str,
    },
    /// Another process has the folder.
    #[error("{} is in use by another orgstream{}: stop that one, or choose another data directory", dir.display(), by_pid(*pid))]
    InUse {
        /// Which folder.
        dir: PathBuf,
        /// Whose it is, if it says.
        pid: Option<u32>,
    },
    /// Its accounts.
    #[error(transparent)]
    Access(#[from] BrokerError),
    /// Its streams are where no account of ours reaches.
    #[error("the streams in {} are from before NATS had accounts: delete the data folder to start afresh", dir.display())]
    BeforeAccounts {
        /// Where they are.
        dir: PathBuf,
    },
    /// It ended, or never answered.
    #[error("{server} did not start: {reason}. The end of {}:\n{tail}", log.display())]
    NotReady {
        /// Which program.
        server: &'static str,
        /// What was seen.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The folder is not as it must be.
    #[error("{}: {problem}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// The operating system refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it says.
        source: io::Error,
    },
    /// The database refused.
    #[error("the private PostgreSQL refused: {0}")]
    Database(#[from] sqlx::Error),
}

fn by_pid(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl ServerError {
    /// What an I/O error was about.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(super) fn not_ready(server: &'static str, reason: impl Into<String>, log: &Path) -> Self {
        Self::NotReady { server, reason: reason.into(), log: log.to_owned(), tail: tail(log) }
    }
}

/// The last lines of a log, as far as they fit into an error message.
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
