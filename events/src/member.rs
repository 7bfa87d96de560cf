//! Events of an organization's members.

use serde::{Deserialize, Serialize};

use crate::{MemberId, Role, UserId, codec::event_enum};

event_enum! {
    /// What happens to members.
    MemberEvent {
        Added(MemberAdded) = "member.added", 1;
        RoleChanged(MemberRoleChanged) = "member.role_changed", 1;
        Removed(MemberRemoved) = "member.removed", 1;
    }
}

/// A person joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberAdded {
    /// The person inside this organization.
    pub member_id: MemberId,
    /// The person outside it; links the memberships of one login, and is shown to nobody.
    pub user_id: UserId,
    /// Where to reach them.
    pub email: String,
    /// What they may do.
    pub role: Role,
}

/// A member may do more, or less.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRoleChanged {
    /// Who.
    pub member_id: MemberId,
    /// What they could do before.
    pub from: Role,
    /// What they may do now.
    pub to: Role,
}

/// A person left; what they made stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRemoved {
    /// Who.
    pub member_id: MemberId,
}
