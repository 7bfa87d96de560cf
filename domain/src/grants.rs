//! What each command grants or discloses.
//!
//! Each command declares it ([`crate::Declared::grants`]). Whether the sender may is one rule ([`crate::authority`]),
//! checked in one place: where commands are handled.

use std::collections::BTreeSet;

use orgstream_events::{ConnectionId, InvitationId, KeyId, Role};

use crate::Permission;

/// A grant of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// A role, to a principal that acts by it.
    Role(Role),
    /// These permissions: to a role, or to an external endpoint that receives what they open.
    Permissions(BTreeSet<Permission>),
    /// A key's token: its role within these scopes, or within those of the issuing principal.
    Key(Role, Option<Vec<String>>),
    /// The token of an existing key.
    KeyAgain(KeyId),
    /// No permission, but the end of an existing key, which requires as many permissions as the key has.
    KeyEnded(KeyId),
    /// The offer of an existing invitation.
    Invitation(InvitationId),
    /// The right of this issuer to vouch for identities.
    Issuer(String),
    /// No permission, but the end of this issuer's right, on which owners may depend.
    IssuerEnded(ConnectionId),
    /// What a member of the organization has offered, to the recipient: whether the offer still holds is checked on
    /// acceptance.
    Offered,
}

impl Grant {
    /// The permissions of these names. An unknown name grants nothing, and is refused by the role's own rules.
    pub(crate) fn permissions_named(names: &[String]) -> Self {
        Self::Permissions(names.iter().filter_map(|name| Permission::named(name)).collect())
    }
}
