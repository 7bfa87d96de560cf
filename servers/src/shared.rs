//! One PostgreSQL for many test processes: a program runs while the cluster does, and finds its URL in a variable.

use std::{
    ffi::OsString,
    fs,
    process::{ExitStatus, Stdio},
};

use crate::{Postgres, PostgresOptions, ServerError};

/// The variable with the superuser's URL of a cluster that tests may make databases in.
pub const TEST_POSTGRES: &str = "ORGSTREAM_TEST_POSTGRES";

/// Runs `program` beside a cluster that never waits for the disk and is removed afterwards.
///
/// Ctrl-C reaches both processes; it ends the program, and then the cluster.
pub async fn run_with_postgres(program: &OsString, args: &[OsString]) -> Result<ExitStatus, ServerError> {
    let dir = std::env::temp_dir().join(format!("orgstream-tests-{}", std::process::id()));
    let options = PostgresOptions { without_fsync: true, max_connections: 400, ..PostgresOptions::default() };
    let postgres = Postgres::start(&dir, options).await?;
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .env(TEST_POSTGRES, &postgres.superuser_url)
        .stdin(Stdio::null())
        .spawn()
        .map_err(ServerError::io(format!("run {}", program.display())))?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    postgres.stop_and_remove().await;
    let _ = fs::remove_dir_all(&dir);
    status.map_err(ServerError::io(format!("wait for {}", program.display())))
}
