//! `orgstream key`: checks of an API key without a server, and credentials derived from one.

use std::io::Read;

use anyhow::Context;
use orgstream_domain::credentials::key::{KeyToken, TOKEN_REGEX};
use orgstream_events::KeyEnvironment;
use serde_json::Value;

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::out::{note, say},
};

#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// Say whether a text can be an API key: its form and its checksum, without a server. Reads standard input without TOKEN.
    Check(CheckArgs),
    /// Make credentials for NATS of an API key, and print them: the content of a .creds file, shown once.
    Nats(ClientArgs),
    /// Print the regular expression of all API keys, for tools that look for leaked ones.
    Pattern,
}

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// The whole key. Better on standard input than on a command line, which others can see.
    token: Option<String>,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Check(args) => check(args),
        Job::Nats(args) => nats(&args).await,
        Job::Pattern => {
            say!("{TOKEN_REGEX}")?;
            Ok(())
        }
    }
}

async fn nats(args: &ClientArgs) -> anyhow::Result<()> {
    let made = Api::new(args)?.post("/v1/nats-credentials", &Value::Null).await?;
    let text = |name: &str| made.get(name).and_then(Value::as_str).unwrap_or_default();
    say!("{}", text("credentials").trim_end())?;
    note!("for commands to cmd.{}; answers come to inboxes that begin with {}", text("org_id"), text("inbox_prefix"));
    Ok(())
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
        Err(error) => Err(error.into()),
    }
}
