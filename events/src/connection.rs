//! Events of an organization's connections to issuers of its own.

use serde::{Deserialize, Serialize};

use crate::{ConnectionId, codec::event_enum};

event_enum! {
    /// What happens to connections.
    SsoConnectionEvent {
        Added(SsoConnectionAdded) = "sso_connection.added", 1;
        DefaultChanged(SsoDefaultChanged) = "sso_connection.default_changed", 1;
        Removed(SsoConnectionRemoved) = "sso_connection.removed", 1;
    }
}

/// People of this issuer may sign in to this organization, and to no other by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SsoConnectionAdded {
    /// Which.
    pub connection_id: ConnectionId,
    /// What people call it.
    pub name: String,
    /// What the issuer's tokens name as `iss`.
    pub issuer: String,
    /// What they must name as `aud`.
    pub audience: String,
    /// Whether whoever signs in by it becomes a member, where the organization lets people in like that.
    pub jit: bool,
}

/// People who do not say otherwise are sent there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SsoDefaultChanged {
    /// Which.
    pub connection_id: ConnectionId,
}

/// Nobody signs in by it any more. Members who came by it stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SsoConnectionRemoved {
    /// Which.
    pub connection_id: ConnectionId,
}
