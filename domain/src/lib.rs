//! The domain model: the commands that a caller may send, and the pure decisions on them.
//!
//! One file is one aggregate, always in the same order: state, `apply`, commands, `decide`, errors, tests. This crate does
//! no I/O, reads no clock and draws no randomness; the command handler does that for all of them and passes the results in.
//!
//! Start with [`Aggregate`] and [`Command`].

pub mod account;
mod aggregate;
pub mod annotations;
pub mod api_key;
pub mod authority;
pub mod catalog_choices;
pub mod catalog_item;
mod command;
pub mod credentials;
pub mod deletion;
pub mod domain;
pub mod grants;
pub mod invitation;
pub mod invoice;
pub mod kind;
pub mod member;
pub mod openapi;
pub mod organization;
pub mod own_kinds;
pub mod parking;
pub mod permission;
pub mod plan;
mod public_domains;
pub mod public_url;
pub mod quota;
pub mod record;
pub mod record_log;
pub mod rejection;
pub mod role;
pub mod schema;
pub mod schema_work;
pub mod settings;
pub mod shape;
pub mod sso_connection;
#[cfg(test)]
mod testing;
pub mod text;
pub mod unique_value;
pub mod views;

pub use account::{
    ChangeTopUp, ChargeUsage, CreditAccount, DeclineTopUp, ExtendHold, PayTopUp, ReleaseHold, RequestTopUp,
    ReserveUsage, SettleHold,
};
pub use aggregate::{Aggregate, DecisionContext, Place};
pub use api_key::{IssueApiKey, RevokeApiKey, RotateApiKey};
pub use catalog_choices::{ChooseCatalogItem, ClearCatalogChoice};
pub use catalog_item::{PublishCatalogItem, WithdrawCatalogItem};
pub use command::{About, Command, CommandSpec, Declared, HourlyLimit, Requires, Scope};
pub use domain::{ClaimDomain, JoinByDomain, ProveDomain, RemoveDomain};
pub use invitation::{AcceptInvitation, IssueInvitation, ResendInvitation, RevokeInvitation};
pub use invoice::{
    CloseMonth, EndBilling, LinkBillingCustomer, MarkInvoicePaid, NoteBillingCustomerReleased, NoteInvoicePushed,
    NoteInvoiceWithdrawn, VoidInvoice,
};
pub use kind::{ChangeKind, RegisterKind, RestoreKind, RetireKind};
pub use member::{AddMember, ChangeMemberRole, RemoveMember};
pub use organization::{
    CancelDeletion, ChangeLimits, ChangePlan, CreateOrganization, RenameOrganization, RequestDeletion, RestoreSignIn,
    ResumeOrganization, SuspendOrganization, UpgradeOrganization,
};
pub use parking::{RetryParked, SkipParked};
pub use permission::{Permission, Scopes};
pub use plan::PublishPlan;
pub use record::{ArchiveRecord, CreateRecord, UpdateRecord};
pub use record_log::AppendRecords;
pub use rejection::{FieldError, Rejection, RejectionKind};
pub use role::{ChangeRole, DefineRole, RemoveRole};
pub use settings::ChangeSettings;
pub use shape::{Misfit, shaped};
pub use sso_connection::{AddSsoConnection, JoinBySso, RemoveSsoConnection, SetDefaultSsoConnection};
