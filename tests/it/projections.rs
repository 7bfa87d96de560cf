//! Events to rows: the effect of a batch, that it happens once, and that a replay repeats it.

use std::{sync::Arc, time::Duration};

use orgstream_events::{
    AccessEvent, AccountEvent, AccountSettled, Actor, ActorType, AggregateId, Amount, ApiKeyEvent, ApiKeyIssued,
    ApiKeyRevoked, ApiKeyRotated, BreakGlassClosed, BreakGlassId, BreakGlassOpened, BucketId, CatalogChoice,
    CatalogChoiceCleared, CatalogChoiceEvent, CatalogChoiceMade, CatalogItemEvent, CatalogItemPublished,
    CatalogItemWithdrawn, CommandId, CommitDraft, ConnectionId, Context, DomainClaimed, DomainEvent, DomainId,
    DomainProven, DomainRemoved, Draw, Event, EventSubject, Fingerprint, InvitationAccepted, InvitationEvent,
    InvitationId, InvitationIssued, InvitationResent, InvitationRevoked, KeyEnvironment, KeyId, KindChanged,
    KindDefinition, KindEvent, KindRegistered, KindRetired, MemberAdded, MemberEvent, MemberId, MemberRemoved,
    MemberRoleChanged, OrgId, OrganizationCreated, OrganizationEvent, OrganizationIdentityLinked,
    OrganizationPlanChanged, OrganizationRenamed, OrganizationResumed, OrganizationSettings,
    OrganizationSettingsChanged, OrganizationSuspended, OrganizationUpgraded, Pipeline, PlanDefinition, PlanEvent,
    PlanName, PlanPublished, RecordArchived, RecordCreated, RecordEvent, RecordId, RecordReference, RecordUpdated,
    Role, RoleChanged, RoleDefined, RoleEvent, RoleId, RoleRemoved, Salt, SearchRole, SearchedField, Shard,
    SsoConnectionAdded, SsoConnectionEvent, SsoConnectionRemoved, SsoDefaultChanged, TenantType, Timestamp, UsedBy,
    UsedFor, UserId, Visibility,
};
use orgstream_projections::{
    Applied, BatchClass, BatchStart, BoundOrg, Database, DbError, LaneLag, LowWatermark, Page, Placed, api_keys, apply,
    audit::{self, AuditFilter},
    break_glass, checkpoints, domains, idempotency, invitations, kinds, members, organizations,
    parked::{self, Park, ParkedState},
    records, roles, sso_connections,
    usage_hours::{self, Grouping, Range, Step},
};
use orgstream_transparency::leaf_hash;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::support;

pub(crate) const BIRTH: i64 = 1_700_000_000_000;
const SHARD: Shard = Shard(3);
const TTL: Duration = Duration::from_mins(1);
/// Timeout of a statement of a batch.
pub(crate) const SLICE: Duration = Duration::from_secs(5);

/// A possible stream of one org, one commit at a time. Nothing in it is random.
pub(crate) struct History {
    pub(crate) org: OrgId,
    number: u8,
    pub(crate) commits: Vec<Applied>,
}

impl History {
    pub(crate) fn new(number: u8) -> Self {
        Self { org: OrgId::fresh(BIRTH, [number; 10]), number, commits: Vec::new() }
    }

    pub(crate) fn bound(&self) -> BoundOrg {
        BoundOrg::proven_by_credential(self.org)
    }

    /// The id of the org's `nth` resource.
    pub(crate) fn command(&self, nth: u8) -> CommandId {
        CommandId::fresh(BIRTH + i64::from(nth), [nth, self.number, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    pub(crate) fn record(&self, nth: u8) -> RecordId {
        RecordId::derive(self.command(nth))
    }

    pub(crate) fn commit(&mut self, aggregate: AggregateId, version_before: u64, events: Vec<Event>) {
        let seq = 10 + 3 * self.commits.len() as u64;
        let at = Timestamp::from_unix_ms(BIRTH + i64::try_from(seq).unwrap());
        let subject = EventSubject { shard: SHARD, org: self.org, aggregate: aggregate.clone() };
        let nth = u8::try_from(self.commits.len()).unwrap();
        let draft = CommitDraft {
            org: self.org,
            aggregate,
            version_before,
            command_id: self.command(nth),
            fingerprint: nth.is_multiple_of(2).then(|| Fingerprint::of(&[&[nth]])),
            actor: Actor { actor_type: ActorType::Member, id: format!("mem_{}", nth % 3), auth: None },
            occurred_at: at,
            recorded_at: at,
            causation_id: None,
            correlation_id: None,
            request_id: None,
            context: Context::default(),
            events,
        };
        let commit = draft.seal(|| Salt([nth; 32])).unwrap().open(&subject).unwrap();
        self.commits.push(Applied { seq, commit: Arc::new(commit) });
    }

    /// Every type of event at least once, so that every table has rows.
    pub(crate) fn eventful(number: u8) -> Self {
        let mut history = Self::new(number);
        let org = history.org;
        let slug = |text: &str| format!("{text}-{number}").parse().unwrap();
        let about = |event| vec![Event::Organization(event)];
        history.commit(
            AggregateId::Organization(org),
            0,
            about(OrganizationEvent::Created(OrganizationCreated {
                name: "Acme".to_owned(),
                slug: slug("acme"),
                tenant_type: TenantType::Team,
                region: "local".to_owned(),
            })),
        );
        let member = |nth| MemberId::fresh(BIRTH, [nth; 10]);
        let user = |nth| UserId::fresh(BIRTH, [nth; 10]);
        let added = |nth, who, role| {
            let email = format!("{nth}@example.com");
            Event::Member(MemberEvent::Added(MemberAdded { member_id: member(nth), user_id: user(who), email, role }))
        };
        history.commit(AggregateId::Member(org), 0, vec![added(1, 1, Role::Owner), added(2, 2, Role::Viewer)]);
        for nth in 0..6 {
            let id = history.record(nth);
            let kind = if nth % 2 == 0 { "evaluation" } else { "trace" }.parse().unwrap();
            let (pointer, to) = ("/n".to_owned(), history.record(0));
            let reference = RecordReference { pointer, id: to, kind: "evaluation".parse().unwrap(), global: nth == 5 };
            let created = RecordCreated {
                kind,
                kind_version: 1,
                data: json!({ "n": nth, "none": null, "name": format!("the {nth}") }),
                references: vec![reference],
                unique: Vec::new(),
                searched: vec![SearchedField { field: "name".to_owned(), role: SearchRole::Title }],
                secrets: Vec::new(),
            };
            history.commit(AggregateId::Record(id), 0, vec![Event::Record(RecordEvent::Created(created))]);
        }
        let rename = OrganizationRenamed { name: "Ajax".to_owned(), slug: slug("ajax") };
        let suspended = OrganizationSuspended { reason: "unpaid".to_owned() };
        let resumed = OrganizationResumed { reason: "paid".to_owned() };
        let settings = OrganizationSettings { api_key_max_days: Some(30), ..OrganizationSettings::default() };
        history.commit(AggregateId::Organization(org), 1, about(OrganizationEvent::Renamed(rename)));
        history.commit(AggregateId::Organization(org), 2, about(OrganizationEvent::Suspended(suspended)));
        history.commit(AggregateId::Organization(org), 3, about(OrganizationEvent::Resumed(resumed)));
        let changed = OrganizationEvent::SettingsChanged(OrganizationSettingsChanged { settings, reason: None });
        history.commit(AggregateId::Organization(org), 4, about(changed));

        // The same login leaves and comes back as another member.
        let role = MemberRoleChanged { member_id: member(2), from: Role::Viewer, to: Role::Admin };
        history.commit(AggregateId::Member(org), 2, vec![Event::Member(MemberEvent::RoleChanged(role))]);
        let left = MemberEvent::Removed(MemberRemoved { member_id: member(2) });
        history.commit(AggregateId::Member(org), 3, vec![Event::Member(left), added(3, 2, Role::Member)]);

        let key = KeyId::derive(history.command(100));
        let issued = ApiKeyIssued {
            name: "CI".to_owned(),
            public_id: format!("key{number:09}").parse().unwrap(),
            secret_mac: Fingerprint::of(&[b"secret"]),
            last4: "wxyz".to_owned(),
            role: Role::Member,
            environment: KeyEnvironment::Live,
            expires_at: Some(Timestamp::from_unix_ms(BIRTH * 2)),
            scopes: Some(vec!["records:read".to_owned()]),
            allowed_ips: vec!["192.0.2.0/24".to_owned()],
            creator: None,
        };
        let rotated = |nth: u8| {
            ApiKeyEvent::Rotated(ApiKeyRotated {
                public_id: format!("key{nth}{number:08}").parse().unwrap(),
                secret_mac: Fingerprint::of(&[&[nth]]),
                last4: "rtat".to_owned(),
                previous_ends_at: Timestamp::from_unix_ms(BIRTH + i64::from(nth)),
                expires_at: None,
            })
        };
        let about = |event| vec![Event::ApiKey(event)];
        history.commit(AggregateId::ApiKey(key), 0, about(ApiKeyEvent::Issued(issued)));
        history.commit(AggregateId::ApiKey(key), 1, about(rotated(1)));
        history.commit(AggregateId::ApiKey(key), 2, about(ApiKeyEvent::Revoked(ApiKeyRevoked { reason: None })));

        let definition = |title: &str| KindDefinition {
            append_only: title.len().is_multiple_of(2),
            title: title.to_owned(),
            schema: json!({ "type": "object" }),
            visibility: Visibility::OptIn,
            cost: 2,
            views: vec![],
        };
        let kind = AggregateId::Kind("evaluation".parse().unwrap());
        let about = |event| vec![Event::Kind(event)];
        let registered = KindRegistered { definition: definition("Evaluations") };
        history.commit(kind.clone(), 0, about(KindEvent::Registered(registered)));
        let changed = KindChanged { definition: definition("Runs") };
        history.commit(kind.clone(), 1, about(KindEvent::Changed(changed)));
        history.commit(kind, 2, about(KindEvent::Retired(KindRetired {})));

        let updated = RecordUpdated {
            kind: "evaluation".parse().unwrap(),
            kind_version: 2,
            data: json!(["new", number]),
            references: vec![],
            unique: Vec::new(),
            searched: vec![],
            secrets: Vec::new(),
        };
        let archived = RecordArchived { reason: None };
        let about = |event| vec![Event::Record(event)];
        history.commit(AggregateId::Record(history.record(0)), 1, about(RecordEvent::Updated(updated)));
        history.commit(AggregateId::Record(history.record(1)), 1, about(RecordEvent::Archived(archived)));

        for (version_before, plan) in [(5, "enterprise"), (6, "gold")] {
            let changed = OrganizationPlanChanged { plan: plan.parse().unwrap() };
            let changed = Event::Organization(OrganizationEvent::PlanChanged(changed));
            history.commit(AggregateId::Organization(org), version_before, vec![changed]);
        }
        let glass = |nth: u8| {
            Event::Access(AccessEvent::BreakGlassOpened(BreakGlassOpened {
                id: BreakGlassId::derive(history.command(110 + nth)),
                reason: "ticket 7".to_owned(),
                approver: "bob".to_owned(),
                approval: None,
                expires_at: Timestamp::from_unix_ms(BIRTH * 2),
            }))
        };
        let closed = Event::Access(AccessEvent::BreakGlassClosed(BreakGlassClosed {}));
        for fact in [glass(0), glass(1), closed, glass(2)] {
            history.commit(AggregateId::Access(org), 0, vec![fact]);
        }
        let upgraded = OrganizationUpgraded { tenant_type: TenantType::Workspace };
        let upgraded = Event::Organization(OrganizationEvent::Upgraded(upgraded));
        let linked = OrganizationIdentityLinked { provider: "auth0".to_owned(), external_id: format!("org_{number}") };
        let linked = Event::Organization(OrganizationEvent::IdentityLinked(linked));
        history.commit(AggregateId::Organization(org), 7, vec![upgraded, linked]);
        history.let_in(member(3));
        history.publish();
        history.entitle();
        history.account();
        history
    }

    /// The part of it that is about plans: two versions of one.
    fn entitle(&mut self) {
        let name: PlanName = "gold".parse().unwrap();
        for version in 1..=2 {
            let definition = PlanDefinition { title: format!("Gold {version}"), ..PlanDefinition::default() };
            let published = PlanEvent::Published(PlanPublished { version, definition });
            self.commit(AggregateId::Plan(name.clone()), version - 1, vec![Event::Plan(published)]);
        }
    }

    /// The part of it that is about usage: in the last millisecond of a month and in the first of the next one, through a hold that
    /// is settled afterwards, several times for the same purpose, and for others.
    fn account(&mut self) {
        let march = Timestamp::from_unix_ms(Self::APRIL - 1);
        let april = Timestamp::from_unix_ms(Self::APRIL);
        let settled = |reserved_at, amount: &str, model: Option<&str>, key: &str| {
            let amount: Amount = amount.parse().unwrap();
            Event::Account(AccountEvent::Settled(AccountSettled {
                at: april,
                hold: None,
                reserved_at,
                meter: "tokens".parse().unwrap(),
                amount,
                draws: vec![Draw { bucket: BucketId(1), amount }],
                returned: Amount::ZERO,
                used_for: UsedFor { kind: Some("evaluation".parse().unwrap()), model: model.map(str::to_owned) },
                by: UsedBy { actor_type: ActorType::ApiKey, id: key.to_owned() },
            }))
        };
        let most = Amount::MAX.to_string();
        let together = vec![
            settled(march, "0.000001", Some("small"), "key_1"),
            settled(april, "2.5", Some("small"), "key_1"),
            settled(april, "0", None, "key_1"),
            settled(april, "0.5", Some("small"), "key_2"),
            settled(april, "1.000001", Some("small"), "key_1"),
        ];
        self.commit(AggregateId::Account(self.org), 0, together);
        // More in one hour than a bigint has.
        for before in 0..12 {
            let much = settled(march, &most, Some("large"), "key_1");
            self.commit(AggregateId::Account(self.org), 5 + before, vec![much]);
        }
    }

    /// The first millisecond of April 2026.
    const APRIL: i64 = 1_775_001_600_000;

    /// The part of it that is about the catalog: an item that came back from a withdrawal, one that did not, and choices.
    fn publish(&mut self) {
        let published = |item_version, shown_since| {
            let (kind, data) = ("model".parse().unwrap(), json!({ "n": item_version }));
            let (kind_version, record_version) = (1, item_version);
            let event = CatalogItemPublished {
                kind,
                kind_version,
                data,
                item_version,
                record_version,
                shown_since,
                searched: vec![],
            };
            vec![Event::CatalogItem(CatalogItemEvent::Published(event))]
        };
        let withdrawn = || {
            let event = CatalogItemWithdrawn { reason: "old".to_owned() };
            vec![Event::CatalogItem(CatalogItemEvent::Withdrawn(event))]
        };
        let (first, second) = (self.record(40), self.record(41));
        self.commit(AggregateId::CatalogItem(first), 0, published(1, 1));
        self.commit(AggregateId::CatalogItem(first), 1, published(2, 1));
        self.commit(AggregateId::CatalogItem(first), 2, withdrawn());
        self.commit(AggregateId::CatalogItem(first), 3, published(3, 3));
        self.commit(AggregateId::CatalogItem(second), 0, published(1, 1));
        self.commit(AggregateId::CatalogItem(second), 1, withdrawn());
        let made = |item, choice| CatalogChoiceEvent::Made(CatalogChoiceMade { item, choice });
        let cleared = CatalogChoiceEvent::Cleared(CatalogChoiceCleared { item: second });
        let choices = [made(first, CatalogChoice::Pinned), made(second, CatalogChoice::Hidden), cleared];
        for (before, event) in (0..).zip(choices) {
            self.commit(AggregateId::CatalogChoice(self.org), before, vec![Event::CatalogChoice(event)]);
        }
    }

    /// The part of it that is about joining.
    fn let_in(&mut self, member_id: MemberId) {
        let org = self.org;
        let until = Timestamp::from_unix_ms(BIRTH * 2);
        let mac = |text: &[u8], number| Fingerprint::of(&[text, &[number]]);
        let (number, role) = (self.number, RoleId::derive(self.command(103)));
        for (nth, role) in [(101, Role::Member), (102, Role::Custom(role))] {
            let invitation = AggregateId::Invitation(InvitationId::derive(self.command(nth)));
            let about = |event| vec![Event::Invitation(event)];
            let token_mac = mac(b"first token", number);
            let issued = InvitationIssued { email: "3@example.com".to_owned(), role, expires_at: until, token_mac };
            self.commit(invitation.clone(), 0, about(InvitationEvent::Issued(issued)));
            if nth == 101 {
                let resent = InvitationResent { expires_at: until, token_mac: mac(b"token", number) };
                self.commit(invitation.clone(), 1, about(InvitationEvent::Resent(resent)));
                let accepted = InvitationAccepted { member_id };
                self.commit(invitation, 2, about(InvitationEvent::Accepted(accepted)));
            } else {
                let revoked = InvitationRevoked { reason: None };
                self.commit(invitation, 1, about(InvitationEvent::Revoked(revoked)));
            }
        }
        let about = |event| vec![Event::Role(event)];
        let (name, permissions) = ("Ingest".to_owned(), vec!["records:write".to_owned()]);
        let defined = RoleDefined { role_id: role, name: name.clone(), permissions: vec![] };
        self.commit(AggregateId::Role(org), 0, about(RoleEvent::Defined(defined)));
        let changed = RoleChanged { role_id: role, name, permissions };
        self.commit(AggregateId::Role(org), 1, about(RoleEvent::Changed(changed)));
        self.commit(AggregateId::Role(org), 2, about(RoleEvent::Removed(RoleRemoved { role_id: role })));

        let connection = |nth| ConnectionId::derive(self.command(nth));
        let added = |nth| {
            Event::SsoConnection(SsoConnectionEvent::Added(SsoConnectionAdded {
                connection_id: connection(nth),
                name: format!("Issuer {nth}"),
                issuer: "https://issuer.example".to_owned(),
                audience: format!("audience {nth}"),
                jit: nth == 104,
            }))
        };
        let default = |nth| SsoDefaultChanged { connection_id: connection(nth) };
        let default = |nth| Event::SsoConnection(SsoConnectionEvent::DefaultChanged(default(nth)));
        let removed = SsoConnectionRemoved { connection_id: connection(105) };
        let removed = Event::SsoConnection(SsoConnectionEvent::Removed(removed));
        let (three, then) = (vec![added(104), added(105), added(106)], vec![default(104), default(105)]);
        self.commit(AggregateId::SsoConnection(org), 0, three);
        self.commit(AggregateId::SsoConnection(org), 3, then);
        self.commit(AggregateId::SsoConnection(org), 5, vec![removed]);

        for (name, proven) in [("acme.example", true), ("globex.example", false)] {
            let domain: orgstream_events::DomainName = name.parse().unwrap();
            let about = |event| vec![Event::Domain(event)];
            let id = AggregateId::Domain(DomainId::of(org, &domain));
            let claimed = DomainClaimed { domain: domain.clone(), challenge: format!("challenge {number}") };
            self.commit(id.clone(), 0, about(DomainEvent::Claimed(claimed)));
            let then = if proven {
                DomainEvent::Proven(DomainProven { domain })
            } else {
                DomainEvent::Removed(DomainRemoved { domain })
            };
            self.commit(id, 1, about(then));
        }
    }

    /// Applies everything to one pipeline, in batches of `size` commits.
    pub(crate) async fn apply(&self, db: &Database, pipeline: Pipeline, epoch: u64, size: usize) {
        let mut from = None;
        for slice in self.commits.chunks(size) {
            let to = slice.last().unwrap().seq;
            let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
            let start = tx.open(self.bound(), pipeline, SHARD, epoch, from, to).await.unwrap();
            assert_eq!(start, BatchStart::Open { parked: false });
            apply(&mut tx, self.bound(), slice).await.unwrap();
            tx.commit().await.unwrap();
            from = Some(to);
        }
    }
}

/// Acquires the lease of the shard that these tests use.
pub(crate) async fn lease(db: &Database) -> u64 {
    db.acquire_lease(SHARD, Uuid::max(), TTL).await.unwrap().unwrap().epoch
}

/// Every read-model row of every org, as text.
async fn rows(owner_url: &str) -> Vec<String> {
    let mut owner = PgConnection::connect(owner_url).await.unwrap();
    let mut rows = Vec::new();
    for table in [
        "ops.plans",
        "rm.organizations",
        "rm.slugs",
        "rm.members",
        "rm.invitations",
        "rm.roles",
        "rm.domains",
        "rm.sso_connections",
        "rm.api_keys",
        "rm.kinds",
        "rm.records",
        "rm.record_fields",
        "rm.record_references",
        "rm.catalog_items",
        "rm.catalog_versions",
        "rm.catalog_choices",
        "rm.break_glasses",
        "rm.plans",
        "rm.usage_hours",
        "rm.quota_uses",
        "ops.idempotency",
    ] {
        let query = format!("SELECT '{table} ' || to_jsonb(r)::text FROM {table} AS r ORDER BY 1");
        let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut owner).await.unwrap();
        assert!(!found.is_empty(), "the history leaves {table} empty");
        rows.extend(found);
    }
    rows
}

#[tokio::test]
async fn a_replay_gives_the_same_rows_however_it_is_sliced() {
    let mut before = None;
    for size in [1, 3, 100] {
        let database = support::database().await;
        let epoch = lease(&database.db).await;
        for history in [History::eventful(1), History::eventful(2)] {
            history.apply(&database.db, Pipeline::ReadModels, epoch, size).await;
        }
        let rows = rows(&database.owner_url).await;
        assert_eq!(before.get_or_insert(rows.clone()), &rows, "slices of {size}");
    }
}

// Usage is in the month of its reservation to the millisecond, and days are their hours.
#[tokio::test]
async fn usage_is_in_the_hour_in_which_it_was_reserved_and_sums_are_exact() {
    let database = support::database().await;
    let db = &database.db;
    let history = History::eventful(1);
    history.apply(db, Pipeline::ReadModels, lease(db).await, 4).await;
    let mut tx = db.read(history.bound()).await.unwrap();
    let (april, day) = (History::APRIL, Step::Day.ms());
    let mut series = async |from: i64, to: i64, step, grouping| {
        let [from, to] = [from, to].map(Timestamp::from_unix_ms);
        let rows = usage_hours::series(&mut tx, Range { from, to, step }, grouping, 100).await.unwrap();
        rows.iter()
            .map(|row| {
                let by = row.by.as_ref().map_or("-", |by| by.id.as_str());
                let model = row.model.as_deref().unwrap_or("-");
                format!("{} {} {model} {by} {} {}", row.at, row.meter, row.amount, row.uses)
            })
            .collect::<Vec<_>>()
    };
    let none = Grouping::default();
    let march = "tokens - - 12000000000000.000001 13";
    let in_march = |begin: &str| format!("{begin} {march}");
    assert_eq!(
        series(april - day, april, Step::Hour, none).await,
        [in_march("2026-03-31T23:00:00.000Z")],
        "the last hour of March"
    );
    assert_eq!(series(april - day, april, Step::Day, none).await, [in_march("2026-03-31T00:00:00.000Z")]);
    let first = "2026-04-01T00:00:00.000Z tokens - - 4.000001 4".to_owned();
    for step in [Step::Hour, Step::Day] {
        assert_eq!(series(april, april + day, step, none).await, std::slice::from_ref(&first));
    }
    assert_eq!(series(april - 30 * day, april + day, Step::Day, none).await.len(), 2);
    assert_eq!(series(april + day, april + 2 * day, Step::Hour, none).await, [] as [String; 0]);
    let all = Grouping { kind: true, model: true, principal: true };
    assert_eq!(
        series(april, april + day, Step::Hour, all).await,
        [
            "2026-04-01T00:00:00.000Z tokens small key_1 3.500001 2",
            "2026-04-01T00:00:00.000Z tokens small key_2 0.5 1",
            "2026-04-01T00:00:00.000Z tokens - key_1 0 1",
        ]
    );
    let other = History::new(9);
    let mut tx = db.read(other.bound()).await.unwrap();
    let [from, to] = [april - day, april + day].map(Timestamp::from_unix_ms);
    let range = Range { from, to, step: Step::Day };
    assert_eq!(usage_hours::series(&mut tx, range, all, 100).await.unwrap(), []);
}

#[tokio::test]
async fn the_rows_say_what_the_events_said() {
    let database = support::database().await;
    let db = &database.db;
    let history = History::eventful(1);
    history.apply(db, Pipeline::ReadModels, lease(db).await, 4).await;
    let mut tx = db.read(history.bound()).await.unwrap();

    let org = organizations::get(&mut tx).await.unwrap().unwrap();
    assert_eq!((org.name.as_str(), org.slug.as_str(), org.version), ("Ajax", "ajax-1", 9));
    assert_eq!(org.external_id.as_deref(), Some("org_1"));
    assert_eq!(org.tenant_type, TenantType::Workspace);
    assert_eq!(org.plan.as_str(), "gold");
    assert_eq!((org.suspended_reason, org.settings.api_key_max_days), (None, Some(30)));

    let active = members::list(&mut tx, false, None, &Page::First, 10).await.unwrap().rows;
    let mut emails: Vec<_> = active.iter().map(|member| member.email.as_str()).collect();
    emails.sort_unstable();
    assert_eq!(emails, ["1@example.com", "3@example.com"]);
    let all = members::list(&mut tx, true, None, &Page::First, 10).await.unwrap().rows;
    let left = all.iter().find(|member| !member.active).unwrap();
    assert_eq!(left.role, Role::Admin);
    let back = members::get_by_user(&mut tx, left.user_id).await.unwrap().unwrap();
    assert_eq!((back.role, back.email.as_str()), (Role::Member, "3@example.com"));
    assert_eq!(members::get(&mut tx, left.id).await.unwrap().as_ref(), Some(left));

    let found = members::list(&mut tx, false, Some("3@EXAMPLE.com"), &Page::First, 10).await.unwrap().rows;
    assert_eq!(found, [back]);

    let invited = invitations::list(&mut tx, &Page::First, 10).await.unwrap().rows;
    let what: Vec<_> = invited.iter().map(|one| (one.status, one.role, one.member_id, one.version)).collect();
    let role = RoleId::derive(history.command(103));
    assert_eq!(
        what,
        [
            (invitations::InvitationStatus::Revoked, Role::Custom(role), None, 2),
            (invitations::InvitationStatus::Accepted, Role::Member, Some(found[0].id), 3),
        ]
    );
    assert_eq!(invitations::get(&mut tx, invited[0].id).await.unwrap().as_ref(), Some(&invited[0]));
    let by_token = invitations::get_by_token(&mut tx, &Fingerprint::of(&[b"token", &[1]])).await.unwrap();
    assert_eq!(by_token.as_ref(), Some(&invited[1]));
    assert_eq!(roles::list(&mut tx, &Page::First, 10).await.unwrap().rows, []);
    let role = roles::get(&mut tx, role).await.unwrap().unwrap();
    assert_eq!((role.active, role.permissions.as_slice()), (false, ["records:write".to_owned()].as_slice()));
    let connections = sso_connections::list(&mut tx, &Page::First, 10).await.unwrap().rows;
    let names: Vec<_> = connections.iter().map(|one| (one.name.as_str(), one.is_default, one.jit)).collect();
    // The default was removed, so there is none.
    assert_eq!(names, [("Issuer 106", false, false), ("Issuer 104", false, true)]);
    assert_eq!(sso_connections::get(&mut tx, connections[1].id).await.unwrap().as_ref(), Some(&connections[1]));
    assert_eq!(sso_connections::of_issuer(&mut tx, "https://issuer.example").await.unwrap().len(), 2);
    assert_eq!(sso_connections::version(&mut tx).await.unwrap(), 6);
    let domains = domains::list(&mut tx, &Page::First, 10).await.unwrap().rows;
    assert_eq!(domains.len(), 1, "{domains:?}");
    assert_eq!((domains[0].domain.as_str(), domains[0].status), ("acme.example", domains::DomainStatus::Proven));
    assert_eq!(domains::get(&mut tx, domains[0].id).await.unwrap().as_ref(), Some(&domains[0]));

    let keys = api_keys::list(&mut tx, None, &Page::First, 10).await.unwrap().rows;
    assert_eq!(keys[0].revoked_at, Some(keys[0].updated_at));
    assert_eq!(api_keys::get(&mut tx, keys[0].id).await.unwrap().as_ref(), Some(&keys[0]));
    let by_name = api_keys::get_by_public_id(&mut tx, &keys[0].public_id).await.unwrap();
    assert_eq!(by_name.as_ref(), Some(&keys[0]));
    let previous = keys[0].previous.as_ref().unwrap();
    assert_eq!((keys[0].public_id.as_str(), previous.public_id.as_str()), ("key100000001", "key000000001"));
    assert_eq!((keys[0].expires_at, previous.secret_mac), (None, Fingerprint::of(&[b"secret"])));
    assert_eq!(keys[0].scopes.as_deref(), Some(&["records:read".to_owned()][..]));
    assert_eq!(keys[0].allowed_ips, ["192.0.2.0/24"]);
    let by_old_name = api_keys::get_by_public_id(&mut tx, &previous.public_id).await.unwrap();
    assert_eq!(by_old_name.as_ref(), Some(&keys[0]));

    // It is open to the operator that opened it, and to no other.
    let mut open = Vec::new();
    for operator in ["mem_0", "mem_1", "mem_2"] {
        open.extend(break_glass::open(&mut tx, operator, Timestamp::from_unix_ms(BIRTH)).await.unwrap());
        assert_eq!(break_glass::open(&mut tx, operator, Timestamp::from_unix_ms(BIRTH * 2)).await.unwrap(), None);
    }
    let id = BreakGlassId::derive(history.command(112));
    assert_eq!(open.iter().map(|glass| glass.id).collect::<Vec<_>>(), [id]);
    assert!(break_glass::was_open(&mut tx, id).await.unwrap());
    assert!(!break_glass::was_open(&mut tx, BreakGlassId::derive(history.command(119))).await.unwrap());

    let kinds = kinds::list(&mut tx).await.unwrap();
    assert_eq!((kinds[0].definition.title.as_str(), kinds[0].retired, kinds[0].version), ("Runs", true, 3));

    let record = records::get(&mut tx, history.record(0)).await.unwrap().unwrap();
    assert_eq!((record.data, record.kind_version, record.version), (json!(["new", 1]), 2, 2));
    assert_eq!(record.created_by.id, "mem_2");
    assert!(records::get(&mut tx, history.record(1)).await.unwrap().unwrap().archived);

    let commands = [history.command(0), history.command(1), history.command(2)];
    let mut done = idempotency::find(&mut tx, &commands).await.unwrap();
    done.sort_by_key(|done| done.seq);
    assert_eq!(done.iter().map(|done| done.command_id).collect::<Vec<_>>(), [commands[0], commands[2]]);
    assert_eq!(done[0].aggregate, AggregateId::Organization(history.org));
    assert_eq!(done[0].fingerprint, Fingerprint::of(&[&[0]]));
}

#[tokio::test]
async fn pages_meet_in_both_directions() {
    let database = support::database().await;
    let db = &database.db;
    let history = History::eventful(1);
    history.apply(db, Pipeline::ReadModels, lease(db).await, 100).await;
    let mut tx = db.read(history.bound()).await.unwrap();

    let all = records::list(&mut tx, None, true, &Page::First, 10).await.unwrap();
    assert_eq!((all.rows.len(), all.more), (6, false));
    let first = records::list(&mut tx, None, true, &Page::First, 4).await.unwrap();
    assert_eq!((&first.rows[..], first.more), (&all.rows[..4], true));
    let rest = records::list(&mut tx, None, true, &Page::After(first.rows[3].place()), 4).await.unwrap();
    assert_eq!((&rest.rows[..], rest.more), (&all.rows[4..], false));
    let back = records::list(&mut tx, None, true, &Page::Before(rest.rows[0].place()), 3).await.unwrap();
    assert_eq!((&back.rows[..], back.more), (&all.rows[1..4], true));

    assert_eq!(records::list(&mut tx, None, false, &Page::First, 10).await.unwrap().rows.len(), 5);
    let traces = records::list(&mut tx, Some(&"trace".parse().unwrap()), true, &Page::First, 10).await.unwrap();
    assert_eq!(traces.rows.len(), 3);
}

#[tokio::test]
async fn a_slice_is_applied_once() {
    let database = support::database().await;
    let db = &database.db;
    let epoch = lease(db).await;
    let history = History::eventful(1);
    let org = history.bound();
    let (first, second) = (history.commits[0].seq, history.commits[1].seq);
    let pipeline = Pipeline::Audit;

    // Dropped, not committed: nothing happened.
    let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
    assert_eq!(tx.open(org, pipeline, SHARD, epoch, None, first).await.unwrap(), BatchStart::Open { parked: false });
    apply(&mut tx, org, &history.commits[..1]).await.unwrap();
    drop(tx);

    let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
    assert_eq!(tx.open(org, pipeline, SHARD, epoch, Some(0), first).await.unwrap(), BatchStart::Open { parked: false });
    apply(&mut tx, org, &history.commits[..1]).await.unwrap();
    tx.commit().await.unwrap();

    // A redelivery, or a stale checkpoint: moved, and closed to every write.
    for from in [None, Some(0), Some(first - 1)] {
        let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
        let moved = BatchStart::Moved { stored_seq: first };
        assert_eq!(tx.open(org, pipeline, SHARD, epoch, from, first).await.unwrap(), moved);
        let refused = apply(&mut tx, org, &history.commits[..1]).await.unwrap_err();
        assert!(matches!(refused, DbError::NotOpen(_)), "{refused}");
        tx.commit().await.unwrap();
    }

    // Under an epoch that is over: fenced.
    let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
    let fenced = tx.open(org, pipeline, SHARD, epoch + 1, Some(first), second).await.unwrap();
    assert_eq!(fenced, BatchStart::Fenced);
    drop(tx);

    let mut tx = db.read(org).await.unwrap();
    assert_eq!(checkpoints::position(&mut tx, pipeline).await.unwrap(), first);
    assert_eq!(audit::size(&mut tx).await.unwrap(), history.commits[0].commit.events.len() as u64);
}

#[tokio::test]
async fn a_slice_takes_only_its_own_org_and_pipeline() {
    let database = support::database().await;
    let db = &database.db;
    let epoch = lease(db).await;
    let (a, b) = (History::eventful(1), History::eventful(2));
    let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
    tx.open(a.bound(), Pipeline::ReadModels, SHARD, epoch, None, 10).await.unwrap();
    assert!(matches!(apply(&mut tx, b.bound(), &b.commits[..1]).await, Err(DbError::NotOpen(_))));
    let audit = audit::apply(&mut tx, a.bound(), &a.commits[..1]).await;
    assert!(matches!(audit, Err(DbError::NotOpen(_))));
}

#[tokio::test]
async fn a_change_of_nothing_is_an_error_and_undoes_its_slice() {
    let database = support::database().await;
    let db = &database.db;
    let epoch = lease(db).await;
    let history = History::eventful(1);
    // The creation of everything was given up; its changes follow.
    for late in &history.commits[8..] {
        // Neither a creation nor an access event, which has no version, changes a row that must exist; nor does a choice, a version of
        // a plan, or usage.
        let is_whole = |event: &Event| matches!(event, Event::CatalogChoice(_) | Event::Plan(_) | Event::Account(_));
        let birth =
            late.commit.events.iter().any(|event| event.header.aggregate.version <= 1 || is_whole(&event.event));
        let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
        tx.open(history.bound(), Pipeline::ReadModels, SHARD, epoch, None, late.seq).await.unwrap();
        let applied = apply(&mut tx, history.bound(), std::slice::from_ref(late)).await;
        assert_eq!(matches!(applied, Err(DbError::RowsMissing { .. })), !birth, "{applied:?}");
    }
    let mut tx = db.read(history.bound()).await.unwrap();
    assert_eq!(checkpoints::all(&mut tx).await.unwrap(), []);
}

#[tokio::test]
async fn the_audit_log_is_dense_and_keeps_the_bytes() {
    let database = support::database().await;
    let db = &database.db;
    let epoch = lease(db).await;
    let (a, b) = (History::eventful(1), History::eventful(2));
    a.apply(db, Pipeline::Audit, epoch, 3).await;
    b.apply(db, Pipeline::Audit, epoch, 100).await;
    for history in [&a, &b] {
        let events: Vec<_> = history.commits.iter().flat_map(|applied| &applied.commit.events).collect();
        let mut tx = db.read(history.bound()).await.unwrap();
        let log = audit::from_idx(&mut tx, 0, 1000).await.unwrap().entries;
        assert_eq!(log.len(), events.len());
        for (nth, (entry, event)) in log.iter().zip(&events).enumerate() {
            assert_eq!(entry.idx, nth as u64);
            assert_eq!(entry.sealed, event.sealed);
            assert_eq!(entry.leaf, leaf_hash(&event.sealed.header));
            assert_eq!(entry.view().unwrap().header, event.header);
        }
        assert_eq!(audit::size(&mut tx).await.unwrap(), events.len() as u64);
        assert_eq!(audit::get(&mut tx, log[5].event_id).await.unwrap().as_ref(), Some(&log[5]));
        let seq = history.commits[4].seq;
        let first = audit::first_from(&mut tx, seq).await.unwrap();
        assert_eq!(first, log.iter().find(|entry| entry.seq >= seq).map(|entry| entry.idx));

        let newest = audit::list(&mut tx, &AuditFilter::default(), &Page::First, 3).await.unwrap();
        assert_eq!(newest.rows[0].idx, events.len() as u64 - 1);
        let newer = audit::list(&mut tx, &AuditFilter::default(), &Page::Before(2), 2).await.unwrap();
        assert_eq!(newer.rows.iter().map(Placed::place).collect::<Vec<_>>(), [4, 3]);
        let filter = AuditFilter {
            action: Some("record.created".to_owned()),
            actor_type: Some(ActorType::Member),
            actor_id: Some("mem_2".to_owned()),
            since: Some(Timestamp::from_unix_ms(BIRTH)),
            until: Some(Timestamp::from_unix_ms(BIRTH + 25)),
            ..AuditFilter::default()
        };
        let found = audit::list(&mut tx, &filter, &Page::First, 10).await.unwrap();
        assert_eq!(found.rows.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [16]);
        let target = AuditFilter { target_id: Some(history.record(0).to_string()), ..AuditFilter::default() };
        assert_eq!(audit::list(&mut tx, &target, &Page::First, 10).await.unwrap().rows.len(), 2);
    }
}

#[tokio::test]
async fn parked_messages_wait_in_order_until_they_are_taken_out() {
    let database = support::database().await;
    let db = &database.db;
    let epoch = lease(db).await;
    let history = History::new(1);
    let org = history.bound();
    let subject = format!("ev.3.{}.record.{}", org.org(), history.record(1));
    let other = format!("ev.3.{}.record.{}", org.org(), history.record(2));
    let (message, verified, expected): (&[u8], _, _) = (&[1, 2], true, None);
    let park =
        |seq, subject, state, reason| Park { seq, subject, message, verified, expected, state, reason, attempts: 1 };

    let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
    tx.open(org, Pipeline::ReadModels, SHARD, epoch, None, 30).await.unwrap();
    let messages = [
        park(20, &subject, ParkedState::Waiting, ""),
        park(10, &subject, ParkedState::Failed, "cannot decode \0 the payload"),
        park(15, &other, ParkedState::Failed, "no"),
    ];
    parked::park(&mut tx, org, &messages).await.unwrap();
    tx.commit().await.unwrap();

    // The next batch is informed, and finds them.
    let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
    let start = tx.open(org, Pipeline::ReadModels, SHARD, epoch, Some(30), 40).await.unwrap();
    assert_eq!(start, BatchStart::Open { parked: true });
    let aggregate = AggregateId::Record(history.record(1)).to_string();
    assert!(parked::aggregates(&mut tx, org).await.unwrap().contains(&aggregate));
    let waiting = parked::of_aggregate(&mut tx, org, &aggregate.as_str().into(), 10).await.unwrap();
    assert_eq!(waiting.iter().map(|message| message.parked.seq).collect::<Vec<_>>(), [10, 20]);
    assert_eq!(waiting[0].message, [1, 2]);
    assert_eq!(waiting[0].parked.reason, "cannot decode   the payload");

    // Retried in vain, then given up.
    parked::park(&mut tx, org, &[park(10, &subject, ParkedState::Failed, "still")]).await.unwrap();
    let waiting = parked::of_aggregate(&mut tx, org, &aggregate.as_str().into(), 10).await.unwrap();
    assert_eq!((waiting[0].parked.attempts, waiting[0].parked.reason.as_str()), (2, "still"));
    assert_eq!(parked::remove(&mut tx, org, &[10, 20]).await.unwrap(), 2);
    tx.commit().await.unwrap();

    let mut tx = db.read(org).await.unwrap();
    let left = parked::list(&mut tx, None, 10).await.unwrap();
    assert_eq!(
        left.iter().map(|parked| (parked.pipeline, parked.seq)).collect::<Vec<_>>(),
        [(Pipeline::ReadModels, 15)]
    );
    assert_eq!(parked::list(&mut tx, Some((Pipeline::ReadModels, 15)), 10).await.unwrap(), []);
    drop(tx);

    // Another pipeline is not affected.
    let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
    let start = tx.open(org, Pipeline::Audit, SHARD, epoch, None, 40).await.unwrap();
    assert_eq!(start, BatchStart::Open { parked: false });
}

#[tokio::test]
async fn a_shard_has_one_owner_and_every_change_of_owner_a_new_epoch() {
    let database = support::database().await;
    let db = &database.db;
    let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let lease = db.acquire_lease(SHARD, one, TTL).await.unwrap().unwrap();
    assert_eq!(db.acquire_lease(SHARD, other, TTL).await.unwrap(), None);
    assert_eq!(db.acquire_lease(SHARD, one, TTL).await.unwrap().unwrap().epoch, lease.epoch);
    assert_eq!(db.renew_leases(one, TTL).await.unwrap().len(), 1);
    assert_eq!(db.renew_leases(other, TTL).await.unwrap(), []);

    let org = History::new(1).org;
    let mark = LowWatermark { seq: 7, catching_up: vec![(org, Pipeline::ReadModels), (org, Pipeline::Audit)] };
    let mut marks = db.watermark_writer().await.unwrap();
    assert!(marks.write(SHARD, lease.epoch, &mark).await.unwrap());
    assert_eq!(db.low_watermark(SHARD).await.unwrap(), mark);

    // Released, and acquired by another: the first one's running batches are rejected.
    assert!(db.release_lease(SHARD, one, lease.epoch).await.unwrap());
    assert!(!db.release_lease(SHARD, one, lease.epoch).await.unwrap());
    let next = db.acquire_lease(SHARD, other, Duration::ZERO).await.unwrap().unwrap();
    assert!(next.epoch > lease.epoch);
    assert!(!marks.write(SHARD, lease.epoch, &LowWatermark::default()).await.unwrap());
    assert_eq!(db.low_watermark(SHARD).await.unwrap(), mark);

    // A pipeline without a low watermark has applied nothing, and one of a newer version is none of this one.
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    for (pipeline, at) in Pipeline::ALL.into_iter().zip(1_i64..) {
        let lower = sqlx::query("UPDATE ops.low_watermarks SET seq = $2, epoch = 0 WHERE pipeline = $1");
        lower.bind(pipeline.name()).bind(at).execute(&mut owner).await.unwrap();
    }
    let newer = "INSERT INTO ops.low_watermarks VALUES (3, 'newer', 0, 1, ARRAY[gen_random_uuid()])";
    sqlx::raw_sql(newer).execute(&mut owner).await.unwrap();
    let lowest = LowWatermark { seq: 1, ..mark.clone() };
    assert_eq!(db.low_watermark(SHARD).await.unwrap(), lowest);
    let away = "DELETE FROM ops.low_watermarks WHERE pipeline = 'read_models'";
    sqlx::raw_sql(away).execute(&mut owner).await.unwrap();
    let begins = LowWatermark { seq: 0, catching_up: vec![(org, Pipeline::Audit)] };
    assert_eq!(db.low_watermark(SHARD).await.unwrap(), begins);

    // Expired: any worker may acquire it.
    let last = db.acquire_lease(SHARD, one, TTL).await.unwrap().unwrap();
    assert!(last.epoch > next.epoch);
    assert_eq!(db.leases().await.unwrap(), [last]);

    let lag = |age_ms| LaneLag {
        standing_ms: None,
        org: OrgId::fresh(BIRTH, [1; 10]),
        pipeline: Pipeline::Audit,
        oldest: 7,
        waiting: 3,
        age_ms,
        catching_up: false,
    };
    db.announce_worker(one, &[lag(1)]).await.unwrap();
    db.announce_worker(one, &[lag(30), lag(10)]).await.unwrap();
    db.announce_worker(other, &[lag(20)]).await.unwrap();
    assert_eq!(db.lagging_lanes(TTL).await.unwrap(), [30, 20, 10].map(lag));
    assert_eq!(db.live_workers(TTL).await.unwrap(), [one, other]);
    db.retire_worker(one).await.unwrap();
    assert_eq!(db.live_workers(TTL).await.unwrap(), [other]);
}

#[tokio::test]
async fn a_fact_that_comes_twice_is_in_the_audit_log_once_and_leaves_no_gap() {
    let database = support::database().await;
    let db = &database.db;
    let epoch = lease(db).await;
    let mut history = History::new(1);
    let access = AggregateId::Access(history.org);
    let closed = || vec![Event::Access(AccessEvent::BreakGlassClosed(BreakGlassClosed {}))];
    for _ in 0..3 {
        history.commit(access.clone(), 0, closed());
    }
    // Late duplicates of the first: one in the batch of the original, one in a later batch.
    for at in [1, 4] {
        let copy = Applied { seq: 0, commit: Arc::clone(&history.commits[0].commit) };
        history.commits.insert(at, copy);
    }
    for (place, applied) in history.commits.iter_mut().enumerate() {
        applied.seq = 10 + place as u64;
    }
    for pipeline in Pipeline::ALL {
        history.apply(db, pipeline, epoch, 3).await;
    }
    let mut tx = db.read(history.bound()).await.unwrap();
    let log = audit::from_idx(&mut tx, 0, 10).await.unwrap().entries;
    assert_eq!(log.iter().map(|entry| (entry.idx, entry.seq)).collect::<Vec<_>>(), [(0, 10), (1, 12), (2, 13)]);
    assert_eq!(audit::size(&mut tx).await.unwrap(), 3);
    assert_eq!(checkpoints::position(&mut tx, Pipeline::Audit).await.unwrap(), 14);
}

#[tokio::test]
async fn the_token_before_the_last_rotation_is_the_previous_one() {
    let mut before = None;
    for size in [1, 2, 3, 100] {
        let database = support::database().await;
        let db = &database.db;
        let mut history = History::new(1);
        let key = AggregateId::ApiKey(KeyId::derive(history.command(100)));
        let issued = ApiKeyIssued {
            name: "CI".to_owned(),
            public_id: "key000000001".parse().unwrap(),
            secret_mac: Fingerprint::of(&[b"secret"]),
            last4: "wxyz".to_owned(),
            role: Role::Member,
            environment: KeyEnvironment::Live,
            expires_at: None,
            scopes: None,
            allowed_ips: Vec::new(),
            creator: None,
        };
        history.commit(key.clone(), 0, vec![Event::ApiKey(ApiKeyEvent::Issued(issued))]);
        for nth in 1..4_u8 {
            let rotated = ApiKeyRotated {
                public_id: format!("key{nth}00000001").parse().unwrap(),
                secret_mac: Fingerprint::of(&[&[nth]]),
                last4: "rtat".to_owned(),
                previous_ends_at: Timestamp::from_unix_ms(BIRTH + i64::from(nth)),
                expires_at: None,
            };
            history.commit(key.clone(), u64::from(nth), vec![Event::ApiKey(ApiKeyEvent::Rotated(rotated))]);
        }
        history.apply(db, Pipeline::ReadModels, lease(db).await, size).await;
        let mut tx = db.read(history.bound()).await.unwrap();
        let row = api_keys::list(&mut tx, None, &Page::First, 10).await.unwrap().rows.remove(0);
        let previous = row.previous.as_ref().unwrap();
        assert_eq!((row.public_id.as_str(), previous.public_id.as_str()), ("key300000001", "key200000001"));
        assert_eq!(previous.ends_at, Timestamp::from_unix_ms(BIRTH + 3));
        assert_eq!(before.get_or_insert(row.clone()), &row, "slices of {size}");
    }
}
