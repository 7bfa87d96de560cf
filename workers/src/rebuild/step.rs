//! One step of a job: a transaction that drops some rows, applies some events, or activates another version.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use orgstream_events::EventSubject;
use orgstream_projections::{
    Applied, ApplyTx, BatchClass, BoundOrg, Comparison, Database, DbError, Rebuild, RebuildJob, RebuildState, Step,
    audit::{self, KeysOf, LogChecking},
    parked::{self, ParkedState},
};

use super::{Memory, StepError, StepOutcome};
use crate::batch::{Pass, ToPark, decisions};

/// Events between a version and the active one, up to which the last of them are applied while the org's batches wait.
const GAP: u32 = 500;
/// Events that a step checks at least: hashing them takes less than applying them.
const LEAST_CHECKED: u32 = 500;
/// The longest wait for the audit log while the org's batches wait, and the pause between two looks at it.
const CATCH_UP: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(5);
/// Differences of an altered audit log that are reported.
const TOLD: usize = 5;
/// Bytes of events in one step, beyond the first commit.
const BYTES: u32 = 4 << 20;

/// Runs the next step of the job. `size` is the limit on its events or rows.
pub(crate) async fn run(
    db: &Database,
    known: &Rebuild,
    epoch: u64,
    size: u32,
    timeout: Duration,
    memory: Memory,
) -> Result<StepOutcome, StepError> {
    if known.state == RebuildState::Comparing {
        return compare(db, known, epoch, size, timeout, memory.comparison).await;
    }
    let mut tx = db.begin_batches(BatchClass::Backlog, timeout).await?;
    let Some(step) = tx.open_step(known, epoch).await? else { return Ok(StepOutcome::Gone) };
    match step.rebuild.state {
        RebuildState::Clearing | RebuildState::Dropping => delete(tx, step.rebuild, size).await,
        RebuildState::Building => build(db, tx, step, epoch, size, memory).await,
        RebuildState::Comparing | RebuildState::Done | RebuildState::Failed => Ok(StepOutcome::Gone),
    }
}

/// Deletes some rows of a version that is not needed.
async fn delete(mut tx: ApplyTx, mut rebuild: Rebuild, size: u32) -> Result<StepOutcome, StepError> {
    match tx.superfluous_versions(&rebuild).await?.first() {
        Some(version) => {
            tx.drop_version(rebuild.bound(), *version, size).await?;
        }
        None if rebuild.state == RebuildState::Clearing => {
            tx.create_version().await?;
            rebuild.state = RebuildState::Building;
        }
        None => rebuild.state = RebuildState::Done,
    }
    keep(tx, rebuild, 0).await
}

/// Applies some events to the version; when few are missing, checks the audit log that they came from, applies the
/// others, and then activates it.
async fn build(
    db: &Database,
    mut tx: ApplyTx,
    mut step: Step,
    epoch: u64,
    size: u32,
    mut memory: Memory,
) -> Result<StepOutcome, StepError> {
    let org = step.rebuild.bound();
    // Under steady writes the audit log is at no look as far as the rows, which go on as well: it is near if it has come as far as
    // they were a step ago.
    let is_audited = step.audited >= memory.shown.replace(step.shown).unwrap_or(step.shown).min(step.shown);
    let is_last = is_audited && tx.count_events(org, step.reached, step.shown, GAP + 1).await? <= GAP;
    if is_last && step.unaudited == 0 {
        let checking = memory.checking.get_or_insert_default();
        if !checking.go_on(&mut db.read(org).await?, size.max(LEAST_CHECKED)).await? {
            // Keeps the progress visible to clients that wait for the job.
            return keep_with(tx, step.rebuild, memory, 0).await;
        }
    }
    if is_last {
        // From here on no batch of the org is running, until this ends.
        tx.hold_shown(org).await?;
        step = tx.look_again(&step.rebuild).await?;
        // The audit log goes on meanwhile, so it catches up.
        let until = Instant::now() + CATCH_UP;
        while step.audited < step.shown && step.unaudited == 0 && Instant::now() < until {
            tokio::time::sleep(POLL).await;
            step = tx.look_again(&step.rebuild).await?;
        }
    }
    if step.unaudited > 0 {
        return Err(StepError::Hindered(format!(
            "the audit log lacks {} messages that its pipeline has parked, so nothing can be built from it: see \
             `orgstream park list`, decide about them, and ask again",
            step.unaudited
        )));
    }
    let upto = step.shown.min(step.audited);
    let (events, reached) = match is_last {
        true if step.audited < step.shown => return Ok(StepOutcome::Waits(memory)),
        true => apply(&mut tx, &step, upto, GAP + 1).await?,
        false => apply(&mut tx, &step, upto, size).await?,
    };
    if events == 0 && reached == step.reached && !(is_last && reached == step.shown) {
        return Ok(StepOutcome::Waits(memory));
    }
    tx.send().await?;
    tx.move_version(&step.rebuild, epoch, reached).await?;
    let mut rebuild = step.rebuild;
    rebuild.reached = reached;
    rebuild.events += events;
    if is_last && reached == step.shown {
        if let Some(seq) = tx.given_up_by_audit(org).await? {
            return Err(StepError::Hindered(format!(
                "the audit pipeline gave up message {seq}, so what is built from the audit log lacks it"
            )));
        }
        // A version is activated, or compared, only if its events are those that were signed.
        if !is_as_appended(db, org, memory.checking.take()).await? {
            return Ok(StepOutcome::Waits(memory));
        }
        rebuild.state = match rebuild.job {
            RebuildJob::Verify => RebuildState::Comparing,
            RebuildJob::Build | RebuildJob::RollBack | RebuildJob::Drop => {
                rebuild.previous = Some(tx.show_version(&rebuild).await?);
                RebuildState::Done
            }
        };
    }
    keep_with(tx, rebuild, memory, events).await
}

/// Completes the check, and fails unless the audit log is what was appended to it, as far as that can be determined: by
/// the hashes of its events, its tree, and its signed heads. False while none was signed yet with the given key: the
/// signing process does that within seconds.
async fn is_as_appended(db: &Database, org: BoundOrg, checking: Option<Box<LogChecking>>) -> Result<bool, StepError> {
    let (mut checking, mut view) = (checking.unwrap_or_default(), db.read(org).await?);
    while !checking.go_on(&mut view, GAP).await? {}
    let checked = checking.finish(&mut view).await?;
    if !checked.differences.is_empty() {
        let first = checked.differences.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join("; ");
        return Err(StepError::Hindered(format!(
            "the audit log is not what was appended to it, so nothing is built from it: {first}; see \
             `orgstream replay --verify`, which compares all of it with the stream"
        )));
    }
    Ok(checked.keys_of != KeysOf::Pinned || checked.newest.is_some())
}

/// Applies commits after those that the version has, up to `upto`: as many as have about `size` events. Returns the
/// number of events, and the version's new position.
async fn apply(tx: &mut ApplyTx, step: &Step, upto: u64, size: u32) -> Result<(u64, u64), StepError> {
    let (org, shard) = (step.rebuild.bound(), step.rebuild.shard);
    let commits = audit::commits(tx, org, step.reached, upto, (size, BYTES)).await?;
    let events: usize = commits.iter().map(|Applied { commit, .. }| commit.events.len()).sum();
    // Between the last commit and `upto` there may be messages without events: those that were given up.
    let is_all = commits.is_empty() || tx.count_events(org, last(&commits), upto, 1).await? == 0;
    let reached = if is_all { upto.max(step.reached) } else { last(&commits) };
    let blocked = if step.parked { parked::aggregates(tx, org).await? } else { BTreeSet::new() };
    let pipeline = step.rebuild.pipeline;
    let mut pass = Pass::new(tx, org, pipeline, blocked, None);
    let to_park = |applied: &Applied, state: ParkedState, reason: &str, attempts: u32| {
        let message = applied.commit.seal().and_then(|commit| commit.encode().ok()).unwrap_or_default();
        let subject = applied.commit.events.first().map_or_else(String::new, |event| {
            let aggregate = event.header.aggregate.aggregate.clone();
            EventSubject { shard, org: org.org(), aggregate }.to_string()
        });
        let (seq, reason) = (applied.seq, reason.to_owned());
        let (recorded_at, sha256) = (None, None);
        ToPark { seq, subject, message, verified: true, expected: None, state, reason, attempts, recorded_at, sha256 }
    };
    for applied in commits {
        let decided = decisions(applied.seq, &applied.commit, pipeline);
        pass.ready.push(applied);
        for decision in decided {
            settle(&mut pass, &to_park).await?;
            pass.carry_out(&decision).await?;
        }
    }
    settle(&mut pass, &to_park).await?;
    Ok((events as u64, reached))
}

fn last(commits: &[Applied]) -> u64 {
    commits.last().map_or(0, |applied| applied.seq)
}

/// Applies the gathered commits. Those that cannot be applied are parked, with those after them, as a lane would in the
/// end.
async fn settle(
    pass: &mut Pass<'_>,
    to_park: &impl Fn(&Applied, ParkedState, &str, u32) -> ToPark,
) -> Result<(), DbError> {
    let gathered = std::mem::take(&mut pass.ready);
    let mut ready = Vec::with_capacity(gathered.len());
    for applied in gathered {
        let aggregate = aggregate(&applied);
        if pass.blocked.contains(&aggregate) {
            pass.park(&aggregate, to_park(&applied, ParkedState::Waiting, "", 0)).await?;
        } else {
            ready.push(applied);
        }
    }
    if !ready.is_empty() && pass.attempt(&ready).await?.is_err() {
        for applied in ready {
            let aggregate = aggregate(&applied);
            if pass.blocked.contains(&aggregate) {
                pass.park(&aggregate, to_park(&applied, ParkedState::Waiting, "", 0)).await?;
            } else if let Err(reason) = pass.attempt(std::slice::from_ref(&applied)).await? {
                pass.park(&aggregate, to_park(&applied, ParkedState::Failed, &reason, 1)).await?;
            }
        }
    }
    pass.flush().await
}

/// `<type>.<id>`, as in subjects.
fn aggregate(applied: &Applied) -> String {
    applied.commit.events.first().map_or_else(String::new, |event| event.header.aggregate.aggregate.to_string())
}

/// Compares some rows of the version with the active ones, as of the beginning of the comparison.
async fn compare(
    db: &Database,
    known: &Rebuild,
    epoch: u64,
    size: u32,
    timeout: Duration,
    comparison: Option<Box<Comparison>>,
) -> Result<StepOutcome, StepError> {
    let mut begun = match comparison {
        None => Comparison::begin(db, known.bound(), known.pipeline, known.version).await?.map(Box::new),
        under_way => under_way,
    };
    let is_done = match &mut begun {
        Some(comparison) => comparison.go_on(size).await?,
        None => false,
    };
    let mut tx = db.begin_batches(BatchClass::Backlog, timeout).await?;
    let Some(step) = tx.open_step(known, epoch).await? else { return Ok(StepOutcome::Gone) };
    let mut rebuild = step.rebuild;
    match &begun {
        // The active version has advanced since the last event was applied.
        None => rebuild.state = RebuildState::Building,
        Some(comparison) if is_done => {
            comparison.keep(&mut tx, known.bound()).await?;
            rebuild.differences = comparison.differences();
            rebuild.state = RebuildState::Dropping;
        }
        Some(_) => {}
    }
    let memory = Memory { comparison: begun.filter(|_| !is_done), ..Memory::default() };
    tx.keep_step(&rebuild).await?;
    tx.commit().await?;
    Ok(StepOutcome::GoesOn { rebuild, memory, events: 0 })
}

/// Commits the step of a job that keeps no state.
async fn keep(tx: ApplyTx, rebuild: Rebuild, events: u64) -> Result<StepOutcome, StepError> {
    keep_with(tx, rebuild, Memory::default(), events).await
}

/// Commits the step.
async fn keep_with(mut tx: ApplyTx, rebuild: Rebuild, memory: Memory, events: u64) -> Result<StepOutcome, StepError> {
    tx.keep_step(&rebuild).await?;
    tx.commit().await?;
    Ok(match rebuild.state {
        RebuildState::Done => StepOutcome::Done { rebuild, events },
        _ => StepOutcome::GoesOn { rebuild, memory, events },
    })
}
