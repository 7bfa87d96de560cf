//! `orgstream migrate`: a database brought up to date.

use anyhow::Context;

use super::out::note;

/// Bring a database up to date, and give the program's logins their password.
///
/// Runs every migration that is missing, each once, and sets the password of the logins `app_rw`, `app_ro` and
/// `app_audit`. It is safe to run again, and before a new version of the program is started.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The database, with a login that may create roles and owns the database.
    #[arg(long, env = "ORGSTREAM_OWNER_URL", hide_env_values = true, value_name = "URL")]
    owner_url: String,
    /// The password that `serve` and `work` log in with.
    #[arg(long, env = "ORGSTREAM_DATABASE_PASSWORD", hide_env_values = true, value_name = "TEXT")]
    database_password: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    orgstream_projections::migrate(&args.owner_url, args.database_password.as_deref())
        .await
        .context("the database was not migrated; nothing was changed by the step that failed")?;
    note!("the database is up to date");
    Ok(())
}
