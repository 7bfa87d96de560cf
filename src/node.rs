//! The parts of a running program, put together once they were looked at.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use orgstream_events::{Actor, ActorType, PLATFORM_ORG, Role};
use orgstream_projections::Database;
use orgstream_stream::{Log, SyncMode};

use crate::{
    commands::{
        Command,
        handler::{Caller, CommandError, CommandHandler, Request},
    },
    config::{DatabaseArgs, NatsArgs},
    kinds::default_kinds,
};

/// How long servers that are still starting are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// The log, with its streams there and as they must be; or every finding, one line each.
pub async fn open_log(nats: &NatsArgs) -> anyhow::Result<Log> {
    let log = patiently("NATS", || connect_log(nats)).await?;
    let mut findings = log.ensure_streams().await.context("the streams could not be made")?;
    findings.extend(preflight_log(&log, nats).await?);
    refuse(&findings)?;
    Ok(log)
}

/// Connects, and looks which way of appending suits the server.
pub async fn connect_log(nats: &NatsArgs) -> anyhow::Result<Log> {
    let sync = match &nats.nats_monitor_url {
        Some(url) if syncs_always(url).await? => SyncMode::Durable,
        _ => SyncMode::Relaxed,
    };
    Log::connect(&nats.log_options(sync)).await.with_context(|| format!("NATS at {} does not answer", nats.nats_url))
}

/// What is wrong with the NATS side.
pub async fn preflight_log(log: &Log, nats: &NatsArgs) -> anyhow::Result<Vec<orgstream_stream::Finding>> {
    let monitor = nats.nats_monitor_url.as_deref();
    orgstream_stream::preflight(log, monitor, nats.allow_unsafe_sync).await.context("NATS could not be looked at")
}

/// The database, migrated and safe to use; or every finding, one line each.
pub async fn open_database(database: &DatabaseArgs, slots: usize) -> anyhow::Result<Database> {
    let db = patiently("PostgreSQL", || async {
        Database::connect(&database.options(slots)).await.context("PostgreSQL does not answer")
    })
    .await?;
    refuse(&db.preflight().await.context("PostgreSQL could not be looked at")?)?;
    Ok(db)
}

/// Registers the kinds of records that every installation begins with. Doing it again changes nothing.
pub async fn register_default_kinds(handler: &CommandHandler) -> anyhow::Result<()> {
    let caller = Caller {
        org: PLATFORM_ORG,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        role: Role::Owner,
        creator: None,
        context: Default::default(),
        request_id: None,
        trace: None,
    };
    for kind in default_kinds()? {
        let name = kind.name.clone();
        match handler.handle(&caller, Request::from(Command::RegisterKind(kind))).await {
            Ok(_) => {}
            // An operator may have changed it since, and that is what counts.
            Err(CommandError::Rejected(rejection)) if rejection.code == "kind_exists" => {}
            Err(error) => return Err(error).with_context(|| format!("the kind {name} could not be registered")),
        }
    }
    Ok(())
}

/// Ends when the process is asked to: Ctrl-C or SIGTERM.
pub async fn asked_to_stop() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn refuse(findings: &[impl Display]) -> anyhow::Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = findings.iter().map(|finding| format!("  {finding}")).collect();
    bail!("this cannot be started safely:\n{}", lines.join("\n"))
}

/// Whether the server syncs every write before it acknowledges it.
async fn syncs_always(monitor: &str) -> anyhow::Result<bool> {
    let url = format!("{}/jsz?config=true", monitor.trim_end_matches('/'));
    let answer: serde_json::Value = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()?
        .get(&url)
        .send()
        .await
        .with_context(|| format!("the monitoring address {monitor} does not answer"))?
        .json()
        .await?;
    Ok(answer.pointer("/config/sync_always").and_then(serde_json::Value::as_bool).unwrap_or_default())
}

/// Tries until it works or [`PATIENCE`] is over: servers that are started together come up in any order.
async fn patiently<T, F: Future<Output = anyhow::Result<T>>>(what: &str, attempt: impl Fn() -> F) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match attempt().await {
            Ok(part) => return Ok(part),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(error) => {
                if !told {
                    tracing::info!("waiting for {what}: {error:#}");
                    told = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
