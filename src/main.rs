//! The program. Every function is a subcommand; see `orgstream --help`.

use std::{io::Write, process::ExitCode, time::Duration};

use mimalloc::MiMalloc;
use orgstream::{
    cli::{self, Cli},
    process::small_pages,
};
use tokio::runtime::Runtime;

/// The maximum wait at the end for what cannot be interrupted.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Messages are many small allocations that are made by one thread and freed by another, which glibc is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    small_pages();
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: the program cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async { cli::ended(Box::pin(Cli::from_command_line().run()).await) });
    // A read of standard input cannot be interrupted, and the line may never come.
    runtime.shutdown_timeout(LAST_WAIT);
    code
}
