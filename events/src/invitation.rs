//! Events of an invitation.

use serde::{Deserialize, Serialize};

use crate::{Fingerprint, MemberId, Role, Timestamp, codec::event_enum};

event_enum! {
    /// What happens to an invitation.
    InvitationEvent {
        Issued(InvitationIssued) = "invitation.issued", 1;
        Resent(InvitationResent) = "invitation.resent", 1;
        Revoked(InvitationRevoked) = "invitation.revoked", 1;
        Accepted(InvitationAccepted) = "invitation.accepted", 1;
    }
}

/// Somebody may join. The token that they join with goes to their mailbox and is stored nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationIssued {
    /// Who: only whoever has this address, as an issuer verified it, can accept.
    pub email: String,
    /// What they may do once they accepted.
    pub role: Role,
    /// Until when they can.
    pub expires_at: Timestamp,
    /// A keyed hash of the token: enough to recognize it, useless without the server's pepper.
    pub token_mac: Fingerprint,
}

/// A new token went to the same mailbox, and the one before is void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationResent {
    /// Until when it can be accepted now.
    pub expires_at: Timestamp,
    /// A keyed hash of the new token.
    pub token_mac: Fingerprint,
}

/// Nobody can accept it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationRevoked {
    /// Why, if somebody said.
    pub reason: Option<String>,
}

/// The person joined, in the same atomic append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationAccepted {
    /// Who they are inside the organization.
    pub member_id: MemberId,
}
