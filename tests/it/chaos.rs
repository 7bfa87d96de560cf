//! Nothing lost, nothing twice: every part of the product is killed again and again while fifty organizations write.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::client::Request;
use futures_util::poll;
use orgstream_events::{CommandId, PLATFORM_ORG, RecordId};
use orgstream_projections::BoundOrg;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};

use crate::{
    cluster::{Answer, Client, Cluster, ClusterOptions, PATIENCE, Tenant, create, eventually, seq_of},
    history::{History, digests},
    support::database,
};

const TENANTS: usize = 50;
const KILLS_OF_EACH: usize = 4;
/// The least number of commands; each makes an event.
const COMMANDS: u64 = 10_000;
/// A NATS producer's timeout before it sends again, whatever the result of the first try.
const NATS_TIMEOUT: Duration = Duration::from_secs(4);

/// One command, with the key that makes it safe to send twice.
#[derive(Debug, Clone)]
struct Planned {
    key: String,
    command: Value,
    expected_version: Option<u64>,
}

impl Planned {
    fn envelope(&self) -> Value {
        let mut envelope = json!({"command": self.command, "idempotency_key": self.key});
        if let Some(version) = self.expected_version {
            envelope["expected_version"] = json!(version);
        }
        envelope
    }
}

/// The answer to one command, as its writer got it.
#[derive(Debug)]
struct Acknowledged {
    id: String,
    version: u64,
    seq: u64,
    events: Value,
}

/// A record as its writer expects it.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    version: u64,
    data: Value,
    archived: bool,
}

impl Known {
    fn new(data: Value) -> Self {
        Self { version: 1, data, archived: false }
    }
}

/// One organization's only writer. It continues with the next command when the last one is finally acknowledged.
struct Writer {
    tenant: Tenant,
    client: Client,
    nats: async_nats::Client,
    random: StdRng,
    number: usize,
    acknowledged: HashMap<CommandId, Acknowledged>,
    /// Sent once, by a producer that then died: stored or not, but never twice.
    abandoned: HashSet<CommandId>,
    records: BTreeMap<String, Known>,
    /// Records that do not exist yet, and so cannot be changed.
    unborn: HashSet<String>,
    total: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Ordering::Relaxed) {
            match self.random.random_range(0..20) {
                0 => self.abandon().await,
                1..4 => {
                    let count = self.random.random_range(2..=30);
                    let plan: Vec<Planned> = (0..count).map(|_| self.plan()).collect();
                    self.carry_out(&plan).await;
                }
                _ => {
                    let plan = [self.plan()];
                    self.carry_out(&plan).await;
                }
            }
            sleep(Duration::from_millis(self.random.random_range(1..80))).await;
        }
        self
    }

    fn next_key(&mut self) -> String {
        self.number += 1;
        format!("{}/{}", self.tenant.slug, self.number)
    }

    fn some_record(&mut self) -> Option<String> {
        let living = |(id, known): &(&String, &Known)| !known.archived && !self.unborn.contains(*id);
        let living: Vec<&String> = self.records.iter().filter(living).map(|(id, _)| id).collect();
        if living.is_empty() { None } else { Some(living[self.random.random_range(0..living.len())].clone()) }
    }

    /// Plans the next command. Its effect is recorded before it is sent, so that plans can be made ahead.
    fn plan(&mut self) -> Planned {
        let key = self.next_key();
        let data = json!({"name": key, "parameters": {"noise": self.random.random_range(0..1_000_000)}});
        let choice = self.random.random_range(0..10);
        let existing = if choice < 6 { None } else { self.some_record() };
        let Some(id) = existing else {
            let id = RecordId::derive(CommandId::from_idempotency_key(self.tenant.id, &key)).to_string();
            self.records.insert(id.clone(), Known::new(data.clone()));
            self.unborn.insert(id);
            let command = json!({"type": "create_record", "kind": "model", "data": data});
            return Planned { key, command, expected_version: None };
        };
        let known = self.records.get_mut(&id).unwrap();
        let expected_version = (self.random.random_range(0..2) == 0).then_some(known.version);
        known.version += 1;
        let command = if choice < 9 {
            known.data = data.clone();
            json!({"type": "update_record", "id": id, "data": data})
        } else {
            known.archived = true;
            json!({"type": "archive_record", "id": id, "reason": key})
        };
        Planned { key, command, expected_version }
    }

    /// Sends until every command is acknowledged, and records the answers.
    async fn carry_out(&mut self, plan: &[Planned]) {
        let body = match plan {
            [one] => one.envelope(),
            many => many.iter().map(Planned::envelope).collect(),
        };
        let by_nats = self.random.random_range(0..3) == 0;
        let deadline = Instant::now() + 2 * PATIENCE;
        let outcomes = loop {
            let answer = if by_nats { self.by_nats(&body).await } else { self.by_http(&body).await };
            assert!(Instant::now() < deadline, "{} gave up on {plan:?}: {answer:?}", self.tenant.slug);
            match answer.map(|answer| (answer.status, answer.body)) {
                Some((200 | 201, Value::Array(outcomes))) if !outcomes.iter().any(is_passing) => break outcomes,
                Some((200 | 201, outcome @ Value::Object(_))) => break vec![outcome],
                Some((200 | 201 | 503, _)) | None => sleep(Duration::from_millis(50)).await,
                other => panic!("{} was answered {other:?} to {body}", self.tenant.slug),
            }
        };
        for (planned, outcome) in plan.iter().zip(outcomes) {
            assert!(outcome["error"].is_null(), "{} was refused {planned:?}: {outcome}", self.tenant.slug);
            let id = CommandId::from_idempotency_key(self.tenant.id, &planned.key);
            assert_eq!(outcome["command_id"], id.to_string());
            let acknowledged = Acknowledged {
                id: outcome["id"].as_str().unwrap().to_owned(),
                version: outcome["version"].as_u64().unwrap(),
                seq: seq_of(&self.tenant, outcome["position"].as_str().unwrap()),
                events: outcome["events"].clone(),
            };
            assert!(self.acknowledged.insert(id, acknowledged).is_none());
            self.total.fetch_add(1, Ordering::Relaxed);
        }
        self.unborn.clear();
    }

    async fn by_http(&self, body: &Value) -> Option<Answer> {
        let path = self.tenant.path("commands");
        Answer::of(self.client.request(reqwest::Method::POST, &path, &self.tenant.key).json(body)).await
    }

    async fn by_nats(&self, body: &Value) -> Option<Answer> {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Authorization", format!("Bearer {}", self.tenant.key));
        let request = Request::new()
            .headers(headers)
            .payload(serde_json::to_vec(body).unwrap().into())
            .timeout(Some(NATS_TIMEOUT));
        let answer = self.nats.send_request(format!("cmd.{}", self.tenant.id), request).await.ok()?;
        let status = answer.headers.as_ref()?.get("Orgstream-Status")?.as_str().parse().ok()?;
        let body = serde_json::from_slice(&answer.payload).unwrap();
        Some(Answer { status, headers: reqwest::header::HeaderMap::new(), body })
    }

    /// Sends a command once and does not wait for the answer.
    async fn abandon(&mut self) {
        let key = self.next_key();
        self.abandoned.insert(CommandId::from_idempotency_key(self.tenant.id, &key));
        let request = self.client.request(reqwest::Method::POST, &self.tenant.path("commands"), &self.tenant.key);
        let patience = Duration::from_millis(self.random.random_range(0..30));
        let body = json!({"command": create(&key), "idempotency_key": key});
        let _ = request.json(&body).timeout(patience).send().await;
    }

    /// Asserts that the stream has what this writer was acknowledged, once, and nothing that it did not send.
    fn assert_kept(&self, history: &History) {
        let slug = &self.tenant.slug;
        let commands = history.commands();
        for (command, acknowledged) in &self.acknowledged {
            let found = commands.get(command).map_or(&[][..], Vec::as_slice);
            let [stored] = found else { panic!("{slug}: {command} {acknowledged:?} is there {} times", found.len()) };
            let last = &stored.commit.events.last().unwrap().header;
            let names: Value = stored.commit.events.iter().map(|event| event.header.event_type.clone()).collect();
            assert_eq!(
                (stored.seq, last.aggregate.aggregate.id(), last.aggregate.version, &names),
                (acknowledged.seq, acknowledged.id.clone(), acknowledged.version, &acknowledged.events),
                "{slug}: {command}"
            );
        }
        for (command, found) in &commands {
            let first = &found[0].commit.events[0].header;
            let founding = ["organization.created", "member.added", "api_key.issued"];
            if founding.contains(&first.event_type.as_str()) {
                continue;
            }
            let sent = self.acknowledged.contains_key(command) || self.abandoned.contains(command);
            assert!(sent, "{slug}: nobody sent {command}");
            assert_eq!(found.len(), 1, "{slug}: {command} is there more than once");
        }
        let folded = history.records();
        for (id, known) in &self.records {
            let record = folded.get(id).unwrap_or_else(|| panic!("{slug}: {id} is not there"));
            let found = Known { version: record.version, data: record.data.clone(), archived: record.archived };
            assert_eq!(&found, known, "{slug}: {id}");
        }
    }
}

/// Whether an outcome in an array says that a retry can help.
fn is_passing(outcome: &Value) -> bool {
    outcome["error"]["status"] == 503
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Api,
    Worker,
    Nats,
    Postgres,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Api, Self::Worker, Self::Nats, Self::Postgres];

    async fn kill(self, cluster: &mut Cluster) {
        match self {
            Self::Api => cluster.api.kill9(),
            Self::Worker => cluster.workers[0].kill9(),
            Self::Nats => cluster.nats.kill9().await,
            Self::Postgres => cluster.postgres.kill9().await,
        }
    }

    async fn restart(self, cluster: &mut Cluster) {
        match self {
            Self::Api => cluster.api.start(),
            Self::Worker => cluster.workers[0].start(),
            Self::Nats => cluster.nats.restart().await.unwrap(),
            Self::Postgres => cluster.postgres.restart().await.unwrap(),
        }
    }
}

/// Waits until this many more commands are acknowledged.
async fn until_written(total: &AtomicU64, more: u64) {
    let goal = total.load(Ordering::Relaxed) + more;
    let what = format!("the writers to get {more} more commands through");
    eventually(&what, async || (total.load(Ordering::Relaxed) >= goal).then_some(())).await;
}

// S3.21
// S3.22
// Events of fifty tenants interleave in four streams and one worker; every derived row equals what the tenant's own
// stream says, and what a rebuild of that tenant gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_command_is_there_exactly_once_whatever_is_killed() {
    let seed = std::env::var("ORGSTREAM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    eprintln!("to see the same again: ORGSTREAM_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenants = cluster.tenants(TENANTS).await;
    let (total, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let nats = cluster.producer().await;
    let writers: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let writer = Writer {
                tenant: tenant.clone(),
                client: cluster.client.clone(),
                nats: nats.clone(),
                random: StdRng::seed_from_u64(random.random()),
                number: 0,
                acknowledged: HashMap::new(),
                abandoned: HashSet::new(),
                records: BTreeMap::new(),
                unborn: HashSet::new(),
                total: Arc::clone(&total),
            };
            tokio::spawn(writer.run(Arc::clone(&stop)))
        })
        .collect();

    let begun = Instant::now();
    let mut victims: Vec<Victim> = Victim::ALL.repeat(KILLS_OF_EACH);
    victims.shuffle(&mut random);
    let mut victims = victims.into_iter().peekable();
    while let Some(first) = victims.next() {
        until_written(&total, random.random_range(200..1_000)).await;
        // Sometimes two are down at the same time.
        let together = random.random_range(0..3) == 0;
        let second = victims.next_if(|second| together && *second != first);
        let fallen: Vec<Victim> = [Some(first), second].into_iter().flatten().collect();
        let (written, elapsed) = (total.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
        eprintln!("{written:>6} commands acknowledged in {elapsed:.1} s, killing {fallen:?}");
        for victim in &fallen {
            victim.kill(&mut cluster).await;
        }
        sleep(Duration::from_millis(random.random_range(0..700))).await;
        for victim in &fallen {
            victim.restart(&mut cluster).await;
        }
    }
    until_written(&total, 500).await;
    while total.load(Ordering::Relaxed) < COMMANDS {
        until_written(&total, 500).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut finished = Vec::with_capacity(TENANTS);
    for writer in writers {
        finished.push(writer.await.unwrap());
    }
    cluster.ready().await;
    for tenant in &tenants {
        cluster.until_projected(tenant).await;
    }

    let (log, mut database) = (cluster.log().await, cluster.superuser().await);
    let (mut events, mut abandoned) = (0, 0);
    for writer in &finished {
        let history = History::read(&log, writer.tenant.id).await;
        history.assert_sound();
        writer.assert_kept(&history);
        history.assert_projected(&mut database).await;
        events += history.events().count();
        abandoned += writer.abandoned.len();
    }
    let platform = History::read(&log, PLATFORM_ORG).await;
    platform.assert_sound();
    platform.assert_audited(&mut database).await;
    let acknowledged = total.load(Ordering::Relaxed);
    assert!(events as u64 >= COMMANDS, "{events} events");
    eprintln!("{acknowledged} acknowledged and {abandoned} abandoned commands made {events} events");

    eprintln!("all of it is projected after {:.1} s", begun.elapsed().as_secs_f64());
    let before = digests(&mut database).await;
    assert_eq!(before.keys().filter(|(table, _)| table == "rm.records").count(), TENANTS);
    cluster.cli("", &["rebuild", "--all"]).await.success();
    let after = digests(&mut database).await;
    let changed: Vec<_> = before.iter().filter(|(place, digest)| after.get(*place) != Some(digest)).collect();
    assert!(changed.is_empty(), "a rebuild made other rows: {changed:?}");
    assert_eq!(before.len(), after.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgresql_forgets_in_a_crash_is_applied_again_though_nothing_new_comes() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenants = cluster.tenants(8).await;
    for round in 0..4 {
        // Every row is visible, and none of them need be on disk yet.
        for tenant in &tenants {
            let made = cluster.client.command(tenant, &format!("round-{round}"), &create("x")).await.expect(201);
            let path = tenant.path(&format!("records/{}", made.text("id")));
            cluster.client.get_at(&tenant.key, &path, &made.text("position")).await.expect(200);
        }
        cluster.postgres.kill9().await;
        cluster.postgres.restart().await.unwrap();
        for tenant in &tenants {
            cluster.until_projected(tenant).await;
        }
    }
    let (log, mut database) = (cluster.log().await, cluster.superuser().await);
    for tenant in &tenants {
        let history = History::read(&log, tenant.id).await;
        assert_eq!(history.records().len(), 4);
        history.assert_projected(&mut database).await;
    }
}

#[tokio::test]
async fn a_reader_who_goes_away_leaves_no_transaction_open() {
    let database = database().await;
    // The caller is dropped after so many steps, at any point of a read.
    for steps in 0..40 {
        let mut read = pin!(database.db.read(BoundOrg::platform()));
        for _ in 0..steps {
            if poll!(&mut read).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let mut superuser = PgConnection::connect(&database.owner_url).await.unwrap();
    eventually("every transaction to end", async || {
        let open = "SELECT count(*), coalesce(max(extract(epoch FROM clock_timestamp() - state_change)), 0)::float8
            FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
        let (open, seconds): (i64, f64) = sqlx::query_as(open).fetch_one(&mut superuser).await.unwrap();
        // The server itself ends such a session after 15 seconds; until then its next user would read an old snapshot.
        assert!(seconds < 5.0, "{open} transactions have been open for {seconds} s, and nobody knows of them");
        (open == 0).then_some(())
    })
    .await;
}
