//! The persistent bytes: golden files for every event version, round trips, and hostile input.
#![cfg(test)]

use std::{collections::BTreeSet, fs, num::NonZeroU32, path::PathBuf};

use orgstream_events::{
    AccessDenied, AccessEvent, AccountAllowanceChanged, AccountBucketClosed, AccountEvent, AccountExtended,
    AccountGranted, AccountHoldsExpired, AccountReleased, AccountReserved, AccountSettled, AccountThresholdCrossed,
    AccountTopUpChanged, AccountTopUpDeclined, AccountTopUpPaid, AccountTopUpRequested, Actor, ActorType, AggregateId,
    Amount, ApiKeyEvent, ApiKeyIssued, ApiKeyRevoked, ApiKeyRotated, Approval, AuditExported, AuditRead, Auth,
    AuthMethod, Branding, BreakGlassApproved, BreakGlassClosed, BreakGlassId, BreakGlassOpened, BreakGlassUsed,
    BucketId, BucketSource, CatalogChoice, CatalogChoiceCleared, CatalogChoiceEvent, CatalogChoiceMade,
    CatalogItemEvent, CatalogItemPublished, CatalogItemWithdrawn, Chain, CodecError, CommandId, Commit, CommitDraft,
    CommitKeys, ConnectionId, Context, DeletionCompleted, DeletionEvent, Direction, DomainClaimed, DomainEvent,
    DomainId, DomainProven, DomainRemoved, Draw, Event, EventSubject, ExpiredHold, Fingerprint, HoldId,
    InvitationAccepted, InvitationEvent, InvitationId, InvitationIssued, InvitationResent, InvitationRevoked,
    InvitePolicy, InvoiceBillingEnded, InvoiceCustomerLinked, InvoiceCustomerReleased, InvoiceEvent, InvoiceFinalized,
    InvoiceLine, InvoiceLineType, InvoiceNumber, InvoiceOpened, InvoicePaid, InvoicePushed, InvoiceVoided,
    InvoiceWithdrawn, IsolationFailed, JitProvisioning, KNOWN_EVENTS, KeyEnvironment, KeyId, KeyRefused, KindChanged,
    KindDefinition, KindEvent, KindRegistered, KindRestored, KindRetired, LoginMethod, MAX_COMMIT_BYTES, MemberAdded,
    MemberEvent, MemberId, MemberRemoved, MemberRoleChanged, MessageParked, MessageSettled, MeterName, MeterTerms,
    MfaPolicy, NatsCredentialsIssued, OpenedCommit, OrgId, OrgSwitched, OrganizationCreated,
    OrganizationDeletionCancelled, OrganizationDeletionRequested, OrganizationEvent, OrganizationIdentityLinked,
    OrganizationLimits, OrganizationLimitsChanged, OrganizationPlanChanged, OrganizationRenamed, OrganizationResumed,
    OrganizationSealed, OrganizationSettings, OrganizationSettingsChanged, OrganizationSuspended, OrganizationUpgraded,
    OutcomeStatus, ParkedEventsRetried, ParkedEventsSkipped, ParkingEvent, Pipeline, PlanDefinition, PlanEvent,
    PlanLimits, PlanPublished, PlanVersion, QuotaCounted, QuotaEvent, QuotaName, Quotas, RecordAppended,
    RecordArchived, RecordCreated, RecordEvent, RecordId, RecordLogEvent, RecordLogId, RecordReference, RecordSecret,
    RecordUpdated, Role, RoleChanged, RoleDefined, RoleEvent, RoleId, RoleRemoved, Salt, SearchRole, SearchedField,
    SecretId, SecretUsed, Settlement, Shard, SignedIn, SsoConnectionAdded, SsoConnectionEvent, SsoConnectionRemoved,
    SsoDefaultChanged, TenantType, Timestamp, TopUpId, TopUpRule, UniqueField, UniqueValueEvent, UniqueValueId,
    UniqueValueReleased, UniqueValueTaken, UsedBy, UsedFor, UserId, Visibility,
};
use proptest::prelude::*;
use serde_json::json;

fn command() -> CommandId {
    CommandId::fresh(1_700_000_000_000, [5; 10])
}

fn org() -> OrgId {
    OrgId::fresh(1_700_000_000_000, [1; 10])
}

fn member() -> MemberId {
    MemberId::fresh(1_700_000_000_000, [2; 10])
}

/// Returns one example of every event, with the aggregate it belongs to.
fn examples() -> Vec<(AggregateId, Event)> {
    let slug = |text: &str| text.parse().unwrap();
    let kind = |text: &str| text.parse().unwrap();
    let record = AggregateId::Record(RecordId::fresh(1_700_000_000_000, [3; 10]));
    let key = AggregateId::ApiKey(KeyId::fresh(1_700_000_000_000, [4; 10]));
    let definition = KindDefinition {
        title: "Evaluation".to_owned(),
        schema: json!({"type": "object", "required": ["score"]}),
        visibility: Visibility::Private,
        cost: 1,
        views: vec![],
        append_only: false,
    };
    let organization = |event| (AggregateId::Organization(org()), Event::Organization(event));
    let member_event = |event| (AggregateId::Member(org()), Event::Member(event));
    let access = |event| (AggregateId::Access(org()), Event::Access(event));
    let route = || "GET /v1/organizations/{org}/records".to_owned();
    let glass = BreakGlassId::fresh(1_700_000_000_000, [6; 10]);
    let role = RoleId::fresh(1_700_000_000_000, [6; 10]);
    let invitation = |event| {
        let id = InvitationId::fresh(1_700_000_000_000, [5; 10]);
        (AggregateId::Invitation(id), Event::Invitation(event))
    };
    let role_event = |event| (AggregateId::Role(org()), Event::Role(event));
    let domain: orgstream_events::DomainName = "acme.example".parse().unwrap();
    let domain_event = |event| (AggregateId::Domain(DomainId::of(org(), &domain)), Event::Domain(event));
    let connection = ConnectionId::fresh(1_700_000_000_000, [7; 10]);
    let sso = |event| (AggregateId::SsoConnection(org()), Event::SsoConnection(event));
    let unique_value = |event| {
        let id = UniqueValueId::of(org(), &kind("evaluation"), "name", "night");
        (AggregateId::UniqueValue(id), Event::UniqueValue(event))
    };
    let item = RecordId::fresh(1_700_000_000_000, [3; 10]);
    let catalog_item = |event| (AggregateId::CatalogItem(item), Event::CatalogItem(event));
    let choice = |event| (AggregateId::CatalogChoice(org()), Event::CatalogChoice(event));
    let account = |event| (AggregateId::Account(org()), Event::Account(event));
    let invoice = |event| (AggregateId::Invoice(org()), Event::Invoice(event));
    let hold = HoldId::fresh(1_700_000_000_000, [8; 10]);
    let meter = || -> MeterName { "tokens".parse().unwrap() };
    let at = |second: i64| Timestamp::from_unix_ms(1_700_000_000_000 + second * 1_000);
    let plan_version = || PlanVersion { plan: "trial".parse().unwrap(), version: 2 };
    let used_by = || UsedBy { actor_type: ActorType::Member, id: "mem_1".to_owned() };
    let kind_event = |event| (AggregateId::Kind(kind("evaluation")), Event::Kind(event));
    vec![
        organization(OrganizationEvent::Created(OrganizationCreated {
            name: "Acme".to_owned(),
            slug: slug("acme"),
            tenant_type: TenantType::Organization,
            region: "local".to_owned(),
        })),
        organization(OrganizationEvent::Renamed(OrganizationRenamed {
            name: "Acme 2".to_owned(),
            slug: slug("acme2"),
        })),
        organization(OrganizationEvent::SettingsChanged(OrganizationSettingsChanged {
            settings: OrganizationSettings {
                api_key_max_days: Some(90),
                revoke_keys_on_creator_exit: true,
                custom_metadata: [("crm".to_owned(), "42".to_owned())].into(),
                ..OrganizationSettings::default()
            },
            reason: None,
        })),
        organization(OrganizationEvent::Suspended(OrganizationSuspended { reason: "unpaid".to_owned() })),
        organization(OrganizationEvent::Resumed(OrganizationResumed { reason: "paid".to_owned() })),
        organization(OrganizationEvent::PlanChanged(OrganizationPlanChanged { plan: "enterprise".parse().unwrap() })),
        organization(OrganizationEvent::LimitsChanged(OrganizationLimitsChanged {
            limits: OrganizationLimits { commands_per_second: NonZeroU32::new(50), ..OrganizationLimits::default() },
        })),
        organization(OrganizationEvent::Upgraded(OrganizationUpgraded { tenant_type: TenantType::Organization })),
        organization(OrganizationEvent::IdentityLinked(OrganizationIdentityLinked {
            provider: "auth0".to_owned(),
            external_id: "org_9ybsU1dN2dKfDkBi".to_owned(),
        })),
        organization(OrganizationEvent::DeletionRequested(OrganizationDeletionRequested { grace_until: at(7) })),
        organization(OrganizationEvent::DeletionCancelled(OrganizationDeletionCancelled {})),
        organization(OrganizationEvent::Sealed(OrganizationSealed {})),
        member_event(MemberEvent::Added(MemberAdded {
            member_id: member(),
            user_id: UserId::from_login("https://issuer.example", "ann"),
            email: "ann@acme.example".to_owned(),
            role: Role::Owner,
        })),
        member_event(MemberEvent::RoleChanged(MemberRoleChanged {
            member_id: member(),
            from: Role::Admin,
            to: Role::Viewer,
        })),
        member_event(MemberEvent::Removed(MemberRemoved { member_id: member() })),
        invitation(InvitationEvent::Issued(InvitationIssued {
            email: "ann@acme.example".to_owned(),
            role: Role::Custom(role),
            expires_at: Timestamp::from_unix_ms(1_700_600_000_000),
            token_mac: Fingerprint([8; 32]),
        })),
        invitation(InvitationEvent::Resent(InvitationResent {
            expires_at: Timestamp::from_unix_ms(1_700_700_000_000),
            token_mac: Fingerprint([9; 32]),
        })),
        invitation(InvitationEvent::Revoked(InvitationRevoked { reason: Some("a mistake".to_owned()) })),
        invitation(InvitationEvent::Accepted(InvitationAccepted { member_id: member() })),
        role_event(RoleEvent::Defined(RoleDefined {
            role_id: role,
            name: "Ingest".to_owned(),
            permissions: vec!["records:write".to_owned()],
        })),
        role_event(RoleEvent::Changed(RoleChanged { role_id: role, name: "Ingest".to_owned(), permissions: vec![] })),
        role_event(RoleEvent::Removed(RoleRemoved { role_id: role })),
        domain_event(DomainEvent::Claimed(DomainClaimed { domain: domain.clone(), challenge: "c".to_owned() })),
        domain_event(DomainEvent::Proven(DomainProven { domain: domain.clone() })),
        domain_event(DomainEvent::Removed(DomainRemoved { domain: domain.clone() })),
        sso(SsoConnectionEvent::Added(SsoConnectionAdded {
            connection_id: connection,
            name: "Okta".to_owned(),
            issuer: "https://acme.issuer.example".to_owned(),
            audience: "orgstream-acme".to_owned(),
            jit: true,
        })),
        sso(SsoConnectionEvent::DefaultChanged(SsoDefaultChanged { connection_id: connection })),
        sso(SsoConnectionEvent::Removed(SsoConnectionRemoved { connection_id: connection })),
        (
            key.clone(),
            Event::ApiKey(ApiKeyEvent::Issued(ApiKeyIssued {
                name: "ci".to_owned(),
                public_id: "AbCdEf012345".parse().unwrap(),
                secret_mac: Fingerprint([8; 32]),
                last4: "Wxyz".to_owned(),
                role: Role::Member,
                environment: KeyEnvironment::Live,
                expires_at: Some(Timestamp::from_unix_ms(1_800_000_000_000)),
                scopes: None,
                allowed_ips: Vec::new(),
                creator: None,
            })),
        ),
        (
            key.clone(),
            Event::ApiKey(ApiKeyEvent::Rotated(ApiKeyRotated {
                public_id: "GhIjKl012345".parse().unwrap(),
                secret_mac: Fingerprint([7; 32]),
                last4: "Stuv".to_owned(),
                previous_ends_at: Timestamp::from_unix_ms(1_700_000_086_400),
                expires_at: None,
            })),
        ),
        (key, Event::ApiKey(ApiKeyEvent::Revoked(ApiKeyRevoked { reason: Some("leaked".to_owned()) }))),
        kind_event(KindEvent::Registered(KindRegistered { definition: definition.clone() })),
        kind_event(KindEvent::Changed(KindChanged { definition })),
        kind_event(KindEvent::Retired(KindRetired {})),
        kind_event(KindEvent::Restored(KindRestored {})),
        (
            record.clone(),
            Event::Record(RecordEvent::Created(RecordCreated {
                kind: kind("evaluation"),
                kind_version: 1,
                data: json!({"score": 0.5, "tags": ["a", null, -1]}),
                references: Vec::new(),
                unique: Vec::new(),
                searched: Vec::new(),
                secrets: Vec::new(),
            })),
        ),
        (
            record.clone(),
            Event::Record(RecordEvent::Updated(RecordUpdated {
                kind: kind("evaluation"),
                kind_version: 2,
                data: json!({"score": 1}),
                references: Vec::new(),
                unique: Vec::new(),
                searched: Vec::new(),
                secrets: Vec::new(),
            })),
        ),
        (record.clone(), Event::Record(RecordEvent::Archived(RecordArchived { reason: None }))),
        (
            AggregateId::RecordLog(RecordLogId::of(command())),
            Event::RecordLog(RecordLogEvent::Appended(RecordAppended {
                record: RecordId::appended(command(), 0),
                kind: kind("evaluation"),
                kind_version: 1,
                data: json!({"score": 0.5}),
                references: Vec::new(),
                searched: Vec::new(),
            })),
        ),
        unique_value(UniqueValueEvent::Taken(UniqueValueTaken {
            kind: kind("evaluation"),
            field: "name".to_owned(),
            record: RecordId::fresh(1_700_000_000_000, [3; 10]),
        })),
        unique_value(UniqueValueEvent::Released(UniqueValueReleased {
            kind: kind("evaluation"),
            field: "name".to_owned(),
            record: RecordId::fresh(1_700_000_000_000, [3; 10]),
        })),
        catalog_item(CatalogItemEvent::Published(CatalogItemPublished {
            kind: kind("evaluation"),
            kind_version: 2,
            data: json!({"score": 1}),
            item_version: 3,
            record_version: 5,
            shown_since: 2,
            searched: vec![],
        })),
        catalog_item(CatalogItemEvent::Withdrawn(CatalogItemWithdrawn { reason: "out of date".to_owned() })),
        choice(CatalogChoiceEvent::Made(CatalogChoiceMade { item, choice: CatalogChoice::Hidden })),
        choice(CatalogChoiceEvent::Cleared(CatalogChoiceCleared { item })),
        (
            AggregateId::Plan("trial".parse().unwrap()),
            Event::Plan(PlanEvent::Published(PlanPublished {
                version: 2,
                definition: PlanDefinition {
                    title: "Trial".to_owned(),
                    meters: [(
                        meter(),
                        MeterTerms {
                            included: Amount::units(100),
                            overage: Amount::units(5),
                            price_per_million: Amount::ZERO,
                            top_up_price_per_million: Amount::ZERO,
                            cap: Some(Amount::units(200)),
                        },
                    )]
                    .into(),
                    limits: PlanLimits { concurrency: NonZeroU32::new(5), ..PlanLimits::default() },
                    monthly_fee: Amount::ZERO,
                    trial_days: NonZeroU32::new(30),
                },
            })),
        ),
        account(AccountEvent::Granted(AccountGranted {
            at: at(1),
            bucket: BucketId(1),
            meter: meter(),
            source: BucketSource::Allowance,
            amount: Amount::units(100),
            from: at(0),
            until: Some(at(9)),
            plan: Some(plan_version()),
            price_per_million: None,
            reason: None,
        })),
        account(AccountEvent::AllowanceChanged(AccountAllowanceChanged {
            at: at(2),
            bucket: BucketId(1),
            meter: meter(),
            amount: Amount::units(120),
            plan: plan_version(),
            price_per_million: None,
        })),
        account(AccountEvent::BucketClosed(AccountBucketClosed {
            at: at(9),
            bucket: BucketId(1),
            meter: meter(),
            lapsed: Amount::units(19),
        })),
        account(AccountEvent::Reserved(AccountReserved {
            at: at(3),
            hold,
            meter: meter(),
            amount: Amount::units(7),
            draws: vec![Draw { bucket: BucketId(1), amount: Amount::units(7) }],
            deadline: at(8),
            used_for: UsedFor { kind: Some(kind("evaluation")), model: Some("small-2".to_owned()) },
            by: used_by(),
        })),
        account(AccountEvent::Extended(AccountExtended {
            at: at(4),
            hold,
            amount: Amount::units(1),
            draws: vec![Draw { bucket: BucketId(1), amount: Amount::units(1) }],
            deadline: at(9),
        })),
        account(AccountEvent::Settled(AccountSettled {
            at: at(5),
            hold: Some(hold),
            reserved_at: at(3),
            meter: meter(),
            amount: Amount::units(6),
            draws: vec![Draw { bucket: BucketId(1), amount: Amount::units(6) }],
            returned: Amount::units(2),
            used_for: UsedFor::default(),
            by: used_by(),
        })),
        account(AccountEvent::Released(AccountReleased { at: at(6), hold, meter: meter(), amount: Amount::units(8) })),
        account(AccountEvent::HoldsExpired(AccountHoldsExpired {
            at: at(8),
            holds: vec![ExpiredHold { hold, meter: meter(), amount: Amount::units(8) }],
        })),
        account(AccountEvent::ThresholdCrossed(AccountThresholdCrossed {
            at: at(8),
            meter: meter(),
            percent: 20,
            available: Amount::units(19),
            granted: Amount::units(120),
        })),
        account(AccountEvent::TopUpChanged(AccountTopUpChanged {
            at: at(9),
            meter: meter(),
            rule: Some(TopUpRule {
                below: Amount::units(20),
                amount: Amount::units(100),
                monthly_limit: Some(Amount::units(500)),
            }),
            currency: "EUR".parse().unwrap(),
        })),
        account(AccountEvent::TopUpRequested(AccountTopUpRequested {
            at: at(9),
            top_up: TopUpId(1),
            meter: meter(),
            amount: Amount::units(100),
            price: Amount::units(2),
            currency: "EUR".parse().unwrap(),
        })),
        account(AccountEvent::TopUpPaid(AccountTopUpPaid {
            at: at(21),
            top_up: TopUpId(1),
            meter: meter(),
            payment: "in_1".to_owned(),
        })),
        account(AccountEvent::TopUpDeclined(AccountTopUpDeclined {
            at: at(10),
            top_up: TopUpId(1),
            meter: meter(),
            reason: "card_declined".to_owned(),
            retry_at: at(20),
        })),
        (
            AggregateId::Quota(org()),
            Event::Quota(QuotaEvent::Counted(QuotaCounted {
                quota: QuotaName::StorageBytes,
                change: -1_200,
                limit: Some(1 << 30),
            })),
        ),
        invoice(InvoiceEvent::Opened(InvoiceOpened {
            at: at(1),
            number: InvoiceNumber(1),
            month: "2023-10".parse().unwrap(),
            currency: "EUR".parse().unwrap(),
            plan: plan_version(),
            fee: Amount::units(20),
        })),
        invoice(InvoiceEvent::Finalized(InvoiceFinalized {
            at: at(2),
            number: InvoiceNumber(1),
            lines: vec![InvoiceLine {
                line_type: InvoiceLineType::Usage,
                month: "2023-10".parse().unwrap(),
                meter: Some(meter()),
                source: Some(BucketSource::Overage),
                quantity: Amount::units(1_000_000),
                price_per_million: Some(Amount::units(2)),
                amount: Amount::units(2),
            }],
            total: Amount::units(2),
        })),
        invoice(InvoiceEvent::Paid(InvoicePaid { at: at(3), number: InvoiceNumber(1), payment: "pay_1".to_owned() })),
        invoice(InvoiceEvent::Voided(InvoiceVoided {
            at: at(4),
            number: InvoiceNumber(1),
            reason: "ticket 4711".to_owned(),
        })),
        invoice(InvoiceEvent::BillingEnded(InvoiceBillingEnded { at: at(5), reason: "closed".to_owned() })),
        invoice(InvoiceEvent::CustomerLinked(InvoiceCustomerLinked { at: at(6), customer: "cus_1".to_owned() })),
        invoice(InvoiceEvent::Pushed(InvoicePushed { at: at(7), number: InvoiceNumber(1), id: "in_1".to_owned() })),
        invoice(InvoiceEvent::Withdrawn(InvoiceWithdrawn { at: at(8), number: InvoiceNumber(1) })),
        invoice(InvoiceEvent::CustomerReleased(InvoiceCustomerReleased { at: at(9), customer: "cus_1".to_owned() })),
        (
            AggregateId::Deletion(org()),
            Event::Deletion(DeletionEvent::Completed(DeletionCompleted {
                receipt: "orgstream.dev/deletion-receipt@v1\n{}\n\n\u{2014} audit.example AAAA\n".to_owned(),
            })),
        ),
        (
            AggregateId::Parking(Pipeline::ReadModels),
            Event::Parking(ParkingEvent::Retried(ParkedEventsRetried { aggregate: record.clone().into() })),
        ),
        (
            AggregateId::Parking(Pipeline::ReadModels),
            Event::Parking(ParkingEvent::Skipped(ParkedEventsSkipped {
                aggregate: record.clone().into(),
                seq: 7,
                reason: "broken by hand".to_owned(),
            })),
        ),
        (
            AggregateId::Parking(Pipeline::Audit),
            Event::Parking(ParkingEvent::Parked(MessageParked {
                seq: 7,
                aggregate: record.clone().into(),
                waiting: false,
                reason: "the message is not authentic".to_owned(),
                parked_at: Timestamp::from_unix_ms(1_700_000_000_003),
                sha256: Some(Fingerprint([8; 32])),
            })),
        ),
        (
            AggregateId::Parking(Pipeline::Audit),
            Event::Parking(ParkingEvent::Settled(MessageSettled {
                seq: 7,
                aggregate: record.into(),
                outcome: Settlement::Applied,
                command_id: Some(command()),
                following: vec![],
            })),
        ),
        access(AccessEvent::Denied(AccessDenied {
            code: "not_found".to_owned(),
            route: route(),
            target: "record".to_owned(),
            asked: Some("ajax".to_owned()),
            repeated: 1,
        })),
        access(AccessEvent::SignedIn(SignedIn { method: "oidc".to_owned() })),
        access(AccessEvent::OrgSwitched(OrgSwitched { direction: Direction::Entered, epoch: 4 })),
        access(AccessEvent::KeyRefused(KeyRefused {
            key_id: KeyId::fresh(1_700_000_000_000, [4; 10]),
            public_id: "AbCdEf012345".parse().unwrap(),
            code: "revoked".to_owned(),
            repeated: 17,
        })),
        access(AccessEvent::AuditRead(AuditRead { route: route(), query: Some("action=a".to_owned()), repeated: 1 })),
        access(AccessEvent::AuditExported(AuditExported {
            format: "jsonl".to_owned(),
            from_idx: 0,
            upto_idx: 256,
            filter: None,
        })),
        access(AccessEvent::NatsCredentialsIssued(NatsCredentialsIssued {
            key_id: KeyId::fresh(1_700_000_000_000, [4; 10]),
            public_id: "AbCdEf012345".parse().unwrap(),
            expires_at: Some(Timestamp::from_unix_ms(1_700_003_600_000)),
        })),
        access(AccessEvent::SecretUsed(SecretUsed {
            record: RecordId::fresh(1_700_000_000_000, [5; 10]),
            field: "api_key".to_owned(),
            secret: SecretId::fresh(1_700_000_000_000, [6; 10]),
            version: 2,
            reason: "a call of the provider".to_owned(),
        })),
        access(AccessEvent::BreakGlassApproved(BreakGlassApproved {
            id: glass,
            operator: "ann@platform.example".to_owned(),
            reason: "ticket 7".to_owned(),
            seconds: 900,
        })),
        access(AccessEvent::BreakGlassOpened(BreakGlassOpened {
            id: glass,
            reason: "ticket 7".to_owned(),
            approver: "bob".to_owned(),
            approval: None,
            expires_at: Timestamp::from_unix_ms(1_700_003_600_000),
        })),
        access(AccessEvent::BreakGlassUsed(BreakGlassUsed {
            id: glass,
            route: route(),
            path: "/v1/organizations/acme/records".to_owned(),
        })),
        access(AccessEvent::BreakGlassClosed(BreakGlassClosed {})),
        access(AccessEvent::IsolationFailed(IsolationFailed {
            bound: org(),
            found: OrgId::fresh(1_700_000_000_000, [77; 10]),
            table: "audit.events".to_owned(),
        })),
    ]
}

fn draft(aggregate: AggregateId, events: Vec<Event>) -> CommitDraft {
    CommitDraft {
        org: org(),
        aggregate,
        version_before: 2,
        command_id: command(),
        fingerprint: Some(Fingerprint([6; 32])),
        actor: Actor {
            actor_type: ActorType::ApiKey,
            id: KeyId::fresh(1_700_000_000_000, [4; 10]).to_string(),
            auth: Some(Auth { method: AuthMethod::ApiKey, key_id: Some("AbCdEf012345".to_owned()), session_id: None }),
        },
        occurred_at: Timestamp::from_unix_ms(1_700_000_000_001),
        recorded_at: Timestamp::from_unix_ms(1_700_000_000_002),
        causation_id: None,
        correlation_id: None,
        request_id: Some("req-1".to_owned()),
        context: Context { ip: Some("192.0.2.1".to_owned()), user_agent: Some("curl/8".to_owned()) },
        events,
    }
}

fn subject(aggregate: AggregateId) -> EventSubject {
    EventSubject { shard: Shard(3), org: org(), aggregate }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A golden file is written once, with `GOLDEN_WRITE=1`, and never edited: such bytes are in production.
#[test]
fn every_event_has_its_golden_bytes() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = Vec::new();
    for (aggregate, event) in examples() {
        let (name, schema) = event.wire();
        seen.push((name, schema));
        let commit = draft(aggregate.clone(), vec![event.clone()]).seal(|| Salt([9; 32])).unwrap();
        let bytes = commit.encode().unwrap();
        let file = folder.join(format!("{name}.v{schema}.hex"));
        if std::env::var_os("GOLDEN_WRITE").is_some() && !file.exists() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&file, hex(&bytes) + "\n").unwrap();
        }
        let golden = fs::read_to_string(&file).unwrap_or_else(|_| panic!("{name} v{schema} has no golden file"));
        assert_eq!(hex(&bytes), golden.trim(), "{name} v{schema} changed its bytes: give it a new schema version");
        let is_in_no_order = aggregate.is_access() || event.is_mark();
        let opened = Commit::decode(&bytes).unwrap().open(&subject(aggregate)).unwrap();
        assert_eq!(opened.events[0].event, event);
        assert_eq!(opened.events[0].header.aggregate.version, if is_in_no_order { 0 } else { 3 });
    }
    let known: Vec<_> = KNOWN_EVENTS.iter().flat_map(|events| events.iter().copied()).collect();
    assert_eq!(seen, known, "an event without an example, or in another order");
}

/// The frame around a message is stored as long as its content.
#[test]
fn a_signed_message_has_its_golden_bytes() {
    let keys = CommitKeys::single("golden", [5; 32]).unwrap();
    let bytes = keys.sign("ev.3.org.record.res", Some(300), b"content").unwrap();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/message.signed.v1.hex");
    if std::env::var_os("GOLDEN_WRITE").is_some() && !file.exists() {
        fs::write(&file, hex(&bytes) + "\n").unwrap();
    }
    assert_eq!(hex(&bytes), fs::read_to_string(&file).unwrap().trim());
    assert_eq!(keys.verify("ev.3.org.record.res", Some(300), &bytes).unwrap(), b"content");
}

/// Fields that were added to existing shapes: written by newer programs, and so permanent as well.
#[test]
fn what_was_added_has_its_golden_bytes() {
    let auth = Auth { method: AuthMethod::Session, key_id: None, session_id: Some("ses_1".to_owned()) };
    let settings = OrganizationSettings {
        allowed_auth_methods: Some([LoginMethod::oidc(), LoginMethod::api_key()].into()),
        mfa_policy: MfaPolicy::Required,
        revoke_keys_on_creator_exit: false,
        ..OrganizationSettings::default()
    };
    let bytes = (rmp_serde::to_vec_named(&auth).unwrap(), rmp_serde::to_vec_named(&settings).unwrap());
    assert_eq!(hex(&bytes.0), "83a66d6574686f64a773657373696f6ea66b65795f6964c0aa73657373696f6e5f6964a57365735f31");
    assert_eq!(
        hex(&bytes.1),
        concat!(
            "85b06170695f6b65795f6d61785f64617973c0bb7265766f6b655f6b6579735f6f6e5f63726561746f725f65786974c2af63",
            "7573746f6d5f6d6574616461746180b4616c6c6f7765645f617574685f6d6574686f647392a76170695f6b6579a46f696463",
            "aa6d66615f706f6c696379a87265717569726564",
        )
    );
    let glass = BreakGlassOpened {
        id: BreakGlassId::fresh(1_700_000_000_000, [6; 10]),
        reason: "r".to_owned(),
        approver: "b".to_owned(),
        approval: Some(Approval::Given),
        expires_at: Timestamp::from_unix_ms(0),
    };
    let opened = rmp_serde::to_vec_named(&glass).unwrap();
    assert!(hex(&opened).contains(&hex(b"\xa8approval\xa5given")), "{}", hex(&opened));
    assert_eq!(rmp_serde::from_slice::<BreakGlassOpened>(&opened).unwrap(), glass);
    assert_eq!(rmp_serde::from_slice::<Auth>(&bytes.0).unwrap(), auth);
    assert_eq!(rmp_serde::from_slice::<OrganizationSettings>(&bytes.1).unwrap(), settings);
}

#[test]
fn limits_from_before_there_were_quotas_have_none_and_none_take_no_bytes() {
    let old = json!({"concurrency": 5});
    let limits: PlanLimits = rmp_serde::from_slice(&rmp_serde::to_vec_named(&old).unwrap()).unwrap();
    assert_eq!(limits, PlanLimits { concurrency: NonZeroU32::new(5), ..PlanLimits::default() });
    assert_eq!(serde_json::to_value(&limits).unwrap(), old);
    let quotas = Quotas { members: Some(3), storage_bytes: Some(1 << 40), ..Quotas::default() };
    let limits = OrganizationLimits { quotas, ..OrganizationLimits::default() };
    let bytes = rmp_serde::to_vec_named(&limits).unwrap();
    assert_eq!(rmp_serde::from_slice::<OrganizationLimits>(&bytes).unwrap(), limits);
    let text = serde_json::to_value(&limits).unwrap();
    assert_eq!(text, json!({"quotas": {"members": 3, "storage_bytes": 1_u64 << 40}}));
    for name in QuotaName::ALL {
        assert_eq!(serde_json::to_value(name).unwrap(), name.name());
        assert_eq!(quotas.get(name), text["quotas"][name.name()].as_u64());
    }
}

#[test]
fn a_commit_for_another_org_is_refused() {
    let (aggregate, event) = examples().into_iter().find(|(_, event)| matches!(event, Event::Record(_))).unwrap();
    let commit = draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
    let mut foreign = subject(aggregate);
    foreign.org = OrgId::fresh(1_700_000_000_000, [77; 10]);
    assert!(matches!(commit.open(&foreign), Err(CodecError::ForeignOrg { .. })));
}

#[test]
fn a_header_for_another_org_inside_an_honest_commit_is_refused() {
    let (aggregate, event) = examples().into_iter().find(|(_, event)| matches!(event, Event::Record(_))).unwrap();
    let mut lying = draft(aggregate.clone(), vec![event]);
    lying.org = OrgId::fresh(1_700_000_000_000, [77; 10]);
    let mut commit = lying.seal(|| Salt([9; 32])).unwrap();
    commit.org_id = org();
    assert!(matches!(commit.open(&subject(aggregate)), Err(CodecError::ForeignOrg { .. })));
}

// S1.2
// S3.20
#[test]
fn a_message_or_a_header_without_an_org_is_none() {
    /// The same bytes with another name in the place of the first `org_id`.
    fn orgless(bytes: &[u8]) -> Vec<u8> {
        const NAME: &[u8] = b"\xa6org_id";
        let at = bytes.windows(NAME.len()).position(|part| part == NAME).unwrap();
        [&bytes[..at], b"\xa6no_one", &bytes[at + NAME.len()..]].concat()
    }
    for (aggregate, event) in examples() {
        let mut commit = draft(aggregate, vec![event]).seal(|| Salt([9; 32])).unwrap();
        let bytes = commit.encode().unwrap();
        assert!(Commit::decode(&bytes).is_ok());
        let error = Commit::decode(&orgless(&bytes)).unwrap_err();
        let error = Chain(&error).to_string();
        assert!(error.contains("org_id"), "{error}");
        commit.events[0].header = orgless(&commit.events[0].header).into();
        let error = commit.events[0].read_header().unwrap_err();
        let error = Chain(&error).to_string();
        assert!(error.contains("org_id"), "{error}");
    }
}

// S4.20
#[test]
fn settings_from_before_a_key_was_added_have_its_default() {
    let before = json!({"crm": "42"});
    let old = json!({"api_key_max_days": 90, "revoke_keys_on_creator_exit": false, "custom_metadata": before});
    let expected = OrganizationSettings {
        api_key_max_days: Some(90),
        revoke_keys_on_creator_exit: false,
        custom_metadata: [("crm".to_owned(), "42".to_owned())].into(),
        jit_provisioning: JitProvisioning::NotAllowed,
        invite_policy: InvitePolicy::All,
        allowed_domains: BTreeSet::new(),
        branding: Branding::default(),
        allowed_auth_methods: None,
        mfa_policy: MfaPolicy::Optional,
        audit_webhook: None,
    };
    let bytes = rmp_serde::to_vec_named(&old).unwrap();
    assert_eq!(rmp_serde::from_slice::<OrganizationSettings>(&bytes).unwrap(), expected);
    // One key of today more, each of them alone.
    for (name, value) in [
        ("jit_provisioning", json!("restricted")),
        ("invite_policy", json!("none")),
        ("allowed_domains", json!(["acme.example"])),
        ("branding", json!({"primary_color": "#0a84ff"})),
        ("allowed_auth_methods", json!(["oidc"])),
        ("mfa_policy", json!("required")),
        ("audit_webhook", json!("https://siem.example")),
    ] {
        let mut new = old.clone();
        new[name] = value.clone();
        let read: OrganizationSettings = rmp_serde::from_slice(&rmp_serde::to_vec_named(&new).unwrap()).unwrap();
        assert_ne!(read, expected, "{name}");
        let shown = serde_json::to_value(&read).unwrap();
        assert_eq!(shown[name], value, "{shown}");
        assert_eq!(shown["custom_metadata"], old["custom_metadata"]);
    }
}

/// A commit of three commands with one, two and one events.
fn of_several() -> Commit {
    let aggregate = AggregateId::Account(org());
    let event = |number| {
        let (at, meter) = (Timestamp::from_unix_ms(number), "ecu".parse().unwrap());
        let hold = HoldId::fresh(1, [7; 10]);
        let amount = "1".parse().unwrap();
        Event::Account(AccountEvent::Released(AccountReleased { at, hold, meter, amount }))
    };
    let of = |number: u8, key: Option<u8>, version, events| {
        let draft = CommitDraft {
            command_id: CommandId::fresh(1_700_000_000_000, [number; 10]),
            fingerprint: key.map(|key| Fingerprint([key; 32])),
            version_before: version,
            ..draft(aggregate.clone(), events)
        };
        draft.seal(|| Salt([9; 32])).unwrap()
    };
    let commits = [
        of(1, Some(11), 0, vec![event(1)]),
        of(2, None, 1, vec![event(2), event(3)]),
        of(3, Some(13), 3, vec![event(4)]),
    ];
    Commit::of_several(commits).unwrap()
}

#[test]
fn several_commands_share_a_commit_and_each_keeps_its_events_and_its_key() {
    let commit = of_several();
    let read = Commit::decode(&commit.encode().unwrap()).unwrap();
    assert_eq!(read, commit);
    let opened = read.open(&subject(AggregateId::Account(org()))).unwrap();
    let commands: Vec<_> =
        opened.commands().map(|command| (command.fingerprint.map(|hash| hash.0[0]), command.events.len())).collect();
    assert_eq!(commands, [(Some(11), 1), (None, 2), (Some(13), 1)]);
    for command in opened.commands() {
        assert!(command.events.iter().all(|event| event.header.command_id == command.command_id));
    }
    assert_eq!(opened.seal().unwrap(), commit);
    // Event by event, as the audit log has them.
    let mut rows = opened.events_and_fingerprints();
    let (first, fingerprint) = rows.next().unwrap();
    let mut again = OpenedCommit::begin(first.clone(), fingerprint);
    for (event, fingerprint) in rows {
        again.push(event.clone(), fingerprint);
    }
    assert_eq!(again, opened);
    // The ids of all are in the id of the message.
    let mut other = commit.clone();
    other.following.pop();
    assert_ne!(other.message_id(), commit.message_id());
    assert!(Commit::of_several([]).is_none());
}

#[test]
fn a_commit_whose_commands_are_not_those_of_its_events_is_refused() {
    let place = subject(AggregateId::Account(org()));
    let mut missing = of_several();
    missing.following.pop();
    let mut more = of_several();
    more.following.push(more.following[0]);
    let mut swapped = of_several();
    swapped.following.swap(0, 1);
    for commit in [missing, more, swapped] {
        let read = Commit::decode(&commit.encode().unwrap()).unwrap();
        let refused = read.open(&place).unwrap_err();
        assert!(matches!(refused, CodecError::Unknown { what: "commands of a commit", .. }), "{refused}");
    }
    // A program of before would take all events for those of the first command, so it has to refuse the version.
    let bytes = of_several().encode().unwrap();
    assert!(bytes.windows(3).any(|window| window == [0xa1, b'v', 2]), "the version is 2");
}

#[test]
fn a_changed_payload_is_refused() {
    let (aggregate, event) = examples().remove(0);
    let mut commit = draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
    let mut payload = commit.events[0].payload.to_vec();
    *payload.last_mut().unwrap() ^= 1;
    commit.events[0].payload = payload.into();
    assert!(matches!(commit.open(&subject(aggregate)), Err(CodecError::CommitmentBroken)));
}

#[test]
fn references_and_unique_values_of_a_record_read_back_and_none_take_no_bytes() {
    let aggregate = AggregateId::Record(RecordId::fresh(0, [3; 10]));
    let reference = |pointer: &str, global| RecordReference {
        pointer: pointer.to_owned(),
        id: RecordId::fresh(1, [4; 10]),
        kind: "trace".parse().unwrap(),
        global,
    };
    let event = |references| {
        let (kind, data) = ("evaluation".parse().unwrap(), json!({}));
        Event::Record(RecordEvent::Created(RecordCreated {
            kind,
            kind_version: 1,
            data,
            references,
            unique: Vec::new(),
            searched: Vec::new(),
            secrets: Vec::new(),
        }))
    };
    let bytes = |event: Event| draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
    let two = event(vec![reference("/trace", false), reference("/many/0", true)]);
    let commit = Commit::decode(&bytes(two.clone()).encode().unwrap()).unwrap();
    assert_eq!(commit.open(&subject(aggregate.clone())).unwrap().events[0].event, two);
    let contains =
        |event: Event, name: &[u8]| bytes(event).events[0].payload.windows(name.len()).any(|part| part == name);
    assert!(contains(two, b"references") && !contains(event(Vec::new()), b"references"));
    assert!(!contains(event(Vec::new()), b"unique"));
    let id = UniqueValueId::of(org(), &"evaluation".parse().unwrap(), "name", "night");
    let unique = vec![UniqueField { field: "name".to_owned(), id }];
    let plain = RecordCreated::plain("evaluation".parse().unwrap(), 1, json!({}));
    let named = Event::Record(RecordEvent::Created(RecordCreated { unique, ..plain }));
    let commit = Commit::decode(&bytes(named.clone()).encode().unwrap()).unwrap();
    assert_eq!(commit.open(&subject(aggregate.clone())).unwrap().events[0].event, named);
}

#[test]
fn secrets_of_a_record_read_back_and_none_take_no_bytes() {
    let aggregate = AggregateId::Record(RecordId::fresh(0, [3; 10]));
    let event = |secrets| {
        let (kind, data, references) = ("model".parse().unwrap(), json!({}), Vec::new());
        Event::Record(RecordEvent::Updated(RecordUpdated {
            references,
            secrets,
            ..RecordUpdated::plain(kind, 1, data)
        }))
    };
    let (id, fingerprint) = (SecretId::fresh(1, [4; 10]), "0a1b2c3d".to_owned());
    let one = event(vec![RecordSecret { field: "api_key".to_owned(), id, version: 3, fingerprint }]);
    let bytes = |event: Event| draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
    let commit = Commit::decode(&bytes(one.clone()).encode().unwrap()).unwrap();
    assert_eq!(commit.open(&subject(aggregate.clone())).unwrap().events[0].event, one);
    let contains = |event: Event| bytes(event).events[0].payload.windows(7).any(|part| part == b"secrets");
    assert!(contains(one) && !contains(event(Vec::new())));
}

#[test]
fn what_a_record_that_is_written_once_is_found_by_reads_back_and_nothing_takes_no_bytes() {
    let aggregate = AggregateId::RecordLog(RecordLogId::of(command()));
    let event = |searched| {
        Event::RecordLog(RecordLogEvent::Appended(RecordAppended {
            record: RecordId::appended(command(), 0),
            kind: "trace".parse().unwrap(),
            kind_version: 1,
            data: json!({}),
            references: Vec::new(),
            searched,
        }))
    };
    let one = event(vec![SearchedField { field: "name".to_owned(), role: SearchRole::Title }]);
    let bytes = |event: Event| draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
    let commit = Commit::decode(&bytes(one.clone()).encode().unwrap()).unwrap();
    assert_eq!(commit.open(&subject(aggregate.clone())).unwrap().events[0].event, one);
    let contains = |event: Event| bytes(event).events[0].payload.windows(8).any(|part| part == b"searched");
    assert!(contains(one) && !contains(event(Vec::new())));
}

#[test]
fn a_commit_over_the_limit_says_the_limit() {
    let aggregate = AggregateId::Record(RecordId::fresh(0, [3; 10]));
    let event = Event::Record(RecordEvent::Created(RecordCreated {
        kind: "evaluation".parse().unwrap(),
        kind_version: 1,
        data: json!("x".repeat(MAX_COMMIT_BYTES)),
        references: Vec::new(),
        unique: Vec::new(),
        searched: Vec::new(),
        secrets: Vec::new(),
    }));
    let commit = draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
    let error = commit.encode().unwrap_err().to_string();
    assert!(error.contains("limit of 1000000"), "{error}");
    let error = draft(aggregate, Vec::new()).seal(|| Salt([9; 32])).unwrap_err().to_string();
    assert!(error.contains("1 to 1000 events, not 0"), "{error}");
}

/// A claimed length of four billion must cost an error, not four gigabytes.
#[test]
fn claimed_lengths_are_not_believed() {
    for head in [[0xdd, 0xff, 0xff, 0xff, 0xff], [0xdf, 0xff, 0xff, 0xff, 0xff], [0xc6, 0xff, 0xff, 0xff, 0xff]] {
        assert!(Commit::decode(&head).is_err());
    }
    assert!(Commit::decode(&vec![0x91; 100_000]).is_err(), "depth is bounded");
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (-1e300..1e300).prop_map(|number: f64| json!(number)),
        ".{0,20}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((".{0,8}", inner), 0..6)
                .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_record_reads_back_as_it_was_written(data in json_value(), version in 0_u64..u64::from(u32::MAX), salt: [u8; 32]) {
        let aggregate = AggregateId::Record(RecordId::fresh(0, [3; 10]));
        let event = Event::Record(RecordEvent::Created(RecordCreated {
            kind: "evaluation".parse().unwrap(),
            kind_version: 1,
            data,
            references: Vec::new(),
            unique: Vec::new(),
            searched: Vec::new(),
            secrets: Vec::new(),
        }));
        let mut draft = draft(aggregate.clone(), vec![event.clone(), event.clone()]);
        draft.version_before = version;
        let bytes = draft.seal(|| Salt(salt)).unwrap().encode().unwrap();
        let opened = Commit::decode(&bytes).unwrap().open(&subject(aggregate)).unwrap();
        prop_assert_eq!(&opened.events[0].event, &event);
        prop_assert_eq!(opened.events[1].header.aggregate.version, version + 2);
        prop_assert_ne!(opened.events[0].header.event_id, opened.events[1].header.event_id);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Commit::decode(&bytes);
    }

    #[test]
    fn damaged_bytes_never_panic(place: prop::sample::Index, value: u8, cut: prop::sample::Index, which: prop::sample::Index) {
        let examples = examples();
        let (aggregate, event) = which.get(&examples).clone();
        let commit = draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
        let mut bytes = commit.encode().unwrap().to_vec();
        let place = place.index(bytes.len());
        bytes[place] = value;
        bytes.truncate(1 + cut.index(bytes.len()));
        if let Ok(commit) = Commit::decode(&bytes) {
            let _ = commit.open(&subject(aggregate));
        }
    }
}

#[test]
fn a_header_says_who_was_turned_away_and_why() {
    for (aggregate, event) in examples() {
        let code = match &event {
            Event::Access(AccessEvent::Denied(fact)) => Some(fact.code.clone()),
            Event::Access(AccessEvent::KeyRefused(fact)) => Some(fact.code.clone()),
            _ => None,
        };
        let commit = draft(aggregate.clone(), vec![event]).seal(|| Salt([9; 32])).unwrap();
        let outcome = commit.open(&subject(aggregate)).unwrap().events.remove(0).header.outcome;
        let failed = outcome.status == OutcomeStatus::Failed;
        assert_eq!(outcome.status == OutcomeStatus::Denied, code.is_some());
        assert_eq!(outcome.code.filter(|_| !failed), code);
    }
}
