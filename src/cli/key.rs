//! `orgstream key`: what can be said of an API key without asking anybody.

use std::io::Read;

use anyhow::{Context, bail};
use orgstream_events::KeyEnvironment;

use super::out::say;
use crate::auth::key::{KeyToken, TOKEN_REGEX};

#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// Say whether a text can be an API key: its form and its checksum, without a server. Reads standard input without TOKEN.
    Check(CheckArgs),
    /// Print the regular expression of all API keys, for tools that look for leaked ones.
    Pattern,
}

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// The whole key. Better on standard input than on a command line, which others can see.
    token: Option<String>,
}

pub(crate) fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Check(args) => check(args),
        Job::Pattern => {
            say!("{TOKEN_REGEX}")?;
            Ok(())
        }
    }
}

fn check(args: CheckArgs) -> anyhow::Result<()> {
    let text = match args.token {
        Some(token) => token,
        None => {
            let mut text = String::new();
            std::io::stdin().take(4_096).read_to_string(&mut text).context("standard input cannot be read as text")?;
            text
        }
    };
    match text.trim().parse::<KeyToken>() {
        Ok(token) => {
            let environment = match token.environment() {
                KeyEnvironment::Live => "live",
                KeyEnvironment::Test => "test",
            };
            say!("{environment} key {}, ends in {}", token.public_id(), token.last4())?;
            Ok(())
        }
        Err(error) => bail!("{error}"),
    }
}
