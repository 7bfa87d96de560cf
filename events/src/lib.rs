//! The event vocabulary: ids, events, the envelope around them, their encoding and their subjects.
//!
//! This crate is pure. It does no I/O, has no clock and no randomness (both are arguments), and depends on neither NATS nor
//! SQL. Everything that outlives a process, bytes and names, is defined here and only here.
//!
//! Start with [`Commit`]: one command's events as one message on one aggregate's [`EventSubject`].

mod access;
mod account;
mod amount;
mod api_key;
mod catalog;
mod chain;
mod codec;
mod commit;
mod connection;
mod deletion;
mod domain;
mod envelope;
mod event;
mod ids;
mod invitation;
mod invoice;
pub mod json;
mod kind;
mod kind_view;
mod member;
mod month;
mod names;
mod organization;
mod parking;
mod pipeline;
mod plan;
mod position;
mod quota;
mod record;
mod record_log;
mod role;
mod signed;
mod snapshot;
mod subject;
mod timestamp;
mod unique_value;
mod vault;
mod view;

pub use access::{
    AccessDenied, AccessEvent, Approval, AuditExported, AuditRead, BreakGlassApproved, BreakGlassClosed,
    BreakGlassOpened, BreakGlassUsed, Direction, IsolationFailed, KeyRefused, NatsCredentialsIssued, OrgSwitched,
    SecretUsed, SignedIn,
};
pub use account::{
    AccountAllowanceChanged, AccountBucketClosed, AccountEvent, AccountExtended, AccountGranted, AccountHoldsExpired,
    AccountReleased, AccountReserved, AccountSettled, AccountThresholdCrossed, AccountTopUpChanged,
    AccountTopUpDeclined, AccountTopUpPaid, AccountTopUpRequested, BucketId, BucketSource, Draw, ExpiredHold, TopUpId,
    TopUpRule, UsedBy, UsedFor,
};
pub use amount::{Amount, AmountError, AmountSum};
pub use api_key::{ApiKeyEvent, ApiKeyIssued, ApiKeyRevoked, ApiKeyRotated, KeyEnvironment};
pub use catalog::{
    CatalogChoice, CatalogChoiceCleared, CatalogChoiceEvent, CatalogChoiceMade, CatalogItemEvent, CatalogItemPublished,
    CatalogItemWithdrawn,
};
pub use chain::{Cause, Chain, cause};
pub use codec::CodecError;
pub use commit::{
    Commit, CommitDraft, CommittedCommand, MAX_COMMIT_BYTES, MAX_EVENTS_PER_COMMIT, OpenedCommand, OpenedCommit,
    OpenedEvent, SealedEvent,
};
pub use connection::{SsoConnectionAdded, SsoConnectionEvent, SsoConnectionRemoved, SsoDefaultChanged};
pub use deletion::{DeletionCompleted, DeletionEvent, DeletionReceipt, IdentityKept, RowsErased};
pub use domain::{DomainClaimed, DomainEvent, DomainProven, DomainRemoved};
pub use envelope::{
    Actor, ActorType, AggregateVersion, Auth, AuthMethod, Context, Fingerprint, Header, Outcome, OutcomeStatus, Salt,
    Target,
};
pub use event::{AggregateId, AggregateType, Event, KNOWN_EVENTS};
pub use ids::{
    AppendedPlace, BreakGlassId, CommandId, ConnectionId, CorrelationId, DomainId, EventId, HoldId, IdError,
    InvitationId, KeyId, MemberId, OrgId, PLATFORM_ORG, RecordId, RoleId, SecretId, SessionId, UniqueValueId, UserId,
};
pub use invitation::{InvitationAccepted, InvitationEvent, InvitationIssued, InvitationResent, InvitationRevoked};
pub use invoice::{
    InvoiceBillingEnded, InvoiceCustomerLinked, InvoiceCustomerReleased, InvoiceEvent, InvoiceFinalized, InvoiceLine,
    InvoiceLineType, InvoiceNumber, InvoiceOpened, InvoicePaid, InvoicePushed, InvoiceVoided, InvoiceWithdrawn,
};
pub use kind::{KindChanged, KindDefinition, KindEvent, KindRegistered, KindRestored, KindRetired, Visibility};
pub use kind_view::{Bucket, Fold, Measure, Scalar, ViewCondition, ViewDefinition};
pub use member::{MemberAdded, MemberEvent, MemberRemoved, MemberRoleChanged};
pub use month::{Month, MonthError};
pub use names::{
    CURRENT_ORG, Currency, DomainName, KeyPublicId, KindName, LoginMethod, MeterName, NameError, OWN_KIND, PlanName,
    Slug,
};
pub use organization::{
    Branding, InvitePolicy, JitProvisioning, MfaPolicy, OrganizationCreated, OrganizationDeletionCancelled,
    OrganizationDeletionRequested, OrganizationEvent, OrganizationIdentityLinked, OrganizationLimits,
    OrganizationLimitsChanged, OrganizationPlanChanged, OrganizationRenamed, OrganizationResumed, OrganizationSealed,
    OrganizationSettings, OrganizationSettingsChanged, OrganizationSuspended, OrganizationUpgraded, TenantType,
};
pub use parking::{MessageParked, MessageSettled, ParkedEventsRetried, ParkedEventsSkipped, ParkingEvent, Settlement};
pub use pipeline::{PerPipeline, Pipeline};
pub use plan::{MeterTerms, PlanDefinition, PlanEvent, PlanLimits, PlanPublished, PlanVersion};
pub use position::Position;
pub use quota::{QuotaCounted, QuotaEvent, QuotaName, Quotas};
pub use record::{
    MAX_LISTED_FIELDS, RecordArchived, RecordCreated, RecordEvent, RecordReference, RecordSecret, RecordUpdated,
    SearchRole, SearchedField, UniqueField, is_listed_name,
};
pub use record_log::{RecordAppended, RecordLogEvent, RecordLogId, RecordLogIdError};
pub use role::{Role, RoleChanged, RoleDefined, RoleEvent, RoleRemoved};
pub use signed::{CommitKeys, CommitKeysError};
pub use snapshot::SnapshotPart;
pub use subject::{AggregateName, EventSubject, Shard, SnapshotSubject, SubjectError};
pub use timestamp::{Timestamp, TimestampError};
pub use unique_value::{UniqueValueEvent, UniqueValueReleased, UniqueValueTaken};
pub use vault::{SealedSecret, SecretPlace, VaultEntry, VaultSubject};
pub use view::{EventView, INWARD_FIELDS, is_inward};
