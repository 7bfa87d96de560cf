//! Long histories: what a command of an aggregate with many events reads, and that it believes no snapshot more than the log.

use std::sync::Arc;

use async_nats::jetstream;
use orgstream::{
    adapters::dns::SystemDns,
    commands::{
        handler::CommandHandler,
        request::{Accepted, Caller, CommandError, Creator, Request},
        snapshots::shape,
    },
};
use orgstream_domain::{
    AddMember, Command, CreateOrganization, Scopes, credentials::key::Pepper, member::Members, role::CustomRoles,
};
use orgstream_events::{
    Actor, ActorType, AggregateId, CommitKeys, Context, Event, EventSubject, Fingerprint, OrgId, PLATFORM_ORG,
    RecordEvent, RecordId, RecordUpdated, Role, SnapshotPart, SnapshotSubject, TenantType, UserId,
};
use orgstream_stream::{Freshness, History, Log, LogOptions, Placement, SNAPSHOT_EVERY, Snapshot, SyncMode};
use serde_json::json;
use uuid::Uuid;

use crate::{
    cluster::eventually,
    parking::commit_of,
    support::{Nats, commit_keys},
};

const SHAPE: u32 = 7;
/// More than are walked back.
const COMMITS: u64 = 300;

async fn opened(nats: &Nats) -> Log {
    let options = LogOptions::new(&nats.url, commit_keys());
    let options = LogOptions { creds: Some(nats.access.admin()), shards: 1, sync: SyncMode::Relaxed, ..options };
    let log = Log::connect(&options).await.unwrap();
    assert_eq!(log.ensure_streams().await.unwrap(), []);
    log
}

/// A record with a history of its own.
struct Long {
    log: Log,
    placement: Placement,
    record: RecordId,
    seqs: Vec<u64>,
}

impl Long {
    async fn begin(log: &Log, commits: u64) -> Self {
        let placement = log.place(OrgId::from_uuid(Uuid::now_v7())).await.unwrap();
        let record = RecordId::from_uuid(Uuid::now_v7());
        let mut long = Self { log: log.clone(), placement, record, seqs: Vec::new() };
        for _ in 0..commits {
            long.append().await;
        }
        long
    }

    fn aggregate(&self) -> AggregateId {
        AggregateId::Record(self.record)
    }

    fn subject(&self) -> EventSubject {
        EventSubject { shard: self.placement.shard, org: self.placement.org, aggregate: self.aggregate() }
    }

    async fn append(&mut self) -> u64 {
        let version = self.seqs.len() as u64;
        let (kind, data) = ("model".parse().unwrap(), json!({"n": version}));
        let updated = RecordUpdated {
            kind,
            kind_version: 1,
            data,
            references: Vec::new(),
            unique: Vec::new(),
            searched: Vec::new(),
            secrets: Vec::new(),
        };
        let event = Event::Record(RecordEvent::Updated(updated));
        let commit = commit_of(self.placement.org, self.aggregate(), version, vec![event]);
        let last = self.seqs.last().copied().unwrap_or_default();
        let seq = self.log.append(&self.placement, &commit, last, None).await.unwrap().seq;
        self.seqs.push(seq);
        seq
    }

    async fn keep(&self, seq: u64, shape: u32, content: Vec<u8>) -> bool {
        let snapshot = Snapshot { shape, seq, content: content.into() };
        self.log.keep_snapshot(&self.placement, &self.aggregate(), &snapshot).await.unwrap()
    }

    /// The first part of the history.
    async fn load(&self) -> History {
        self.log.load_new(&self.placement, &self.aggregate(), SHAPE, Freshness::Leader).await.unwrap()
    }

    /// Asserts that the history is read as if there were no snapshot.
    async fn is_read_from_the_log(&self) {
        let history = self.load().await;
        assert_eq!(history.snapshot, None);
        assert_eq!(history.commits.iter().map(|stored| stored.seq).collect::<Vec<_>>(), self.seqs);
        assert!(history.ended);
    }

    async fn publish(&self, part: u16, payload: Vec<u8>) {
        let subject = SnapshotSubject { of: &self.subject(), part }.to_string();
        jetstream::new(self.log.client().clone()).publish(subject, payload.into()).await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn a_long_history_is_read_from_its_snapshot_on() {
    let nats = Nats::start(false).await;
    let mut long = Long::begin(&opened(&nats).await, COMMITS).await;
    let end = *long.seqs.last().unwrap();
    assert!(long.load().await.read >= COMMITS);
    // Larger than a message.
    let content: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
    assert!(long.keep(end, SHAPE, content.clone()).await);
    let history = long.load().await;
    let snapshot = history.snapshot.unwrap();
    assert_eq!((snapshot.shape, snapshot.seq, snapshot.content == content), (SHAPE, end, true));
    // Six parts of half a MiB, and the last message of the log.
    assert_eq!((history.commits.len(), history.last, history.ended, history.read), (0, end, true, 7));
    let more = [long.append().await, long.append().await];
    let history = long.load().await;
    assert_eq!(history.commits.iter().map(|stored| stored.seq).collect::<Vec<_>>(), more);
    assert_eq!((history.snapshot.unwrap().seq, history.last, history.ended), (end, more[1], true));
    assert!(history.read <= 12, "{} messages", history.read);
    // A later one replaces it, though it has fewer parts.
    assert!(long.keep(more[0], SHAPE, b"later".to_vec()).await);
    let history = long.load().await;
    assert_eq!((history.snapshot.unwrap().content.as_ref(), history.commits.len()), (&b"later"[..], 1));
    // It is one message for each part, and none of the log's.
    let jetstream = jetstream::new(long.log.client().clone());
    let kept = jetstream.get_stream("SNAP").await.unwrap().get_info().await.unwrap().state.messages;
    assert_eq!(kept, 6);
    // An old one that is published again costs time only.
    assert!(long.keep(long.seqs[260], SHAPE, b"older".to_vec()).await);
    let history = long.load().await;
    assert_eq!((history.snapshot.unwrap().seq, history.commits.len() as u64), (long.seqs[260], COMMITS + 2 - 261));
}

#[tokio::test]
async fn no_snapshot_is_believed_that_is_forged_foreign_of_another_shape_or_of_another_history() {
    let nats = Nats::start(false).await;
    let log = opened(&nats).await;
    let long = Long::begin(&log, COMMITS).await;
    let other = Long::begin(&log, COMMITS).await;
    let end = *long.seqs.last().unwrap();
    let last = log.commit_at(&long.placement, &long.aggregate(), end).await.unwrap();
    assert_eq!(last.seq, end);
    let (mine, theirs) = (long.subject(), other.subject());
    let place = SnapshotSubject { of: &mine, part: 0 };
    let content = b"everybody is the owner".to_vec();
    let made = |shape: u32, seq: u64, size: usize| {
        SnapshotPart::divide(shape, seq, Fingerprint::of(&[b"another message"]), &content.clone().into(), size)
    };

    long.is_read_from_the_log().await;
    // Nobody's, and somebody's who has no key.
    long.publish(0, content.clone()).await;
    long.is_read_from_the_log().await;
    let stranger = CommitKeys::single("tests", [1; 32]).unwrap();
    long.publish(0, made(SHAPE, end, 100)[0].sign(&stranger, &place).unwrap().to_vec()).await;
    long.is_read_from_the_log().await;
    // Signed by us for another aggregate.
    let elsewhere = SnapshotSubject { of: &theirs, part: 0 };
    long.publish(0, made(SHAPE, end, 100)[0].sign(log.keys(), &elsewhere).unwrap().to_vec()).await;
    long.is_read_from_the_log().await;
    // Of a history in which another message is at its sequence, or none yet.
    for seq in [end, long.seqs[270], end + 1_000] {
        long.publish(0, made(SHAPE, seq, 100)[0].sign(log.keys(), &place).unwrap().to_vec()).await;
        long.is_read_from_the_log().await;
    }
    // Of another shape.
    assert!(long.keep(end, SHAPE + 1, content.clone()).await);
    long.is_read_from_the_log().await;
    // A part is missing, or is another snapshot's.
    let parts = made(SHAPE, end, 10);
    long.publish(0, parts[0].sign(log.keys(), &place).unwrap().to_vec()).await;
    long.is_read_from_the_log().await;
    let second = SnapshotSubject { of: &mine, part: 1 };
    long.publish(1, made(SHAPE, end, 9)[1].sign(log.keys(), &second).unwrap().to_vec()).await;
    long.is_read_from_the_log().await;
    // None can be made of what is not the aggregate's.
    assert!(!long.keep(other.seqs[0], SHAPE, content.clone()).await);
    assert!(!long.keep(end + 1_000, SHAPE, content.clone()).await);
    assert!(long.keep(end, SHAPE, content.clone()).await);
    assert_eq!(long.load().await.snapshot.unwrap().content, content);
}

fn person(number: u64) -> String {
    format!("person-{number}@acme.example")
}

fn caller(org: OrgId) -> Caller {
    let user = UserId::from_login("https://issuer.example", "founder");
    Caller {
        org,
        actor: Actor { actor_type: ActorType::Member, id: user.to_string(), auth: None },
        role: Role::Owner,
        scopes: Scopes::ALL,
        proof: None,
        right: None,
        creator: Some(Creator { user, email: "founder@acme.example".to_owned() }),
        context: Context::default(),
        request_id: None,
        trace: None,
    }
}

/// A process that knows nothing yet.
fn process(log: &Log) -> CommandHandler {
    let pepper = Pepper::new(b"a pepper that is long enough for a test").unwrap();
    CommandHandler::new(log.clone(), pepper, "local".to_owned(), Arc::new(SystemDns))
}

async fn add(process: &CommandHandler, org: OrgId, key: u64, email: &str) -> Result<Accepted, CommandError> {
    let command = AddMember { email: email.to_owned(), user_id: None, role: Role::Member };
    let request = Request { idempotency_key: Some(format!("add-{key}")), ..Command::from(command).into() };
    process.handle(&caller(org), request).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reads_little_and_its_repetition_is_known_however_old_it_is() {
    let nats = Nats::start(false).await;
    let log = opened(&nats).await;
    let first = process(&log);
    let found = CreateOrganization {
        name: "Acme".to_owned(),
        slug: "acme".parse().unwrap(),
        tenant_type: TenantType::Organization,
        auth0_organization_id: None,
    };
    let org = first.handle(&caller(PLATFORM_ORG), Command::from(found).into()).await.unwrap().position.org;
    let mut answers = Vec::new();
    for number in 0..COMMITS {
        answers.push(add(&first, org, number, &person(number)).await.unwrap());
    }
    let placement = log.placement(org).await.unwrap().unwrap();
    let roster = AggregateId::Member(org);
    let kept = async || {
        let history = log.load_new(&placement, &roster, shape::<Members>(), Freshness::Leader).await.unwrap();
        history.snapshot.map(|snapshot| snapshot.seq)
    };
    let seq = eventually("a snapshot", kept).await;
    assert_eq!(seq, answers[SNAPSHOT_EVERY as usize - 2].position.seq, "the founder is the first event");

    // A process that has just started reads the snapshot, what is newer, and the few messages of the organization.
    let cold = process(&log);
    let next = add(&cold, org, COMMITS, &person(COMMITS)).await.unwrap();
    assert_eq!((next.version, next.replayed), (COMMITS + 2, false));
    let newer = COMMITS + 1 - SNAPSHOT_EVERY;
    assert!(cold.messages_read() <= newer + 10, "{} messages", cold.messages_read());
    // It knows the commands from before the snapshot, and answers them as they were answered.
    for number in [0, 100, COMMITS - 1] {
        let original = &answers[number as usize];
        let again = add(&cold, org, number, &person(number)).await.unwrap();
        assert!(again.replayed);
        assert_eq!(
            (again.version, again.position, &again.events, again.command_id),
            (original.version, original.position, &original.events, original.command_id)
        );
        let reused = add(&cold, org, number, "another@acme.example").await;
        assert!(matches!(reused, Err(CommandError::KeyReused)), "{reused:?}");
    }
    // What the snapshot says is what the log says: people and their addresses.
    let twice = add(&cold, org, COMMITS + 1, "PERSON-7@acme.example").await;
    assert!(
        matches!(&twice, Err(CommandError::Rejected(rejection)) if rejection.code == "already_member"),
        "{twice:?}"
    );
    // The processes do not disturb each other, and no command is there twice.
    add(&first, org, COMMITS + 2, &person(COMMITS + 2)).await.unwrap();
    add(&cold, org, COMMITS + 3, &person(COMMITS + 3)).await.unwrap();
    let all = log.load(&placement, &roster, 0, Freshness::Leader).await.unwrap();
    assert_eq!(all.commits.len() as u64, COMMITS + 4);

    // A snapshot of a program that makes another state of the events is replaced by the first process that reads on.
    let old = Snapshot { shape: shape::<Members>() + 1, seq, content: b"another state".to_vec().into() };
    assert!(log.keep_snapshot(&placement, &roster, &old).await.unwrap());
    assert_eq!(kept().await, None);
    let newest = add(&process(&log), org, COMMITS + 4, &person(COMMITS + 4)).await.unwrap();
    let again = eventually("a snapshot of the shape", kept).await;
    assert!(seq < again && again <= newest.position.seq);
    // One that is of the shape, and yet not readable, is none.
    let broken = Snapshot { shape: shape::<Members>(), seq, content: b"no state".to_vec().into() };
    assert!(log.keep_snapshot(&placement, &roster, &broken).await.unwrap());
    let last = process(&log);
    let after = add(&last, org, COMMITS + 5, &person(COMMITS + 5)).await.unwrap();
    assert_eq!(after.version, newest.version + 1);
    assert!(last.messages_read() > COMMITS);
    assert_ne!(shape::<Members>(), 0);
    assert_eq!(shape::<CustomRoles>() >> 16, shape::<Members>() >> 16);
}
