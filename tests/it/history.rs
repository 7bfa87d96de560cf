//! An organization's stream, and whether the tables match it: an independent check, which shares no code with the
//! workers and the projections.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::{StreamExt, pin_mut};
use orgstream_events::{CommandId, Event, OpenedEvent, OrgId, RecordEvent, RecordLogEvent};
use orgstream_projections::READ_MODELS;
use orgstream_stream::{Log, StoredCommit};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

/// The tables that are a function of the stream and have no versions.
const UNVERSIONED: [&str; 2] = ["audit.events", "ops.plans"];
/// The active version of the organization $1, which queries see.
const SHOWN: &str =
    "rm_version = (SELECT version FROM ops.checkpoints WHERE org_id = $1 AND pipeline = 'read_models' AND active)";

/// All messages of an organization's stream, in order.
pub(crate) struct History {
    pub(crate) org: OrgId,
    pub(crate) commits: Vec<StoredCommit>,
}

/// A record as made by its events.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) kind: String,
    pub(crate) data: Value,
    pub(crate) archived: bool,
    pub(crate) version: u64,
    pub(crate) seq: u64,
}

impl History {
    /// Reads it from the log. Every message must be authentic, and of this organization.
    pub(crate) async fn read(log: &Log, org: OrgId) -> Self {
        let placement = log.placement(org).await.unwrap().unwrap();
        let replay = log.replay(&placement, 1);
        pin_mut!(replay);
        let mut commits = Vec::new();
        while let Some(message) = replay.next().await {
            commits.push(message.unwrap().open(log.keys()).unwrap());
        }
        Self { org, commits }
    }

    /// Every event with its place: sequence, and ordinal in the commit.
    pub(crate) fn events(&self) -> impl Iterator<Item = (u64, usize, &OpenedEvent)> {
        self.commits.iter().flat_map(|stored| {
            stored.commit.events.iter().enumerate().map(|(ordinal, event)| (stored.seq, ordinal, event))
        })
    }

    /// The commits of each command.
    pub(crate) fn commands(&self) -> HashMap<CommandId, Vec<&StoredCommit>> {
        let mut commands: HashMap<CommandId, Vec<&StoredCommit>> = HashMap::new();
        for stored in &self.commits {
            for command in stored.commit.commands() {
                commands.entry(command.command_id).or_default().push(stored);
            }
        }
        commands
    }

    /// The last sequence.
    #[allow(dead_code, reason = "for tests of backlogs")]
    pub(crate) fn head(&self) -> u64 {
        self.commits.last().map_or(0, |stored| stored.seq)
    }

    /// Records by their ids, folded here.
    pub(crate) fn records(&self) -> BTreeMap<String, Record> {
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        for (seq, _, event) in self.events() {
            if let Event::RecordLog(RecordLogEvent::Appended(appended)) = &event.event {
                let (kind, data) = (appended.kind.to_string(), appended.data.clone());
                let record = Record { kind, data, archived: false, version: 1, seq };
                let before = records.insert(appended.record.to_string(), record);
                assert_eq!(before, None, "{} was appended twice", appended.record);
            }
            let Event::Record(change) = &event.event else { continue };
            let version = event.header.aggregate.version;
            let id = event.header.aggregate.aggregate.id();
            match change {
                RecordEvent::Created(created) => {
                    let (kind, data) = (created.kind.to_string(), created.data.clone());
                    let before = records.insert(id.clone(), Record { kind, data, archived: false, version, seq });
                    assert_eq!(before, None, "{id} was created twice");
                }
                RecordEvent::Updated(updated) => {
                    let record = records.get_mut(&id).unwrap();
                    (record.data, record.version, record.seq) = (updated.data.clone(), version, seq);
                }
                RecordEvent::Archived(_) => {
                    let record = records.get_mut(&id).unwrap();
                    (record.archived, record.version, record.seq) = (true, version, seq);
                }
            }
        }
        records
    }

    /// Asserts the invariants of any stream: nothing twice, and every aggregate's versions without a gap.
    pub(crate) fn assert_sound(&self) {
        let mut versions: HashMap<String, u64> = HashMap::new();
        let mut ids = HashSet::new();
        for (seq, ordinal, event) in self.events() {
            assert_eq!(event.header.org_id, self.org);
            assert!(ids.insert(event.header.event_id), "event {ordinal} of {seq} of {} is there twice", self.org);
            // Access events are in no order.
            if event.header.aggregate.aggregate.is_access() {
                continue;
            }
            let version = versions.entry(event.header.aggregate.aggregate.to_string()).or_default();
            *version += 1;
            assert_eq!(event.header.aggregate.version, *version, "event {ordinal} of {seq} of {}", self.org);
        }
    }

    /// Asserts that read models, audit log and ledger match the stream, and that nothing is parked.
    pub(crate) async fn assert_projected(&self, database: &mut PgConnection) {
        self.assert_audited(database).await;
        self.assert_records(database).await;
        let org = self.org.uuid();
        let parked: i64 = count(
            database,
            &format!("SELECT count(*) FROM ops.parked WHERE org_id = $1 AND (pipeline = 'audit' OR {SHOWN})"),
            org,
        )
        .await;
        assert_eq!(parked, 0, "{} has parked events", self.org);
        let keyed: HashSet<Uuid> = self
            .commits
            .iter()
            .flat_map(|stored| stored.commit.commands())
            .filter(|command| command.fingerprint.is_some())
            .map(|command| command.command_id.uuid())
            .collect();
        let ledger = format!("SELECT command_id FROM ops.idempotency WHERE org_id = $1 AND {SHOWN}");
        let ledger: Vec<Uuid> =
            sqlx::query_scalar(AssertSqlSafe(ledger)).bind(org).fetch_all(&mut *database).await.unwrap();
        assert_eq!(ledger.len(), keyed.len(), "the ledger of {}", self.org);
        assert!(ledger.iter().all(|id| keyed.contains(id)), "the ledger of {}", self.org);
    }

    /// The audit log is the stream: every event once, in order, numbered from 0 without a gap, with the same bytes.
    pub(crate) async fn assert_audited(&self, database: &mut PgConnection) {
        type Row = (i64, Uuid, Uuid, i64, i32, Vec<u8>, Vec<u8>);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT idx, event_id, command_id, seq, ordinal, header, payload FROM audit.events WHERE org_id = $1
            ORDER BY idx",
        )
        .bind(self.org.uuid())
        .fetch_all(&mut *database)
        .await
        .unwrap();
        let mut expected = self.events();
        for (place, row) in rows.iter().enumerate() {
            let (idx, event_id, command_id, seq, ordinal, header, payload) = row;
            assert_eq!(*idx, i64::try_from(place).unwrap(), "the audit log of {} has a gap", self.org);
            let (at, nth, event) = expected.next().unwrap_or_else(|| panic!("{} has audited {row:?}", self.org));
            let place = (u64::try_from(*seq).unwrap(), usize::try_from(*ordinal).unwrap());
            assert_eq!(place, (at, nth), "audit event {idx} of {}", self.org);
            assert_eq!((*event_id, *command_id), (event.header.event_id.uuid(), event.header.command_id.uuid()));
            assert!(**header == event.sealed.header && **payload == event.sealed.payload, "{seq} of {}", self.org);
        }
        assert_eq!(expected.count(), 0, "events of {} are missing from the audit log", self.org);
    }

    async fn assert_records(&self, database: &mut PgConnection) {
        type Row = (Uuid, String, Value, String, i64, i64);
        let rows = format!("SELECT id, kind, data, status, version, seq FROM rm.records WHERE org_id = $1 AND {SHOWN}");
        let rows: Vec<Row> =
            sqlx::query_as(AssertSqlSafe(rows)).bind(self.org.uuid()).fetch_all(&mut *database).await.unwrap();
        let number = |value: i64| u64::try_from(value).unwrap();
        let found: BTreeMap<String, Record> = rows
            .into_iter()
            .map(|(id, kind, data, status, version, seq)| {
                let (version, seq, archived) = (number(version), number(seq), status == "archived");
                let id = orgstream_events::RecordId::from_uuid(id).to_string();
                (id, Record { kind, data, archived, version, seq })
            })
            .collect();
        let expected = self.records();
        for (id, record) in &expected {
            assert_eq!(found.get(id), Some(record), "{id} of {}", self.org);
        }
        assert_eq!(found.len(), expected.len(), "{} has records that nobody made", self.org);
    }
}

async fn count(database: &mut PgConnection, query: &str, org: Uuid) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).bind(org).fetch_one(database).await.unwrap()
}

/// A checksum over all columns of all rows, by table and organization.
pub(crate) type Digests = BTreeMap<(String, Uuid), String>;

/// The checksums of everything that the pipelines write and queries see.
pub(crate) async fn digests(database: &mut PgConnection) -> Digests {
    let mut digests = Digests::new();
    let versioned = READ_MODELS.iter().copied().filter(|model| model.from_events);
    let versioned =
        versioned.map(|model| (model.table, format!("pipeline = '{}' AND place.version = rm_version", model.pipeline)));
    let unversioned = UNVERSIONED.map(|table| (table, "pipeline = 'audit'".to_owned()));
    for (table, shown) in versioned.chain(unversioned) {
        let query = format!(
            "SELECT org_id, md5(string_agg(text, E'\\n' ORDER BY text)) FROM (
                SELECT item.org_id, (to_jsonb(item) - 'rm_version')::text AS text FROM {table} AS item
                JOIN ops.checkpoints AS place USING (org_id) WHERE active AND {shown}
            ) AS shown GROUP BY org_id"
        );
        let rows: Vec<(Uuid, String)> = sqlx::query_as(AssertSqlSafe(query)).fetch_all(&mut *database).await.unwrap();
        digests.extend(rows.into_iter().map(|(org, digest)| ((table.to_owned(), org), digest)));
    }
    digests
}
