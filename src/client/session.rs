//! The session that `orgstream login` stores for the other commands: one file, readable by its owner alone.

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::Context;
use orgstream_servers::write_private;
use serde::{Deserialize, Serialize};

/// A session, and the API that it is for.
#[derive(Serialize, Deserialize)]
pub struct StoredSession {
    /// The API. The session is sent to no other.
    pub url: String,
    /// Its token.
    pub token: String,
}

/// Returns the path of the session file.
pub fn session_file() -> anyhow::Result<PathBuf> {
    let given = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = given("XDG_CONFIG_HOME").or_else(|| given("HOME").map(|home| home.join(".config")));
    let config = config.context("there is no home folder (HOME) to keep a session in: use ORGSTREAM_SESSION")?;
    Ok(config.join("orgstream").join("session.json"))
}

impl StoredSession {
    /// Returns the session for the API at `base`, if one is stored.
    pub fn read(base: &str) -> Option<Self> {
        let stored: Self = serde_json::from_slice(&fs::read(session_file().ok()?).ok()?).ok()?;
        Some(stored).filter(|stored| stored.url == base)
    }

    /// Stores it.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        Ok(write_private(file, &serde_json::to_vec_pretty(self)?)?)
    }

    /// Deletes it.
    pub fn forget() -> anyhow::Result<()> {
        match fs::remove_file(session_file()?) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("the session cannot be removed"),
            _ => Ok(()),
        }
    }
}
