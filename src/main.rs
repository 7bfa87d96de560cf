//! The program. Everything it does is a subcommand; see `orgstream --help`.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use orgstream::cli::{self, Cli};

/// Messages are many small allocations that are made by one thread and freed by another, which glibc is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    small_pages();
    cli::ended(Box::pin(Cli::parse().run()).await)
}

/// Memory comes 4 KiB at a time, also to a program that grows: the allocator asks for pages of 2 MiB, and whoever needs the
/// next one waits until the kernel has found and cleared it, for milliseconds on a busy machine. The servers that it
/// starts inherit this.
fn small_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
