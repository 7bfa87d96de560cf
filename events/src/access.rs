//! What happened at an organization's door: who was turned away, who came in, what was read for the record. None of it
//! is a write, all of it belongs into the audit log.
//!
//! These are facts, not decisions: nothing follows from the one before, so they share a subject, are appended without an
//! expectation, and bring their aggregate to no version (their headers say 0). What keeps a fact from being there twice
//! is its event id, which follows from its command id.

use serde::{Deserialize, Serialize};

use crate::{BreakGlassId, KeyId, KeyPublicId, OrgId, Outcome, OutcomeStatus, Target, Timestamp, codec::event_enum};

event_enum! {
    /// What happens at the door.
    AccessEvent {
        Denied(AccessDenied) = "access.denied", 1;
        SignedIn(SignedIn) = "access.signed_in", 1;
        OrgSwitched(OrgSwitched) = "access.org_switched", 1;
        KeyRefused(KeyRefused) = "access.key_refused", 1;
        AuditRead(AuditRead) = "access.audit_read", 1;
        AuditExported(AuditExported) = "access.audit_exported", 1;
        NatsCredentialsIssued(NatsCredentialsIssued) = "access.nats_credentials_issued", 1;
        BreakGlassApproved(BreakGlassApproved) = "access.break_glass_approved", 1;
        BreakGlassOpened(BreakGlassOpened) = "access.break_glass_opened", 1;
        BreakGlassUsed(BreakGlassUsed) = "access.break_glass_used", 1;
        BreakGlassClosed(BreakGlassClosed) = "access.break_glass_closed", 1;
        IsolationFailed(IsolationFailed) = "access.isolation_failed", 1;
    }
}

/// Somebody who proved who they are was turned away.
///
/// It stands in the log of the actor's own organization, never in that of the organization that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccessDenied {
    /// The stable error code that the caller was answered.
    pub code: String,
    /// Which door: method and path as the router has it, or `NATS cmd`.
    pub route: String,
    /// What kind of thing was asked for: `record`, `member`, …
    pub target: String,
    /// The organization as the caller named it; whether there is one is not said.
    pub asked: Option<String>,
    /// How many attempts this stands for: 1, or more where a flood of the same was folded into one.
    pub repeated: u64,
}

/// A person signed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignedIn {
    /// How: `oidc`, `password`, …
    pub method: String,
}

/// A person turned to this organization, or away from it. Where from, or where to, is nobody's business here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrgSwitched {
    /// Whether they came or went.
    pub direction: Direction,
    /// The session's count of switches, which only grows.
    pub epoch: u64,
}

/// Which way somebody went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// In.
    Entered,
    /// Out.
    Left,
}

/// A token that names a key of this organization was not accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRefused {
    /// The key that it names.
    pub key_id: KeyId,
    /// The part of the token that names it.
    pub public_id: KeyPublicId,
    /// Why: `wrong_secret`, `revoked`, `expired` or `ip_not_allowed`.
    pub code: String,
    /// How many attempts this stands for: 1, or more where a flood of the same was folded into one.
    pub repeated: u64,
}

/// The audit log was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRead {
    /// Which door: method and path as the router has it.
    pub route: String,
    /// What was asked for, as the query had it.
    pub query: Option<String>,
    /// How many reads this stands for: 1, or more where many of the same were folded into one.
    pub repeated: u64,
}

/// A part of the audit log left in a file. Written before the file is handed out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditExported {
    /// In which form: `jsonl`, `csv`, `ocsf`, `bundle`, …
    pub format: String,
    /// The first place in the log.
    pub from_idx: u64,
    /// The place before which it ends.
    pub upto_idx: u64,
    /// What was left out, as the query had it.
    pub filter: Option<String>,
}

/// Credentials for NATS were made of an API key, which they are good for as long as it is. Written before they are handed out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatsCredentialsIssued {
    /// The key that they stand for.
    pub key_id: KeyId,
    /// The part of its token that names it.
    pub public_id: KeyPublicId,
    /// When they end by themselves, which is when the key does.
    pub expires_at: Option<Timestamp>,
}

/// An operator of the platform approved that another one looks into this organization. Nobody looks by that alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassApproved {
    /// Names the opening that it is for.
    pub id: BreakGlassId,
    /// Whose look, by the name that they have here.
    pub operator: String,
    /// Why, in the words that they will have to use.
    pub reason: String,
    /// For how long at most, in seconds.
    pub seconds: u32,
}

/// An operator of the platform may look into this organization for a while. Written before anything is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassOpened {
    /// Names this opening.
    pub id: BreakGlassId,
    /// Why, in the operator's words.
    pub reason: String,
    /// The other operator, who agreed.
    pub approver: String,
    /// What that is worth; none in entries of before it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// When it ends by itself.
    pub expires_at: Timestamp,
}

/// What the word of a second operator is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// Another person, who proved to be an operator, approved.
    Given,
    /// The platform asks for none: whoever is named is named by the operator alone.
    Off,
}

/// An operator looked. Written before anything is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassUsed {
    /// By which opening.
    pub id: BreakGlassId,
    /// At what: method and path as the router has it.
    pub route: String,
    /// The path itself.
    pub path: String,
}

/// Whatever was open in this organization is closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakGlassClosed {}

/// A row that was read for one organization turned out to be another's. The request ended there; somebody must act.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IsolationFailed {
    /// The organization that was read for.
    pub bound: OrgId,
    /// The organization that the row belongs to.
    pub found: OrgId,
    /// Where the row lies.
    pub table: String,
}

impl AccessEvent {
    /// How it ended, as the header says.
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
            | Self::BreakGlassApproved(_)
            | Self::BreakGlassOpened(_)
            | Self::BreakGlassUsed(_)
            | Self::BreakGlassClosed(_) => Outcome::SUCCESS,
        }
    }

    /// What it was done to; none where that is the organization as a whole.
    pub(crate) fn target(&self) -> Option<Target> {
        let target = |target_type: &str, id: String| Some(Target { target_type: target_type.to_owned(), id });
        match self {
            Self::Denied(fact) => target(&fact.target, fact.asked.clone().unwrap_or_default()),
            Self::KeyRefused(fact) => target("api_key", fact.key_id.to_string()),
            Self::NatsCredentialsIssued(fact) => target("api_key", fact.key_id.to_string()),
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
            | Self::BreakGlassApproved(_)
            | Self::BreakGlassOpened(_)
            | Self::BreakGlassUsed(_)
            | Self::BreakGlassClosed(_)
            | Self::IsolationFailed(_) => None,
        }
    }
}
