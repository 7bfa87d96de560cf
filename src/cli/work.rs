//! `orgstream work`: a worker process.

use orgstream_workers::Worker;

use crate::{
    api::http::platform::health,
    config::{DatabaseArgs, NatsArgs, SearchArgs, WorkArgs},
    jobs::{Failing, Jobs},
    process as node,
    telemetry::{self, metrics::Process},
};

/// Run a worker: read the streams, build the read models and the audit log.
///
/// Any number of workers share the work by leases; one that dies is replaced by the others within --lease-seconds.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    work: WorkArgs,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "ORGSTREAM_WORKER_HTTP", default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    http: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let options = args.work.options()?;
    let targets = args.search.targets()?;
    let stop = node::stop_when_asked()?;
    let metrics = telemetry::metrics(&[Process::Worker])?;
    let opening = async {
        let db = node::open_database(&args.database, args.work.slots).await?.searching(targets);
        Ok((node::open_log_for_work(&args.nats, &db).await?, db))
    };
    let Some((log, db)) = node::unless_asked(&stop, opening).await? else { return Ok(()) };
    let failing = Failing::default();
    let jobs = Jobs::start(vec![node::watch_history(&log, &db)], &failing, &stop);
    let worker = Worker::new(log.clone(), db.clone(), options);
    let listener = node::listen(&args.http).await?;
    tracing::info!(address = %listener.local_addr()?, "the worker answers /readyz and /metrics");
    let probes =
        tokio::spawn(health::serve_worker(listener, log, db, (worker.status(), failing), metrics, stop.clone()));
    let working = tokio::spawn(worker.run(stop.clone()));
    working.await?;
    jobs.ended().await;
    probes.await??;
    Ok(())
}
