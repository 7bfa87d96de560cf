//! Events of an organization's members.

use serde::{Deserialize, Serialize};

use crate::{MemberId, Role, UserId, codec::event_enum};

event_enum! {
    /// The events of members.
    MemberEvent about "member".member_id {
        Added(MemberAdded) = "member.added", 1;
        RoleChanged(MemberRoleChanged) = "member.role_changed", 1;
        Removed(MemberRemoved) = "member.removed", 1;
    }
}

/// A person joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberAdded {
    /// The id of the member inside this organization.
    pub member_id: MemberId,
    /// The person's identity across organizations; links the memberships of one login, and is never shown.
    pub user_id: UserId,
    /// The e-mail address.
    pub email: String,
    /// The role.
    pub role: Role,
}

/// A member's role changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRoleChanged {
    /// The member.
    pub member_id: MemberId,
    /// The role before.
    pub from: Role,
    /// The role now.
    pub to: Role,
}

/// A member was removed; the data that they created stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRemoved {
    /// The member.
    pub member_id: MemberId,
}
