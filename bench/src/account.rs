//! `orgstream bench account`: reservations and settlements of one organization's account, each on disk before it is answered,
//! against a row of PostgreSQL that all callers update, and against callers who read, append and begin again on a conflict.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use orgstream::{
    adapters::dns::SystemDns,
    auth::Authenticator,
    client::Api,
    commands::{
        account_peers::AccountPeers,
        handler::CommandHandler,
        request::{Accepted, Caller, Request},
    },
    config::ClientArgs,
    peers,
    terminal::{out::say, table::table},
};
use orgstream_domain::{
    ChangeLimits, Command,
    account::{CreditAccount, ReserveUsage, SettleHold},
    credentials::key::Pepper,
};
use orgstream_events::{AggregateId, Amount, OrgId, RecordId};
use orgstream_stream::{AppendError, Log, Placement};
use reqwest::Method;
use serde::Serialize;
use serde_json::json;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    load::{self, Measured},
    rig::Rig,
    warn_of_debug_build, write_json,
};

/// Open holds of an account at the same time: further callers wait for one.
const HOLDS: usize = 1_000;
/// Connections to PostgreSQL, for the baseline.
const CONNECTIONS: u32 = 25;
/// Processes at the same time, in the row of several.
const PROCESSES: usize = 4;
/// That row.
const SEVERAL: &str = "library x4";
/// Callers beside which another organization's appends are measured.
const BESIDE: usize = 200;
/// How long processes may take to know each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// Accounts: reservations and settlements of one busy organization.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// How long each row is measured, in seconds.
    #[arg(long, default_value_t = 4, value_name = "S")]
    seconds: u64,
    /// Callers at the same time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 20, 200, 2_000], value_name = "N,…")]
    callers: Vec<usize>,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    path: &'static str,
    callers: usize,
    pairs_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Row {
    fn new(path: &'static str, callers: usize, measured: Measured) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (p50_ms, p99_ms) = (ms(measured.p50), ms(measured.p99));
        Self { path, callers, pairs_per_second: measured.rate, p50_ms, p99_ms }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let time = Duration::from_secs(args.seconds.max(1));
    // What was answered is on disk.
    let rig = Rig::start(true).await?;
    let bench = Bench::new(&rig).await?;
    let paths = ["postgres", "naive", "library", "http"];
    let bar = ProgressBar::new((args.callers.len() * (paths.len() + 1) + 3) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len}  {msg}")?);
    let mut rows = Vec::new();
    for callers in &args.callers {
        for path in paths {
            bar.set_message(format!("{callers} callers: {path}"));
            let measured = bench.measure(path, *callers, time).await.with_context(|| path.to_owned())?;
            rows.push(Row::new(path, *callers, measured));
            bar.inc(1);
        }
    }
    bar.set_message("another organization");
    let [alone, beside] = bench.another(time).await?;
    bar.inc(2);
    let (commits, cold) = bench.cold_balance().await?;
    bar.inc(1);
    // Last: the API of the run is one of the processes from then on.
    let several = bench.several(&rig.stack.auth).await?;
    for callers in &args.callers {
        bar.set_message(format!("{callers} callers: {SEVERAL}"));
        let measured = bench.library(several.handlers.clone(), *callers, time).await.context(SEVERAL)?;
        rows.push(Row::new(SEVERAL, *callers, measured));
        bar.inc(1);
    }
    several.stop().await?;
    bar.finish_and_clear();
    print(&rows)?;
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    say!("another organization's appends: p99 {} alone, {} beside {BESIDE} callers.", ms(alone), ms(beside))?;
    say!("the balance in a new process, after {commits} commands: {}.", ms(cold))?;
    rig.stop().await?;
    write_json(args.json.as_ref(), &rows)
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let mut table = table(&["path", "callers", "pairs/s", "p50 ms", "p99 ms"], &[1, 2, 3, 4]);
    for row in rows {
        table.add_row([
            row.path.to_owned(),
            row.callers.to_string(),
            format!("{:.0}", row.pairs_per_second),
            format!("{:.1}", row.p50_ms),
            format!("{:.1}", row.p99_ms),
        ]);
    }
    say!("{}", table.trim_fmt())?;
    say!(
        "a pair is a reservation and its settlement, p50 and p99 are of both. postgres: two updates of one row, {CONNECTIONS} connections; \
         naive: two appends, each after a read of the last sequence, and again on a conflict; library x4: through {PROCESSES} processes of \
         five, of which one serves the account."
    )?;
    Ok(())
}

struct Bench {
    log: Log,
    placement: Placement,
    pool: PgPool,
    api: Api,
    handler: Arc<CommandHandler>,
    commands: Arc<AtomicU64>,
}

/// Handlers that send the commands of an account to one of them, as processes do.
struct Several {
    handlers: Vec<Arc<CommandHandler>>,
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Several {
    async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

fn handler(log: &Log) -> anyhow::Result<CommandHandler> {
    let pepper = Pepper::new(b"a pepper that is long enough for this").context("a pepper")?;
    Ok(CommandHandler::new(log.clone(), pepper, "local".to_owned(), Arc::new(SystemDns)))
}

async fn send(handler: &CommandHandler, org: OrgId, command: impl Into<Command>) -> anyhow::Result<Accepted> {
    let mut request = Request::from(command.into());
    request.idempotency_key = Some(format!("bench-{:032x}", rand::random::<u128>()));
    Ok(handler.handle(&Caller::program(org, "bench"), request).await?)
}

impl Bench {
    async fn new(rig: &Rig) -> anyhow::Result<Self> {
        let (log, placement) = (rig.log().clone(), rig.placement().await?);
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&rig.stack.owner_url).await?;
        sqlx::query("CREATE TABLE hot_row (available bigint NOT NULL, held bigint NOT NULL, spent bigint NOT NULL)")
            .execute(&pool)
            .await?;
        sqlx::query("INSERT INTO hot_row VALUES (9000000000000000, 0, 0)").execute(&pool).await?;
        let handler = Arc::new(handler(&log)?);
        let limits = ChangeLimits {
            commands_per_second: 1_000_000.try_into().ok(),
            concurrency: (HOLDS as u32).try_into().ok(),
            ..ChangeLimits::default()
        };
        send(&handler, rig.org, limits).await?;
        let reason = "for the benchmark".to_owned();
        let credit = CreditAccount { meter: "ecu".parse()?, amount: "1000000000".parse()?, expires_at: None, reason };
        send(&handler, rig.org, credit).await?;
        let args =
            ClientArgs { url: rig.stack.base_url.clone(), api_key: Some(rig.api_key.clone().into()), session: None };
        Ok(Self { log, placement, pool, api: Api::new(&args)?, handler, commands: Arc::default() })
    }

    /// Starts the processes, and waits until they know each other and the API of the run.
    async fn several(&self, auth: &Arc<Authenticator>) -> anyhow::Result<Several> {
        let mut several = Several { handlers: Vec::new(), tasks: JoinSet::new(), stop: CancellationToken::new() };
        let mut known = Vec::new();
        for _ in 0..PROCESSES {
            let (announcer, peers) = peers::alone();
            let accounts = AccountPeers::new(self.log.clone(), peers.clone());
            let handler = Arc::new(handler(&self.log)?.with_account_peers(Arc::new(accounts)));
            let (client, stop) = (self.log.client().clone(), several.stop.clone());
            several.tasks.spawn(async move { Ok(announcer.run(client, stop).await?) });
            let (serving, auth, stop) = (Arc::clone(&handler), Arc::clone(auth), several.stop.clone());
            several.tasks.spawn(async move { Ok(serving.serve_accounts(&auth, stop).await?) });
            several.handlers.push(handler);
            known.push(peers);
        }
        for peers in known {
            timeout(PATIENCE, peers.counted(PROCESSES as u32 + 1))
                .await
                .context("the processes do not hear each other")?;
        }
        Ok(several)
    }

    async fn measure(&self, path: &str, callers: usize, time: Duration) -> anyhow::Result<Measured> {
        match path {
            "postgres" => self.postgres(callers, time).await,
            "naive" => self.naive(callers, time).await,
            "library" => self.library(vec![Arc::clone(&self.handler)], callers, time).await,
            _ => self.http(callers, time).await,
        }
    }

    /// Two updates of one row, each on disk before the next.
    async fn postgres(&self, callers: usize, time: Duration) -> anyhow::Result<Measured> {
        let pool = self.pool.clone();
        load::drive(callers, time, move |_| {
            let pool = pool.clone();
            async move {
                let reserve =
                    "UPDATE hot_row SET available = available - 700, held = held + 700 WHERE available >= 700";
                let settle = "UPDATE hot_row SET held = held - 700, spent = spent + 400, available = available + 300";
                for update in [reserve, settle] {
                    if sqlx::query(update).execute(&pool).await?.rows_affected() != 1 {
                        bail!("the row is not what it was");
                    }
                }
                Ok(1)
            }
        })
        .await
    }

    /// Two appends to one aggregate, each with the sequence that was read before it.
    async fn naive(&self, callers: usize, time: Duration) -> anyhow::Result<Measured> {
        let aggregate = AggregateId::Record(RecordId::from_uuid(uuid::Uuid::now_v7()));
        let (shared, ended) =
            (Arc::new((self.log.clone(), self.placement.clone(), aggregate)), Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&ended);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(time).await;
            end.store(true, Ordering::Relaxed);
        });
        let measured = load::drive(callers, time, move |number| {
            let (shared, ended) = (Arc::clone(&shared), Arc::clone(&ended));
            async move {
                let (log, placement, aggregate) = &*shared;
                for _ in 0..2 {
                    loop {
                        let seq = log.end_of_history(placement, aggregate).await?;
                        let commit = load::searched_commit_on(
                            placement.org,
                            aggregate.clone(),
                            "webhook".parse()?,
                            load::data(number),
                            Vec::new(),
                        )?;
                        match log.append(placement, &commit, seq, None).await {
                            Ok(_) => break,
                            // Its time is over, and it has not had its turn.
                            Err(AppendError::Conflict { .. }) if ended.load(Ordering::Relaxed) => return Ok(0),
                            Err(AppendError::Conflict { .. }) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                Ok(1)
            }
        })
        .await;
        timer.await?;
        measured
    }

    async fn library(
        &self,
        handlers: Vec<Arc<CommandHandler>>,
        callers: usize,
        time: Duration,
    ) -> anyhow::Result<Measured> {
        let (org, commands, places) = (self.placement.org, Arc::clone(&self.commands), Arc::new(Semaphore::new(HOLDS)));
        let measured = load::drive(callers, time, move |number| {
            let handler = handlers.get(number as usize % handlers.len().max(1)).cloned();
            let (commands, places) = (Arc::clone(&commands), Arc::clone(&places));
            async move {
                let _place = places.acquire().await?;
                pair(&*handler.context("a process")?, org).await?;
                commands.fetch_add(2, Ordering::Relaxed);
                Ok(1)
            }
        });
        measured.await
    }

    async fn http(&self, callers: usize, time: Duration) -> anyhow::Result<Measured> {
        let (api, commands, places) = (self.api.clone(), Arc::clone(&self.commands), Arc::new(Semaphore::new(HOLDS)));
        let path = format!("/v1/organizations/{}/commands", self.placement.org);
        let measured = load::drive(callers, time, move |_| {
            let (api, path, commands, places) = (api.clone(), path.clone(), Arc::clone(&commands), Arc::clone(&places));
            async move {
                let _place = places.acquire().await?;
                let post = |body: serde_json::Value| {
                    let key = format!("bench-{:032x}", rand::random::<u128>());
                    api.send(api.request(Method::POST, &path).header("Idempotency-Key", key).json(&body))
                };
                let reserve = json!({"type": "reserve_usage", "meter": "ecu", "amount": "0.0007"});
                let reserved: serde_json::Value = post(reserve).await?.json().await?;
                let hold = reserved.get("hold").context("a hold")?;
                post(json!({"type": "settle_hold", "hold": hold, "amount": "0.0004"})).await?;
                commands.fetch_add(2, Ordering::Relaxed);
                Ok(1)
            }
        });
        measured.await
    }

    /// The 99th percentile of another organization's appends, alone and beside many callers of the account.
    async fn another(&self, time: Duration) -> anyhow::Result<[Duration; 2]> {
        let org = OrgId::fresh(0, rand::random());
        let placement = self.log.place(org).await?;
        let appends = async || {
            let shared = Arc::new((self.log.clone(), placement.clone()));
            load::drive(1, time, move |number| {
                let shared = Arc::clone(&shared);
                async move {
                    let (log, placement) = &*shared;
                    log.append(placement, &load::commit(placement.org, number)?, 0, None).await?;
                    Ok(1)
                }
            })
            .await
        };
        let alone = appends().await?.p99;
        let (beside, busy) = tokio::join!(appends(), self.library(vec![Arc::clone(&self.handler)], BESIDE, time));
        busy?;
        Ok([alone, beside?.p99])
    }

    /// The time to the balance in a process that has just started, and the number of commands so far.
    async fn cold_balance(&self) -> anyhow::Result<(u64, Duration)> {
        let mut times = Vec::new();
        for _ in 0..5 {
            let handler = handler(&self.log)?;
            let begun = Instant::now();
            let state = handler.account_of(self.placement.org).await?.context("the account")?;
            times.push(begun.elapsed());
            if state.position.seq == 0 {
                bail!("nothing was used");
            }
        }
        times.sort_unstable();
        Ok((self.commands.load(Ordering::Relaxed), times.get(2).copied().unwrap_or_default()))
    }
}

/// Reserves and settles.
async fn pair(handler: &CommandHandler, org: OrgId) -> anyhow::Result<()> {
    let amount = |text: &str| text.parse::<Amount>().context("an amount");
    let meter = "ecu".parse()?;
    let reserve = ReserveUsage { meter, amount: amount("0.0007")?, seconds: None, kind: None, model: None };
    let hold = send(handler, org, reserve).await?.hold.context("a hold")?;
    send(handler, org, SettleHold { hold, amount: amount("0.0004")? }).await?;
    Ok(())
}
