//! Events of an invitation.

use serde::{Deserialize, Serialize};

use crate::{Fingerprint, MemberId, Role, Timestamp, codec::event_enum};

event_enum! {
    /// The events of an invitation.
    InvitationEvent about aggregate {
        Issued(InvitationIssued) = "invitation.issued", 1;
        Resent(InvitationResent) = "invitation.resent", 1;
        Revoked(InvitationRevoked) = "invitation.revoked", 1;
        Accepted(InvitationAccepted) = "invitation.accepted", 1;
    }
}

/// An invitation was issued. Its token goes to the recipient's mailbox and is stored nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationIssued {
    /// The recipient: only a person with this address, verified by an issuer, can accept.
    pub email: String,
    /// The role on acceptance.
    pub role: Role,
    /// When the invitation expires.
    pub expires_at: Timestamp,
    /// A keyed hash of the token: enough to verify it, useless without the server's pepper.
    pub token_mac: Fingerprint,
}

/// A new token went to the same mailbox, and the previous one is void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationResent {
    /// When it expires now.
    pub expires_at: Timestamp,
    /// A keyed hash of the new token.
    pub token_mac: Fingerprint,
}

/// The invitation was revoked and can no longer be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationRevoked {
    /// The reason, if one was given.
    pub reason: Option<String>,
}

/// The person joined, in the same atomic append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationAccepted {
    /// The id of the new member.
    pub member_id: MemberId,
}
