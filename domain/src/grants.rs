//! What each command gives to somebody who did not have it, or lets somebody learn.
//!
//! Each command declares it ([`crate::Declared::grants`]). Whether whoever sends it may is one rule
//! ([`crate::authority`]), asked in one place: where commands are handled.

use std::collections::BTreeSet;

use orgstream_events::{InvitationId, KeyId, Role};

use crate::Permission;

/// What a command gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// A role, to somebody who acts by it.
    Role(Role),
    /// These permissions: to a role, or to a place outside that learns what they open.
    Permissions(BTreeSet<Permission>),
    /// A key's token: its role within these scopes, or within those of whoever issues it.
    Key(Role, Option<Vec<String>>),
    /// The token of a key that is there.
    KeyAgain(KeyId),
    /// Nothing, but it ends a key that is there, which is for those who may do as much as the key.
    KeyEnded(KeyId),
    /// What an invitation that is there offers.
    Invitation(InvitationId),
    /// That this issuer says who signs in.
    Issuer(String),
    /// What somebody in the organization has offered, to whoever takes it: that they still may is asked where it is taken.
    Offered,
}

impl Grant {
    /// The permissions of these names. What is no permission gives nothing, and is refused by the role's own rules.
    pub(crate) fn permissions_named(names: &[String]) -> Self {
        Self::Permissions(names.iter().filter_map(|name| Permission::named(name)).collect())
    }
}
