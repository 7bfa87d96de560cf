//! `orgstream bench fairness`: the effect of one organization on the others.
//!
//! Quiet organizations send events at random times, at a fixed share of the machine's capacity. Their lag, from the
//! time an event was due until all pipelines have committed it, is measured alone and then during a disturbance: a
//! burst, a slow or poisoned neighbour, a crash, a rebuild. The database itself reports when a row was committed. Two
//! baselines go through the same in the same run: one queue for all, and turns of a hundred messages each.

mod load;
mod measure;
mod outages;
mod picture;
mod rig;
mod scenarios;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    measure::median,
    rig::{Rig, WorkerSetup},
    scenarios::{Crowd, Row, Trial, Trouble},
};
use orgstream::terminal::{
    out::{note, say},
    table::table,
};
use orgstream_stream::broker::AccessFiles;

use crate::{warn_of_autogroup, warn_of_debug_build, write_json};

/// Fairness: what quiet organizations notice of a neighbour's burst, against one queue and against turns by count.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// About two minutes: the burst, among 100 organizations, once.
    #[arg(long)]
    short: bool,
    /// Which scenarios, all by default. F1: a burst of one organization. F2: one sends ten times its share, for a while.
    /// F3: a burst of one in twenty. F4: events that take five seconds each. F5: an event that always fails. F6: events of
    /// nearly a megabyte. F10: a worker with a backlog is killed and started again. F11: one of four workers is killed.
    /// F12: all read models are built again. F17: what organizations cost at rest, and a restart of the log's server.
    #[arg(long, value_delimiter = ',', value_name = "F1,…")]
    scenarios: Vec<String>,
    /// Sizes of the crowd of quiet organizations.
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    orgs: Vec<usize>,
    /// How often each trial is repeated, each time with another seed.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Events of the burst.
    #[arg(long, default_value_t = 40_000, value_name = "N")]
    events: usize,
    /// Events of the backlog of F10.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    backlog: usize,
    /// Seconds that F2 goes on for.
    #[arg(long, default_value_t = 60, value_name = "S")]
    sustained: u64,
    /// The quiet load, as a share of what the machine can do.
    #[arg(long, default_value_t = 0.3, value_name = "SHARE")]
    load: f64,
    /// The quiet load in events per second instead, so that two runs can be compared: what a machine can do is a different
    /// figure each time it is measured.
    #[arg(long, conflicts_with = "load", value_name = "N")]
    rate: Option<f64>,
    /// Seconds of quiet load that are measured alone.
    #[arg(long, default_value_t = 10, value_name = "S")]
    idle: u64,
    /// Transactions of a worker at the same time.
    #[arg(long, default_value_t = 4, value_name = "N")]
    slots: usize,
    /// Who is measured: fair is the product, fifo one queue for all, rr100 turns of a hundred messages each. held, which
    /// is only for F1 and F3, is the product that leaves the burst in the log: what others notice then is not the scheduler's.
    #[arg(long, value_delimiter = ',', default_value = "fair,fifo,rr100", value_name = "POLICY,…")]
    policies: Vec<String>,
    /// More flags of `orgstream work` for the workers, in one argument.
    #[arg(long, default_value = "", allow_hyphen_values = true, value_name = "FLAGS")]
    work: String,
    /// Your NATS server, in place of a private one.
    #[arg(long, value_name = "URL", requires = "database_url")]
    nats_url: Option<String>,
    /// The folder that `orgstream nats init` made for it; without it, the server must accept any client.
    #[arg(long, value_name = "DIR", requires = "nats_url")]
    nats_access: Option<PathBuf>,
    /// Your database, migrated, on a server with `track_commit_timestamp = on`.
    #[arg(long, value_name = "URL", requires = "nats_url")]
    database_url: Option<String>,
    /// The password of its logins.
    #[arg(long, env = "ORGSTREAM_DATABASE_PASSWORD", hide_env_values = true, value_name = "TEXT")]
    database_password: Option<String>,
    /// The commit keys of your installation.
    #[arg(long, env = "ORGSTREAM_COMMIT_KEYS", hide_env_values = true, value_name = "KEYS")]
    commit_keys: Option<String>,
    /// Where the picture of the burst goes.
    #[arg(long, default_value = "fairness.svg", value_name = "FILE")]
    svg: PathBuf,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The product's name in the report, and the policy given to its workers.
const POLICIES: [(&str, &str); 4] = [("orgstream", "fair"), ("fifo", "fifo"), ("rr100", "rr100"), (HELD, HELD)];
/// The policy under which nothing of a burst is applied while it is measured.
const HELD: &str = "held";
const BURSTS: [&str; 2] = ["F1", "F3"];

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    warn_of_autogroup();
    let mut rig = match (&args.nats_url, &args.database_url) {
        (Some(nats), Some(database)) => {
            let access = args.nats_access.as_deref().map(AccessFiles::at);
            let keys =
                args.commit_keys.clone().context("--commit-keys says what vouches for the events in your log")?;
            Rig::yours(nats.clone(), access, database.clone(), args.database_password.clone(), keys).await?
        }
        _ => Rig::start().await?,
    };
    let rows = suite(&mut rig, &args).await;
    rig.stop(rows.is_ok()).await;
    let rows = rows?;
    print(&rows)?;
    if let Some(picture) = picture::draw(&rows) {
        std::fs::write(&args.svg, picture)?;
        say!("the picture of the burst is in {}", args.svg.display())?;
    }
    write_json(args.json.as_ref(), &rows)
}

async fn suite(rig: &mut Rig, args: &Args) -> anyhow::Result<Vec<Row>> {
    let sizes = match (args.orgs.as_slice(), args.short) {
        ([], true) => vec![100],
        ([], false) => vec![2, 100, 1_000, 10_000],
        (sizes, _) => sizes.to_vec(),
    };
    let seeds = args.seeds.unwrap_or(if args.short { 1 } else { 5 }).max(1);
    if args.rate.unwrap_or(args.load) <= 0.0 {
        bail!("--rate, --load: without a quiet load there is no neighbour to measure; give more than 0");
    }
    let mut policies = Vec::new();
    for wanted in &args.policies {
        match POLICIES.iter().find(|(name, flag)| wanted == name || wanted == flag) {
            Some(policy) => policies.push(*policy),
            None => bail!("--policies: there is no {wanted:?}; there are fair, fifo, rr100 and held"),
        }
    }
    let scenarios = chosen(args)?;
    // The baselines differ in the order of serving; a kill, or a rebuild, is the same for all of them.
    let measured = |scenario: &str, policy: &str| match policy {
        "orgstream" => true,
        HELD => BURSTS.contains(&scenario),
        _ => !ALONE.contains(&scenario),
    };
    let of_scenario = |scenario| policies.iter().filter(|(policy, _)| measured(scenario, policy)).count();
    let trials = seeds * scenarios.iter().map(|scenario| of_scenario(scenario)).sum::<usize>() as u64;
    let progress = Progress::new(sizes.len() as u64 * (1 + trials));
    let mut rows = Vec::new();
    for orgs in sizes {
        progress.begin(format!("{orgs} organizations: what this machine can do"));
        let crowd = crowd(rig, args, orgs).await?;
        progress.end(&format!(
            "{orgs} organizations: {:.0} events/s at most, {:.0}/s are quiet load; the burst takes {:.1} s at best",
            crowd.capacity, crowd.rate, crowd.best_drain
        ));
        for scenario in &scenarios {
            for seed in 1..=seeds {
                for (policy, flag) in policies.iter().filter(|(policy, _)| measured(scenario, policy)) {
                    progress.begin(format!("{orgs} organizations: {scenario}, {policy}, seed {seed}"));
                    let trial = Trial {
                        scenario,
                        policy,
                        seed,
                        workers: vec![setup(args, flag)],
                        idle: Duration::from_secs(args.idle),
                        crowd,
                    };
                    let row = one(rig, &trial, args).await?;
                    progress.end(&format!("{scenario} {policy:9} {orgs:6} organizations, seed {seed}: {}", row.gist()));
                    rows.push(row);
                }
            }
        }
    }
    progress.bar.finish_and_clear();
    Ok(rows)
}

/// The scenarios, as `--help` explains them.
const SCENARIOS: [&str; 10] = ["F1", "F2", "F3", "F4", "F5", "F6", "F10", "F11", "F12", "F17"];
const ALONE: [&str; 4] = ["F10", "F11", "F12", "F17"];

fn chosen(args: &Args) -> anyhow::Result<Vec<&'static str>> {
    if args.scenarios.is_empty() {
        return Ok(SCENARIOS.into_iter().take(if args.short { 1 } else { usize::MAX }).collect());
    }
    let known = |wanted: &String| SCENARIOS.into_iter().find(|name| name.eq_ignore_ascii_case(wanted));
    args.scenarios
        .iter()
        .map(|wanted| known(wanted).with_context(|| format!("--scenarios: there is no {wanted:?}; see --help")))
        .collect()
}

async fn one(rig: &mut Rig, trial: &Trial, args: &Args) -> anyhow::Result<Row> {
    match trial.scenario {
        "F2" => scenarios::sustained(rig, trial, Duration::from_secs(args.sustained)).await,
        "F3" => scenarios::burst(rig, trial, (trial.crowd.orgs / 20).max(2), args.events).await,
        "F4" => scenarios::neighbour(rig, trial, Trouble::Slow).await,
        "F5" => scenarios::neighbour(rig, trial, Trouble::Poison).await,
        "F6" => scenarios::neighbour(rig, trial, Trouble::Huge).await,
        "F10" => outages::restart(rig, trial, args.backlog).await,
        "F11" => outages::lost_worker(rig, trial).await,
        "F12" => scenarios::rebuild(rig, trial, args.events).await,
        "F17" => outages::at_rest(rig, trial).await,
        _ => scenarios::burst(rig, trial, 1, args.events).await,
    }
}

/// The progress, as a bar on a terminal and as lines elsewhere.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed}  {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    fn begin(&self, what: String) {
        self.bar.set_message(what);
    }

    fn end(&self, result: &str) {
        self.bar.suspend(|| note!("{result}"));
        self.bar.inc(1);
    }
}

fn setup(args: &Args, policy: &'static str) -> WorkerSetup {
    let flags = args.work.split_whitespace().map(str::to_owned).collect();
    WorkerSetup { policy, number: 1, slots: args.slots, flags }
}

async fn crowd(rig: &mut Rig, args: &Args, orgs: usize) -> anyhow::Result<Crowd> {
    let fair = setup(args, "fair");
    let capacity = scenarios::capacity(rig, &fair, orgs).await?;
    let rate = args.rate.unwrap_or(capacity * args.load);
    let best_drain = scenarios::best_drain(rig, &fair, orgs, rate, args.events).await?;
    Ok(Crowd { orgs, capacity, rate, best_drain })
}

/// Rows of the same scenario, policy and crowd, in the order of the first of each.
fn cases(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut cases: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        let key = |row: &Row| (row.scenario, row.policy, row.orgs);
        match cases.iter_mut().find(|case| case.first().is_some_and(|first| key(first) == key(row))) {
            Some(case) => case.push(row),
            None => cases.push(vec![row]),
        }
    }
    cases
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let head = [
        "scenario",
        "policy",
        "orgs",
        "seeds",
        "p99 idle",
        "p99 burst",
        "IR99",
        "worst",
        "IRmax",
        "drain",
        "Jain",
        "starved",
        "lost",
        "twice",
        "unordered",
        "RSS",
    ];
    let mut figures = table(&head, &(2..head.len()).collect::<Vec<_>>());
    let mut others = table(&["scenario", "policy", "orgs", "figure", "median", "worst"], &[2, 4, 5]);
    for case in cases(rows) {
        let Some(first) = case.first() else { continue };
        let name = [first.scenario.to_owned(), first.policy.to_owned(), first.orgs.to_string()];
        // A scenario omits a figure that no seed has a value of.
        let of = |digits: usize, unit: &str, figure: &dyn Fn(&Row) -> f64| {
            let value = median(case.iter().map(|row| figure(row)).collect());
            if value.is_finite() { format!("{value:.digits$}{unit}") } else { "-".to_owned() }
        };
        let sum = |figure: &dyn Fn(&Row) -> usize| case.iter().map(|row| figure(row)).sum::<usize>().to_string();
        let worst = case.iter().map(|row| row.ir99).fold(f64::NAN, f64::max);
        figures.add_row(name.iter().cloned().chain([
            case.len().to_string(),
            of(1, " ms", &|row| row.quiet_p99_idle_ms),
            of(1, " ms", &|row| row.quiet_p99_burst_ms),
            of(2, "", &|row| row.ir99),
            of(2, "", &|_| worst),
            of(2, "", &|row| row.ir_max),
            of(2, "", &|row| row.drain_efficiency.unwrap_or(f64::NAN)),
            of(2, "", &|row| row.jain.unwrap_or(f64::NAN)),
            of(0, " ms", &|row| row.max_starved_ms),
            sum(&|row| row.lost),
            sum(&|row| row.duplicated),
            sum(&|row| row.reordered),
            of(0, " MB", &|row| row.rss_mb),
        ]));
        for figure in first.figures.keys() {
            let values: Vec<f64> = case.iter().filter_map(|row| row.figures.get(figure).copied()).collect();
            let worst = values.iter().copied().fold(f64::NAN, f64::max);
            let [scenario, policy, orgs] = &name;
            let values = [format!("{:.2}", median(values)), format!("{worst:.2}")];
            let [median, worst] = values;
            others.add_row([scenario, policy, orgs, &figure.replace('_', " "), &median, &worst]);
        }
    }
    say!("{}", figures.trim_fmt())?;
    say!(
        "medians over seeds. IR99: the quiet organizations' p99 lag during the burst against the same without it; drain: the \
         time that the burst takes when it is spread over 8 organizations against the time it took.\n"
    )?;
    say!("{}", others.trim_fmt())?;
    Ok(())
}
