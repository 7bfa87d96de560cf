//! Roles of members and keys: the built-in roles, and the events of an organization's custom ones.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{RoleId, codec::event_enum};

event_enum! {
    /// The events of custom roles.
    RoleEvent about "role".role_id {
        Defined(RoleDefined) = "role.defined", 1;
        Changed(RoleChanged) = "role.changed", 1;
        Removed(RoleRemoved) = "role.removed", 1;
    }
}

/// The role of a member or a key. The first four include each other; an auditor reads the audit log and nothing else. On the
/// wire a role is one text: a name, or the id of a custom role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// The permissions that the organization defined for this custom role.
    Custom(RoleId),
}

impl Role {
    /// The built-in roles, which every organization has.
    pub const BUILT_IN: [Self; 5] = [Self::Owner, Self::Admin, Self::Member, Self::Viewer, Self::Auditor];

    /// Returns the text on the wire.
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Member => "member",
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::Custom(id) => return Cow::Owned(id.to_string()),
        })
    }

    /// Whether a holder of this role may grant `other`. The permissions of a custom role are not known here, so its holder
    /// grants that role alone; the check that it has no more than an admin's is left to the caller that knows its
    /// permissions.
    pub fn includes(self, other: Self) -> bool {
        match self {
            Self::Owner => true,
            Self::Admin => other != Self::Owner,
            Self::Member => matches!(other, Self::Member | Self::Viewer),
            Self::Viewer | Self::Auditor | Self::Custom(_) => other == self,
        }
    }

    /// Returns this role and every built-in one that it includes, the strongest first: the effective roles of a holder.
    pub fn effective(self) -> Vec<Self> {
        match self {
            Self::Owner => vec![Self::Owner, Self::Admin, Self::Member, Self::Viewer],
            Self::Admin => vec![Self::Admin, Self::Member, Self::Viewer],
            Self::Member => vec![Self::Member, Self::Viewer],
            Self::Viewer | Self::Auditor | Self::Custom(_) => vec![self],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The name of a member in other products.
        if text.eq_ignore_ascii_case("editor") {
            return Ok(Self::Member);
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Custom(id));
        }
        Self::BUILT_IN.into_iter().find(|role| role.name() == text).ok_or_else(|| {
            format!(
                "{text:?} is not a role: owner, admin, member (or editor), viewer, auditor, or the id of a role of the \
                 organization's own (role_…)"
            )
        })
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A custom role was defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleDefined {
    /// The role.
    pub role_id: RoleId,
    /// The display name.
    pub name: String,
    /// The permissions of its holders, by name.
    pub permissions: Vec<String>,
}

/// A custom role's permissions or its name changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleChanged {
    /// The role.
    pub role_id: RoleId,
    /// The display name from now on.
    pub name: String,
    /// All permissions of its holders from now on.
    pub permissions: Vec<String>,
}

/// A custom role was removed: its holders have no permissions until they are given another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleRemoved {
    /// The role.
    pub role_id: RoleId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_one_text_on_the_wire() {
        let custom = Role::Custom(RoleId::fresh(1_700_000_000_000, [7; 10]));
        for role in Role::BUILT_IN.into_iter().chain([custom]) {
            let json = serde_json::to_string(&role).unwrap();
            assert_eq!(json, format!("\"{role}\""));
            assert_eq!(serde_json::from_str::<Role>(&json).unwrap(), role);
            let bytes = rmp_serde::to_vec_named(&role).unwrap();
            assert_eq!(rmp_serde::from_slice::<Role>(&bytes).unwrap(), role);
        }
        assert_eq!("Editor".parse(), Ok(Role::Member));
        assert!("boss".parse::<Role>().unwrap_err().contains("owner, admin"));
    }

    #[test]
    fn whoever_has_a_role_of_their_own_hands_out_that_one_alone() {
        let (own, other) = (Role::Custom(RoleId::fresh(1, [1; 10])), Role::Custom(RoleId::fresh(1, [2; 10])));
        assert!(own.includes(own) && Role::Admin.includes(own) && Role::Owner.includes(own));
        assert!(!own.includes(other) && !own.includes(Role::Viewer) && !Role::Member.includes(own));
    }

    #[test]
    fn an_owner_is_everything_but_an_auditor_alone() {
        let names: Vec<_> = Role::Owner.effective().into_iter().map(Role::name).collect();
        assert_eq!(names, ["owner", "admin", "member", "viewer"]);
        assert_eq!(Role::Auditor.effective(), [Role::Auditor]);
    }
}
