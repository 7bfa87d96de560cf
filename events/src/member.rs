//! Events of an organization's members.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{MemberId, UserId, codec::event_enum};

event_enum! {
    /// What happens to members.
    MemberEvent {
        Added(MemberAdded) = "member.added", 1;
        RoleChanged(MemberRoleChanged) = "member.role_changed", 1;
        Removed(MemberRemoved) = "member.removed", 1;
    }
}

/// What a member or a key may do. The first four include each other; an auditor reads the audit log and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, deletion included.
    Owner,
    /// Members, keys and settings.
    Admin,
    /// Reading and writing records.
    Member,
    /// Reading.
    Viewer,
    /// The audit log only.
    Auditor,
}

impl Role {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Member => "member",
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
        }
    }

    /// This role, and those of the first four that it includes.
    pub fn effective(self) -> Vec<Self> {
        let ladder = [Self::Owner, Self::Admin, Self::Member, Self::Viewer];
        match ladder.iter().position(|role| *role == self) {
            Some(place) => ladder.into_iter().skip(place).collect(),
            None => vec![self],
        }
    }

    /// Whether whoever has this role may hand out `other`.
    pub fn includes(self, other: Self) -> bool {
        match self {
            Self::Owner => true,
            Self::Admin => other != Self::Owner,
            Self::Member => matches!(other, Self::Member | Self::Viewer),
            Self::Viewer => other == Self::Viewer,
            Self::Auditor => other == Self::Auditor,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Owner, Self::Admin, Self::Member, Self::Viewer, Self::Auditor]
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("{text:?} is not a role: owner, admin, member, viewer or auditor"))
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
