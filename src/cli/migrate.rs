//! `orgstream migrate`: bring a database up to date.

use anyhow::Context;
use orgstream_projections::{LoginPassword, Passwords};

use crate::{config::LoginPasswordParser, terminal::out::note};

/// Bring a database up to date, and give the program's logins their password.
///
/// Runs every migration that is missing, each once, and sets the passwords of the logins that it
/// made. It is safe to run again, and before a new version of the program is started.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The database, with a login that may create roles and owns the database.
    #[arg(long, env = "ORGSTREAM_OWNER_URL", hide_env_values = true, value_name = "URL")]
    owner_url: String,
    /// The password that `serve` and `work` log in with.
    #[arg(long, env = "ORGSTREAM_DATABASE_PASSWORD", hide_env_values = true, value_name = "TEXT")]
    database_password: Option<String>,
    /// The password of one login, where each has its own: `app_rw`, `app_ro`, `app_public`, `app_identity`, `app_eraser`, `app_sign` or
    /// `app_audit`. May be repeated; without commas.
    #[arg(
        long = "database-login-password",
        env = "ORGSTREAM_DATABASE_LOGIN_PASSWORDS",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = LoginPasswordParser,
        value_name = "LOGIN=TEXT"
    )]
    login_passwords: Vec<LoginPassword>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let passwords = Passwords::new(args.database_password, args.login_passwords);
    orgstream_projections::migrate_with(&args.owner_url, &passwords)
        .await
        .context("the database was not migrated; nothing was changed by the step that failed")?;
    note!("the database is up to date");
    Ok(())
}
