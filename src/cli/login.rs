//! `orgstream login`: a session of a person, kept for the client commands.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{
    client::Api,
    client::session::{StoredSession, session_file},
    dev::demo::DemoFile,
    terminal::out::note,
};

/// Sign in as a person, and keep the session for the other commands.
///
/// With a token of your issuer (--token), or, beside `orgstream dev`, as any person (--email): its issuer signs in everyone.
/// The session is kept in ~/.config/orgstream, readable by you alone, and used by commands that are given no API key.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The API.
    #[arg(long, env = "ORGSTREAM_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    /// A token (JWT) of an issuer that the API trusts. Better in the environment than on a command line.
    #[arg(long, env = "ORGSTREAM_TOKEN", hide_env_values = true, value_name = "JWT", conflicts_with = "email")]
    token: Option<String>,
    /// Whom the issuer of `orgstream dev` is to sign in.
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// The development issuer; by default the one that --data-dir knows.
    #[arg(long, value_name = "URL", requires = "email")]
    issuer: Option<String>,
    /// The data folder of the running `orgstream dev`.
    #[arg(long, env = "ORGSTREAM_DATA_DIR", default_value = ".orgstream", value_name = "DIR")]
    data_dir: PathBuf,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let token = match (args.token, args.email) {
        (Some(token), _) => token,
        (None, Some(email)) => {
            let issuer = match args.issuer {
                Some(issuer) => issuer,
                None => DemoFile::read(&args.data_dir)?.issuer_url,
            };
            development_token(&issuer, &email).await?
        }
        (None, None) => {
            bail!("who signs in? Give a token of your issuer (--token), or beside orgstream dev an --email")
        }
    };
    let api = Api::with(&args.url, token)?;
    let session = api.post("/v1/sessions", &Value::Null).await?;
    let text = session.get("token").and_then(Value::as_str).context("the API gave no session")?;
    let file = session_file()?;
    StoredSession { url: api.base().to_owned(), token: text.to_owned() }.write(&file)?;
    let place = session.pointer("/active_org/slug").and_then(Value::as_str).unwrap_or("your own organization");
    note!("signed in, acting in {place}; the session is in {}", file.display());
    Ok(())
}

async fn development_token(issuer: &str, email: &str) -> anyhow::Result<String> {
    let url = format!("{}/token", issuer.trim_end_matches('/'));
    let answer = reqwest::Client::new().post(&url).json(&json!({"email": email})).send().await;
    let answer: Value = answer.with_context(|| format!("the issuer at {url} does not answer"))?.json().await?;
    let token = answer.get("access_token").and_then(Value::as_str).map(str::to_owned);
    token.with_context(|| {
        let why = answer.get("error_description").and_then(Value::as_str).unwrap_or("it gave no token");
        format!("the issuer at {url} signs in no one: {why}")
    })
}
