//! `orgstream test-servers`: a program beside a PostgreSQL cluster that its processes share. `./check` runs tests in it.

use std::ffi::OsString;

use orgstream_servers::run_with_postgres;

/// Run a program beside a throwaway PostgreSQL cluster, whose superuser's URL it finds in `ORGSTREAM_TEST_POSTGRES`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program.
    program: OsString,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let status = run_with_postgres(&args.program, &args.args).await?;
    if !status.success() {
        // The program has reported its error; its own exit code is passed on.
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}
