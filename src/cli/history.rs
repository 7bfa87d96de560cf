//! `orgstream history`: streams with lost history, their lost messages, and an operator's decisions about them.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Subcommand;
use orgstream_events::{Commit, OpenedCommit, OrgId, PLATFORM_ORG, Shard};
use orgstream_projections::{BoundOrg, Database, StreamHistory, audit, checkpoints};
use orgstream_stream::{Log, StreamName, Tip};

use crate::{
    config::{DatabaseArgs, NatsArgs},
    process as node,
    terminal::out::{note, say, told},
};

/// The number of sequences that are compared at a time.
const WINDOW: u64 = 1_000;
/// The number of windows before the end of a stream in which its last message that the audit log has is searched.
const BACK: u64 = 20;
/// The number of events that are read at once: more than any commit has.
const EVENTS: u16 = 2_000;
/// The maximum number of lost messages that are named.
const NAMED: usize = 100;
/// A worker with a sign of life in this time may still be running.
const SEEN: Duration = Duration::from_secs(15);

/// See which streams are not what they were, and decide how to go on.
///
/// A stream whose storage came back from an older copy has lost messages that were acknowledged. It takes no more commands and
/// nothing of it is applied, until one of these commands was run, while no `serve` and no `work` runs. Nothing is in the way of
/// bringing back a better copy first.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show what is known of every stream, and which messages are missing. Ends with 1 when any stream is lost.
    List {
        #[command(flatten)]
        at: Where,
    },
    /// Write the missing messages back from the audit log, each where it was, and go on with the stream then. What the audit
    /// log does not have either is named, and its place is kept empty.
    Refill {
        /// The stream, as `history list` names it: EV_<shard>.
        #[arg(value_name = "STREAM")]
        stream: StreamName,
        #[command(flatten)]
        at: Where,
    },
    /// Go on with the stream as it is now: because a copy was brought back that has all that was acknowledged, or with
    /// --lossy, for good without what is missing.
    Accept {
        /// The stream, as `history list` names it: EV_<shard>, or SYS.
        #[arg(value_name = "STREAM")]
        stream: StreamName,
        /// Give up what is missing. Read models and audit logs keep what they have of it, and commands do not know of it; no
        /// position is given out a second time.
        #[arg(long)]
        lossy: bool,
        #[command(flatten)]
        at: Where,
    },
}

#[derive(clap::Args)]
pub(crate) struct Where {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<ExitCode> {
    match job {
        Job::List { at } => list(&at).await,
        Job::Refill { stream, at } => refill(stream, &at).await,
        Job::Accept { stream, lossy, at } => accept(stream, lossy, &at).await,
    }
}

/// Opens both sides, without the checks at start: a stream that fails those is examined here.
async fn open(at: &Where) -> anyhow::Result<(Log, Database)> {
    let db = Database::connect(&at.database.options(1)).await.with_context(|| at.database.silent())?;
    Ok((node::connect_log(&at.nats).await?, db))
}

async fn list(at: &Where) -> anyhow::Result<ExitCode> {
    let (log, db) = open(at).await?;
    let kept = histories(&db).await?;
    let (mut lines, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for stream in log.streams() {
        let end = log.end_of(stream).await?.seq;
        let Some(history) = kept.get(&stream) else {
            lines.push(format!("{stream}: ends at {end}; nothing is known of what it was"));
            continue;
        };
        let Some(what) = wrong(&log, stream, history).await? else {
            lines.push(format!("{stream}: ends at {end}, and has the message {} by which it is known", history.seq));
            continue;
        };
        code = ExitCode::FAILURE;
        lines.push(format!("{stream}: LOST: {what}"));
        if let StreamName::Shard(shard) = stream {
            lines.extend(Missing::look(&log, &db, shard, history.seq).await?.in_words());
        }
    }
    Ok(told(code, say!("{}", lines.join("\n"))))
}

async fn histories(db: &Database) -> anyhow::Result<BTreeMap<StreamName, StreamHistory>> {
    let kept = db.histories().await.context("what is known of the streams could not be read")?;
    Ok(kept.into_iter().filter_map(|history| Some((history.stream.parse().ok()?, history))).collect())
}

/// Returns what is wrong with the stream: as recorded, or as it can be seen now.
async fn wrong(log: &Log, stream: StreamName, history: &StreamHistory) -> anyhow::Result<Option<String>> {
    match &history.lost {
        Some((what, at)) => Ok(Some(format!("{what} (found at {at})"))),
        None => Ok(log.lacks(stream, tip(history)).await?),
    }
}

fn tip(history: &StreamHistory) -> Tip {
    Tip { seq: history.seq, digest: history.digest }
}

/// Returns the lost stream, once no process can be writing to it or reading from it.
async fn lost(log: &Log, db: &Database, stream: StreamName) -> anyhow::Result<StreamHistory> {
    let history = histories(db).await?.remove(&stream).with_context(|| format!("nothing is known of {stream}"))?;
    let Some(what) = wrong(log, stream, &history).await? else {
        bail!("{stream} is what it was: nothing is to be decided")
    };
    if !db.live_workers(SEEN).await?.is_empty() {
        bail!("a worker is running, or was {} seconds ago: stop every serve and work first", SEEN.as_secs());
    }
    // Recorded, so that the decision has a subject.
    db.lose_history(&history, &what).await?;
    Ok(history)
}

async fn refill(stream: StreamName, at: &Where) -> anyhow::Result<ExitCode> {
    let StreamName::Shard(shard) = stream else {
        bail!("what {stream} says is in no audit log: bring back a better copy")
    };
    let (log, db) = open(at).await?;
    let history = lost(&log, &db, stream).await?;
    let missing = Missing::look(&log, &db, shard, history.seq).await?;
    if let Some(fork) = missing.fork {
        bail!(
            "{stream} has gone on since it came back: its message {fork} is another one than the audit log has. Bring back the \
             same copy once more, refill it before anything else starts, or give up what is missing (history accept --lossy)"
        );
    }
    let (mut back, mut empty) = (0_u64, 0_u64);
    let mut from = missing.end + 1;
    while from <= missing.target {
        let to = missing.target.min(from + WINDOW - 1);
        let commits = missing.window(&db, from, to).await?;
        for seq in from..=to {
            let commit = commits.get(&seq);
            log.write_back(shard, seq, commit).await?;
            *(if commit.is_some() { &mut back } else { &mut empty }) += 1;
        }
        from = to + 1;
        note!("{stream} is filled up to {to} of {}", missing.target);
    }
    settle(&log, &db, stream).await?;
    let text = format!(
        "{stream}: {back} messages are back where they were; {empty} are in no audit log, and their places are kept empty"
    );
    Ok(told(ExitCode::SUCCESS, say!("{text}\nstart serve and work again")))
}

async fn accept(stream: StreamName, lossy: bool, at: &Where) -> anyhow::Result<ExitCode> {
    let (log, db) = open(at).await?;
    let history = lost(&log, &db, stream).await?;
    let mut lines = Vec::new();
    match log.lacks(stream, tip(&history)).await? {
        None => lines.push(format!("{stream} has the message {} again", history.seq)),
        Some(what) if !lossy => bail!(
            "{stream}: {what}. Bring back a better copy, write the missing messages back (orgstream history refill {stream}), or \
             give them up (--lossy)"
        ),
        Some(what) => {
            lines.push(format!("{stream}: {what}; what is missing is given up"));
            if let StreamName::Shard(shard) = stream {
                let missing = Missing::look(&log, &db, shard, history.seq).await?;
                lines.extend(missing.in_words());
                // New messages go behind every position that was ever reported.
                for seq in missing.end + 1..=missing.target {
                    log.write_back(shard, seq, None).await?;
                }
            }
        }
    }
    settle(&log, &db, stream).await?;
    lines.push("start serve and work again".to_owned());
    Ok(told(ExitCode::SUCCESS, say!("{}", lines.join("\n"))))
}

/// Records the present state of the stream as its history.
async fn settle(log: &Log, db: &Database, stream: StreamName) -> anyhow::Result<()> {
    let end = log.end_of(stream).await?.seq;
    let tip = log.see(stream, end).await?.with_context(|| format!("{stream} has no message"))?;
    if !db.settle_history(&stream.to_string(), tip.seq, &tip.digest).await? {
        bail!("another operator has decided about {stream} meanwhile: see `orgstream history list`");
    }
    Ok(())
}

/// The messages that a shard has lost, as far as the audit logs of its organizations show.
struct Missing {
    orgs: BTreeSet<OrgId>,
    /// The last sequence of the stream.
    end: u64,
    /// The last sequence that was ever reported.
    target: u64,
    /// The first message that the stream has in another's place, if it has diverged.
    fork: Option<u64>,
    /// The first of the audit log's messages that the stream lacks.
    named: Vec<(u64, String)>,
    /// How many there are, and how many sequences are in no audit log.
    audited: u64,
    unknown: u64,
}

impl Missing {
    async fn look(log: &Log, db: &Database, shard: Shard, known: u64) -> anyhow::Result<Self> {
        let mut orgs: BTreeSet<OrgId> = db.orgs_of_shard(shard).await?.into_iter().collect();
        orgs.insert(PLATFORM_ORG);
        let mut target = known.max(db.low_watermark(shard).await?.seq);
        for org in &orgs {
            let of_org = checkpoints::all(&mut db.read(BoundOrg::named_by_operator(*org)).await?).await?;
            let here = of_org.iter().filter(|checkpoint| checkpoint.active && checkpoint.shard == shard);
            target = here.map(|checkpoint| checkpoint.seq).fold(target, u64::max);
        }
        let end = log.end_of(StreamName::Shard(shard)).await?.seq;
        let mut missing = Self { orgs, end, target, fork: None, named: Vec::new(), audited: 0, unknown: 0 };
        missing.fork = missing.look_for_a_fork(log, db, shard).await?;
        let mut from = missing.fork.unwrap_or(end + 1);
        while from <= target {
            let to = target.min(from + WINDOW - 1);
            let commits = missing.window(db, from, to).await?;
            missing.audited += commits.len() as u64;
            missing.unknown += (to + 1 - from) - commits.len() as u64;
            let room = NAMED.saturating_sub(missing.named.len());
            missing.named.extend(commits.iter().take(room).map(|(seq, commit)| (*seq, in_words(*seq, commit))));
            from = to + 1;
        }
        Ok(missing)
    }

    /// Searches backwards from the end for the last message that stream and audit log both have. Returns the first one
    /// behind it, if the stream differs there from the audit log.
    async fn look_for_a_fork(&self, log: &Log, db: &Database, shard: Shard) -> anyhow::Result<Option<u64>> {
        let (mut to, mut fork) = (self.end, None);
        for _ in 0..BACK {
            if to == 0 {
                break;
            }
            let from = to.saturating_sub(WINDOW - 1).max(1);
            for (seq, commit) in self.window(db, from, to).await?.into_iter().rev() {
                let stored = log.message(shard, seq).await?.and_then(|message| message.open(log.keys()).ok());
                if stored.is_some_and(|stored| stored.commit.seal().as_ref() == Some(&commit)) {
                    return Ok(fork);
                }
                fork = Some(seq);
            }
            to = from - 1;
        }
        Ok(fork)
    }

    /// Returns the commits that the audit logs have at these sequences.
    async fn window(&self, db: &Database, from: u64, to: u64) -> anyhow::Result<BTreeMap<u64, Commit>> {
        let mut commits = BTreeMap::new();
        for org in &self.orgs {
            let mut next = from;
            let mut tx = db.read(BoundOrg::named_by_operator(*org)).await?;
            while next <= to {
                let (mut rows, is_all) = audit::stored_from(&mut tx, next, EVENTS).await?;
                // The last commit may continue behind what was read.
                let cut = if is_all { None } else { rows.last().map(|row| row.seq) };
                // An ordinal below 0 is a mark of what the pipeline could not apply.
                rows.retain(|row| row.ordinal >= 0 && row.seq <= to && Some(row.seq) != cut);
                let mut opened: BTreeMap<u64, OpenedCommit> = BTreeMap::new();
                for row in rows {
                    let event = row.sealed.open().with_context(|| format!("{org}:{} of the audit log", row.seq))?;
                    if event.header.org_id != *org {
                        bail!("the audit log of {org} has an event of {}: it was altered", event.header.org_id);
                    }
                    match opened.entry(row.seq) {
                        Entry::Vacant(place) => {
                            place.insert(OpenedCommit::begin(event, row.fingerprint));
                        }
                        Entry::Occupied(mut begun) => begun.get_mut().push(event, row.fingerprint),
                    }
                }
                commits.extend(opened.into_iter().filter_map(|(seq, commit)| Some((seq, commit.seal()?))));
                let Some(cut) = cut else { break };
                next = cut;
            }
        }
        Ok(commits)
    }

    fn in_words(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.named.iter().map(|(_, line)| format!("  {line}")).collect();
        let more = self.audited - self.named.len() as u64;
        if more > 0 {
            lines.push(format!("  and {more} more that the audit log has"));
        }
        if self.unknown > 0 {
            lines.push(format!("  {} sequences up to {} are in no audit log", self.unknown, self.target));
        }
        if let Some(fork) = self.fork {
            lines.push(format!("  from {fork} on the stream has other messages"));
        }
        lines
    }
}

fn in_words(seq: u64, commit: &Commit) -> String {
    format!("{}:{seq} {} of command {} is missing", commit.org_id, commit.aggregate, commit.command_id)
}
