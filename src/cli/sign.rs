//! `orgstream sign`: the process that holds the key of the audit logs.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use axum::{Router, routing::get};
use orgstream_projections::audit::SigningDatabase;
use orgstream_transparency::{HandOver, Log, LogKey, LogSigner, SignedNote};

use crate::{
    audit::{
        keys::KeyFiles,
        signer::{Pace, Signer},
    },
    config::DatabaseArgs,
    process as node,
    telemetry::{self, metrics::Process},
    terminal::out::say,
};

/// Sign the heads of the organizations' audit logs, and have witnesses sign them too.
///
/// It logs in to the database as `app_sign`, which may read the log and add to what is signed, and needs nothing else: keep
/// it, and the key, away from `serve` and `work`. Its public key, `log.vkey`, is what auditors pin.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with the key.
    #[arg(long, env = "ORGSTREAM_KEYS", default_value = "keys", value_name = "DIR")]
    keys: PathBuf,
    /// Make a key for the logs of this host, and end. Every log is called `<host>/<organization>`.
    #[arg(long, value_name = "HOST")]
    new_key: Option<String>,
    /// Put a new key in the place of the one that is there, and end. The old key signs that it hands over, so a holder of
    /// it can follow; witnesses have to be given the new `log.vkey`.
    #[arg(long, conflicts_with = "new_key")]
    hand_over: bool,
    /// Sign although another key of the same host has signed here and did not hand over: a holder of that one will refuse
    /// all that is signed from now on. For when it is lost.
    #[arg(long)]
    new_log: bool,
    /// The witnesses to ask, as a C2SP tlog-policy with their addresses.
    #[arg(long, env = "ORGSTREAM_WITNESSES", value_name = "FILE")]
    witnesses: Option<PathBuf>,
    /// Events after which a log is signed at once.
    #[arg(long, env = "ORGSTREAM_SIGN_EVENTS", default_value_t = 256, value_name = "N")]
    sign_events: u64,
    /// How long an event waits for a signature, in seconds.
    #[arg(long, env = "ORGSTREAM_SIGN_SECONDS", default_value_t = 10, value_name = "S")]
    sign_seconds: u64,
    /// Where /healthz and /metrics are served.
    #[arg(long, env = "ORGSTREAM_SIGN_HTTP", default_value = "127.0.0.1:8082", value_name = "ADDRESS")]
    http: String,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Returns the lines about witnesses of a policy file.
pub(crate) fn witnesses(file: Option<&PathBuf>) -> anyhow::Result<String> {
    match file {
        None => Ok("quorum none\n".to_owned()),
        Some(path) => fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display())),
    }
}

/// Fails when a key of the same host has signed here, and this one is not its successor.
async fn refuse_another(db: &SigningDatabase, key: &LogKey, own: &[SignedNote]) -> anyhow::Result<()> {
    let (said, stored) = db.known_keys().await.context("the keys that have signed could not be read")?;
    let stored = stored.iter().filter_map(|note| SignedNote::parse(note.as_bytes()).ok());
    let notes: Vec<SignedNote> = stored.chain(own.iter().cloned()).collect();
    let connected = HandOver::follow(key, &notes);
    let said = said.iter().filter_map(|vkey| vkey.parse::<LogKey>().ok());
    if let Some(other) = said.into_iter().find(|other| other.name() == key.name() && !connected.contains(other)) {
        bail!(
            "the logs of {} were signed by another key ({other}), which did not hand over to the one in --keys: use that one, \
             let it hand over with --hand-over, or, if it is lost, start with --new-log",
            key.name()
        );
    }
    Ok(())
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let keys = KeyFiles::of_log(&args.keys);
    if let Some(host) = args.new_key {
        let key: LogSigner = keys.make::<Log>(host.parse().context("--new-key")?)?;
        say!("{}", key.verifier())?;
        return Ok(());
    }
    if !keys.exist() {
        bail!("there is no key in {}: make one with `orgstream sign --new-key HOST`", args.keys.display());
    }
    if args.hand_over {
        say!("{}", keys.hand_over()?.verifier())?;
        return Ok(());
    }
    let key = keys.load::<Log>()?;
    let db = SigningDatabase::connect(&args.database.options(4)).await.with_context(|| args.database.silent())?;
    node::refuse(&db.preflight().await.context("PostgreSQL could not be looked at")?)?;
    if !args.new_log {
        refuse_another(&db, key.verifier(), &keys.handovers()?).await?;
    }
    let pace = Pace { events: args.sign_events.max(1), wait: Duration::from_secs(args.sign_seconds.max(1)) };
    let signer = Signer::new(db, key, &witnesses(args.witnesses.as_ref())?, pace)?.after(&keys.handovers()?);
    let metrics = telemetry::metrics(&[Process::Signer])?;
    let stop = node::stop_when_asked()?;
    let listener = node::listen(&args.http).await?;
    tracing::info!(address = %listener.local_addr()?, "signing; /healthz and /metrics answer");
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { metrics.render() }));
    let probes = tokio::spawn(
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future(),
    );
    signer.run(stop).await;
    Ok(probes.await??)
}
