//! Events of an organization's connections to issuers of its own.

use serde::{Deserialize, Serialize};

use crate::{ConnectionId, codec::event_enum};

event_enum! {
    /// The events of connections.
    SsoConnectionEvent about "sso_connection".connection_id {
        Added(SsoConnectionAdded) = "sso_connection.added", 1;
        DefaultChanged(SsoDefaultChanged) = "sso_connection.default_changed", 1;
        Removed(SsoConnectionRemoved) = "sso_connection.removed", 1;
    }
}

/// A connection was added: people of this issuer may sign in to this organization, and by it to no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SsoConnectionAdded {
    /// The connection.
    pub connection_id: ConnectionId,
    /// The display name.
    pub name: String,
    /// The issuer: `iss` of its tokens.
    pub issuer: String,
    /// The required `aud` of its tokens.
    pub audience: String,
    /// Whether a person who signs in by it becomes a member, where the organization permits that.
    pub jit: bool,
}

/// The default connection changed: people who choose no other are sent there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SsoDefaultChanged {
    /// The connection.
    pub connection_id: ConnectionId,
}

/// The connection was removed, and sign-in by it ends. Members who joined by it stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SsoConnectionRemoved {
    /// The connection.
    pub connection_id: ConnectionId,
}
