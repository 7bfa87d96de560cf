//! Access events of an organization: denials, sign-ins, and reads that are recorded. None of them is a write, all of them
//! belong in the audit log.
//!
//! They are not decisions: none depends on an earlier one, so they share a subject, are appended without an expectation, and
//! give their aggregate no version (their headers say 0). An access event is deduplicated by its event id, which follows
//! from its command id.

use serde::{Deserialize, Serialize};

use crate::{
    BreakGlassId, KeyId, KeyPublicId, OrgId, Outcome, OutcomeStatus, RecordId, SecretId, Target, Timestamp,
    codec::{Targeted, event_enum},
};

event_enum! {
    /// The access events.
    AccessEvent about own {
        Denied(AccessDenied) = "access.denied", 1;
        SignedIn(SignedIn) = "access.signed_in", 1;
        OrgSwitched(OrgSwitched) = "access.org_switched", 1;
        KeyRefused(KeyRefused) = "access.key_refused", 1;
        AuditRead(AuditRead) = "access.audit_read", 1;
        AuditExported(AuditExported) = "access.audit_exported", 1;
        NatsCredentialsIssued(NatsCredentialsIssued) = "access.nats_credentials_issued", 1;
        SecretUsed(SecretUsed) = "access.secret_used", 1;
        BreakGlassApproved(BreakGlassApproved) = "access.break_glass_approved", 1;
        BreakGlassOpened(BreakGlassOpened) = "access.break_glass_opened", 1;
        BreakGlassUsed(BreakGlassUsed) = "access.break_glass_used", 1;
        BreakGlassClosed(BreakGlassClosed) = "access.break_glass_closed", 1;
        IsolationFailed(IsolationFailed) = "access.isolation_failed", 1;
    }
}

/// An authenticated principal was denied.
///
/// It is recorded in the log of the actor's own organization, never in that of the requested organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccessDenied {
    /// The stable error code of the answer.
    pub code: String,
    /// The entry point: method and path as the router has it, or `NATS cmd`.
    pub route: String,
    /// The type of the requested resource: `record`, `member`, …
    pub target: String,
    /// The organization as the caller named it; whether it exists is not disclosed.
    pub asked: Option<String>,
    /// The number of attempts that this stands for: 1, or more where repeated identical ones were aggregated.
    pub repeated: u64,
}

/// A person signed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignedIn {
    /// The method: `oidc`, `password`, …
    pub method: String,
}

/// A session switched to this organization, or away from it. The other organization is not disclosed here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrgSwitched {
    /// Whether the session entered or left.
    pub direction: Direction,
    /// The session's count of switches, which only grows.
    pub epoch: u64,
}

/// The direction of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The session switched to this organization.
    Entered,
    /// The session switched to another organization.
    Left,
}

/// A token that names a key of this organization was not accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRefused {
    /// The key.
    pub key_id: KeyId,
    /// The part of the token that identifies the key.
    pub public_id: KeyPublicId,
    /// The reason: `wrong_secret`, `revoked`, `expired` or `ip_not_allowed`.
    pub code: String,
    /// The number of attempts that this stands for: 1, or more where repeated identical ones were aggregated.
    pub repeated: u64,
}

/// The audit log was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRead {
    /// The entry point: method and path as the router has it.
    pub route: String,
    /// The query string of the request.
    pub query: Option<String>,
    /// The number of reads that this stands for: 1, or more where many identical ones were aggregated.
    pub repeated: u64,
}

/// A part of the audit log was exported to a file. Recorded before the file is delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditExported {
    /// The format: `jsonl`, `csv`, `ocsf`, `bundle`, …
    pub format: String,
    /// The first index in the log.
    pub from_idx: u64,
    /// The index before which it ends.
    pub upto_idx: u64,
    /// The filter, as in the query.
    pub filter: Option<String>,
}

/// NATS credentials were derived from an API key, and are valid as long as it is. Recorded before they are delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatsCredentialsIssued {
    /// The key.
    pub key_id: KeyId,
    /// The part of its token that identifies it.
    pub public_id: KeyPublicId,
    /// The expiry, which is the key's.
    pub expires_at: Option<Timestamp>,
}

/// The value of a record's secret was asked for. Recorded before it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecretUsed {
    /// The record.
    pub record: RecordId,
    /// The field of its content.
    pub field: String,
    /// The id of the value.
    pub secret: SecretId,
    /// The number of the value in this field.
    pub version: u64,
    /// The purpose, in the caller's words.
    pub reason: String,
}

/// An operator of the platform approved another operator's access to this organization. The approval alone gives no access.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassApproved {
    /// The id of the break-glass grant that it is for.
    pub id: BreakGlassId,
    /// The operator to be granted access, under the name that operators have here.
    pub operator: String,
    /// The reason, which the grant must repeat verbatim.
    pub reason: String,
    /// The maximum duration, in seconds.
    pub seconds: u32,
}

/// An operator of the platform received a temporary break-glass grant for this organization. Recorded before anything is
/// shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassOpened {
    /// The id of the grant.
    pub id: BreakGlassId,
    /// The reason, in the operator's words.
    pub reason: String,
    /// The approving operator.
    pub approver: String,
    /// The strength of the approval; none in entries from before it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// When the grant expires.
    pub expires_at: Timestamp,
}

/// The strength of a second operator's approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// Another person, authenticated as an operator, approved.
    Given,
    /// The platform requires no approval: the approver is only named by the operator.
    Off,
}

/// An operator read data under a break-glass grant. Recorded before anything is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassUsed {
    /// The grant.
    pub id: BreakGlassId,
    /// The entry point: method and path as the router has it.
    pub route: String,
    /// The path itself.
    pub path: String,
}

/// All break-glass grants of this organization were closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassClosed {}

/// A row that was read for one organization belongs to another. The request ended there; an operator must act.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IsolationFailed {
    /// The organization that the read was bound to.
    pub bound: OrgId,
    /// The organization that the row belongs to.
    pub found: OrgId,
    /// The table of the row.
    pub table: String,
}

impl Targeted for AccessEvent {
    fn target(&self) -> Option<Target> {
        let target = |target_type: &str, id: String| Some(Target { target_type: target_type.to_owned(), id });
        match self {
            Self::Denied(fact) => target(&fact.target, fact.asked.clone().unwrap_or_default()),
            Self::KeyRefused(fact) => target("api_key", fact.key_id.to_string()),
            Self::NatsCredentialsIssued(fact) => target("api_key", fact.key_id.to_string()),
            Self::SecretUsed(fact) => target("record", fact.record.to_string()),
            Self::BreakGlassApproved(fact) => target("break_glass", fact.id.to_string()),
            Self::BreakGlassOpened(fact) => target("break_glass", fact.id.to_string()),
            Self::BreakGlassUsed(fact) => target("break_glass", fact.id.to_string()),
            Self::IsolationFailed(fact) => target("organization", fact.bound.to_string()),
            Self::SignedIn(_)
            | Self::OrgSwitched(_)
            | Self::AuditRead(_)
            | Self::AuditExported(_)
            | Self::BreakGlassClosed(_) => None,
        }
    }
}

impl AccessEvent {
    /// Returns the outcome, as in the header.
    pub(crate) fn outcome(&self) -> Outcome {
        let denied = |code: &str| Outcome { status: OutcomeStatus::Denied, code: Some(code.to_owned()) };
        match self {
            Self::Denied(fact) => denied(&fact.code),
            Self::KeyRefused(fact) => denied(&fact.code),
            Self::IsolationFailed(_) => {
                Outcome { status: OutcomeStatus::Failed, code: Some("isolation_failed".to_owned()) }
            }
            Self::SignedIn(_)
            | Self::OrgSwitched(_)
            | Self::AuditRead(_)
            | Self::AuditExported(_)
            | Self::NatsCredentialsIssued(_)
            | Self::SecretUsed(_)
            | Self::BreakGlassApproved(_)
            | Self::BreakGlassOpened(_)
            | Self::BreakGlassUsed(_)
            | Self::BreakGlassClosed(_) => Outcome::SUCCESS,
        }
    }

    /// The attempts that a fact stands for; none where each is written down by itself.
    pub fn repeated(&mut self) -> Option<&mut u64> {
        match self {
            Self::Denied(fact) => Some(&mut fact.repeated),
            Self::KeyRefused(fact) => Some(&mut fact.repeated),
            Self::AuditRead(fact) => Some(&mut fact.repeated),
            Self::SignedIn(_)
            | Self::OrgSwitched(_)
            | Self::AuditExported(_)
            | Self::NatsCredentialsIssued(_)
            | Self::SecretUsed(_)
            | Self::BreakGlassApproved(_)
            | Self::BreakGlassOpened(_)
            | Self::BreakGlassUsed(_)
            | Self::BreakGlassClosed(_)
            | Self::IsolationFailed(_) => None,
        }
    }
}
