//! The load of the benchmarks: records of a few hundred bytes, and the duration of each write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use orgstream::clock::now;
use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, Commit, CommitDraft, Context, Event, KindName, OrgId,
    OrganizationCreated, OrganizationEvent, RecordCreated, RecordEvent, RecordId, Salt, SearchedField, TenantType,
};
use serde_json::json;
use tokio::task::JoinSet;

/// The content of every benchmark record: about 256 bytes as an event.
pub(super) fn data(number: u64) -> serde_json::Value {
    json!({"number": number, "text": "a record of the benchmark, as long as an ordinary small event is: about 256 bytes of payload with what is around it. ".repeat(2)})
}

/// A new record's commit, sealed as a command's would be.
pub(super) fn commit(org: OrgId, number: u64) -> anyhow::Result<Commit> {
    commit_of(org, data(number))
}

/// A new record's commit with content of the caller's own.
pub(super) fn commit_of(org: OrgId, data: serde_json::Value) -> anyhow::Result<Commit> {
    searched_commit(org, "webhook".parse()?, data, Vec::new())
}

/// The same of a kind that is searched by these fields.
pub(super) fn searched_commit(
    org: OrgId,
    kind: KindName,
    data: serde_json::Value,
    searched: Vec<SearchedField>,
) -> anyhow::Result<Commit> {
    let record = RecordId::derive(CommandId::fresh(now().unix_ms(), rand::random()));
    searched_commit_on(org, AggregateId::Record(record), kind, data, searched)
}

/// The same on a record that may be there already.
pub(super) fn searched_commit_on(
    org: OrgId,
    record: AggregateId,
    kind: KindName,
    data: serde_json::Value,
    searched: Vec<SearchedField>,
) -> anyhow::Result<Commit> {
    let command_id = CommandId::fresh(now().unix_ms(), rand::random());
    let created =
        RecordCreated { kind, kind_version: 1, data, references: vec![], unique: vec![], searched, secrets: vec![] };
    sealed(org, record, command_id, Event::Record(RecordEvent::Created(created)))
}

/// The first commit of every organization's history.
pub(super) fn creation(org: OrgId) -> anyhow::Result<Commit> {
    let created = OrganizationCreated {
        name: "Benchmark".to_owned(),
        slug: format!("bench-{}", org.uuid().simple()).parse()?,
        tenant_type: TenantType::Organization,
        region: "local".to_owned(),
    };
    let command_id = CommandId::fresh(now().unix_ms(), rand::random());
    let created = Event::Organization(OrganizationEvent::Created(created));
    sealed(org, AggregateId::Organization(org), command_id, created)
}

fn sealed(org: OrgId, aggregate: AggregateId, command_id: CommandId, event: Event) -> anyhow::Result<Commit> {
    Ok(draft(org, aggregate, command_id, vec![event]).seal(|| Salt(rand::random()))?)
}

/// Returns the first commit of an aggregate, of a command without an idempotency key, before it is sealed.
pub(super) fn draft(org: OrgId, aggregate: AggregateId, command_id: CommandId, events: Vec<Event>) -> CommitDraft {
    let now = now();
    CommitDraft {
        org,
        aggregate,
        version_before: 0,
        command_id,
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "bench".to_owned(), auth: None },
        occurred_at: now,
        recorded_at: now,
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events,
    }
}

/// The measurements of a period of load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// Writes per second.
    pub(super) rate: f64,
    /// The median duration of a request.
    pub(super) p50: Duration,
    /// The 99th percentile of the duration of a request.
    pub(super) p99: Duration,
}

/// Lets `writers` repeat `write` for `time`; each call returns the number of writes it made.
pub(super) async fn drive<F, W>(writers: usize, time: Duration, write: W) -> anyhow::Result<Measured>
where
    F: Future<Output = anyhow::Result<u64>> + Send,
    W: Fn(u64) -> F + Send + Sync + 'static,
{
    let write = Arc::new(write);
    let (stop, numbers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..writers {
        let (write, stop, numbers) = (Arc::clone(&write), Arc::clone(&stop), Arc::clone(&numbers));
        tasks.spawn(async move {
            let (mut writes, mut times) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                writes += write(numbers.fetch_add(1, Ordering::Relaxed)).await?;
                times.push(begun.elapsed());
            }
            anyhow::Ok((writes, times))
        });
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let (mut writes, mut times) = (0, Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (some, taken) = done??;
        writes += some;
        times.extend(taken);
    }
    let elapsed = started.elapsed();
    times.sort_unstable();
    let at =
        |share: f64| times.get(((times.len().saturating_sub(1)) as f64 * share) as usize).copied().unwrap_or_default();
    Ok(Measured { rate: writes as f64 / elapsed.as_secs_f64(), p50: at(0.5), p99: at(0.99) })
}
