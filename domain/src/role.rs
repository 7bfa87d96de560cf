//! The custom roles of an organization: one aggregate, because their names must be distinct.
//!
//! A role never has more permissions than its creator. The permissions of a principal with a custom role are resolved on
//! every request, so a change reaches all holders of the role.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::{
    AggregateId, AggregateType, Event, OrgId, RoleChanged, RoleDefined, RoleEvent, RoleId, RoleRemoved,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope, grants::Grant, text::Faults,
};

/// The maximum number of custom roles of an organization.
pub const MAX_ROLES: usize = 100;

/// All custom roles of an organization.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CustomRoles {
    roles: BTreeMap<RoleId, CustomRole>,
}

/// A custom role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomRole {
    /// The display name.
    pub name: String,
    /// The permissions of its holders, by name.
    pub permissions: Vec<String>,
}

impl CustomRoles {
    /// Returns the permissions of the role's holders; none when there is no such role. A name that is no longer a permission
    /// grants none.
    pub fn permissions(&self, id: RoleId) -> Option<BTreeSet<Permission>> {
        let role = self.roles.get(&id)?;
        Some(role.permissions.iter().filter_map(|name| Permission::named(name)).collect())
    }
}

/// The commands of the roles. `by` is the caller's permissions.
#[derive(Debug, Clone, PartialEq)]
pub enum RoleCommand {
    /// Defines a role.
    Define {
        /// The command as received.
        command: DefineRole,
        /// The caller's permissions.
        by: BTreeSet<Permission>,
    },
    /// Changes the name or the permissions.
    Change {
        /// The command as received.
        command: ChangeRole,
        /// The caller's permissions.
        by: BTreeSet<Permission>,
    },
    /// Removes a role.
    Remove {
        /// The command as received.
        command: RemoveRole,
        /// The caller's permissions.
        by: BTreeSet<Permission>,
    },
}

/// A role of the organization's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefineRole {
    /// Display name, 1 to 120 characters, unique among the custom roles of the organization.
    #[schema(example = "Ingest", max_length = 120)]
    pub name: String,
    /// Names of permissions of the role; none that the caller does not have.
    #[schema(example = json!(["records:read", "records:write"]))]
    pub permissions: Vec<String>,
}

impl Declared for DefineRole {
    const SPEC: CommandSpec = CommandSpec {
        name: "define_role",
        requires: Requires::Permission(Permission::ManageRoles),
        events: &["role.defined"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Role(org))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::permissions_named(&self.permissions)]
    }
}

/// Another name or other permissions. What is missing stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRole {
    /// Custom role id (`role_` and 26 characters).
    #[schema(value_type = String, example = "role_01h455vb4pex5vsknk084sn02q")]
    pub id: RoleId,
    /// New display name, 1 to 120 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// New and complete names of permissions of the role; none that the caller does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Vec<String>>,
}

impl Declared for ChangeRole {
    const SPEC: CommandSpec = CommandSpec {
        name: "change_role",
        requires: Requires::Permission(Permission::ManageRoles),
        events: &["role.changed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Role(org))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::permissions_named(self.permissions.as_deref().unwrap_or_default())]
    }
}

/// Removes a custom role. A member who has it may do nothing from then on, until they are given another role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveRole {
    /// Custom role id (`role_` and 26 characters).
    #[schema(value_type = String, example = "role_01h455vb4pex5vsknk084sn02q")]
    pub id: RoleId,
}

impl Declared for RemoveRole {
    const SPEC: CommandSpec = CommandSpec {
        name: "remove_role",
        requires: Requires::Permission(Permission::ManageRoles),
        events: &["role.removed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Role(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for CustomRoles {
    type Command = RoleCommand;
    type Event = RoleEvent;
    type Error = RoleError;
    const TYPE: AggregateType = AggregateType::Role;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &RoleEvent) {
        match event {
            RoleEvent::Defined(RoleDefined { role_id, name, permissions })
            | RoleEvent::Changed(RoleChanged { role_id, name, permissions }) => {
                let role = CustomRole { name: name.clone(), permissions: permissions.clone() };
                self.roles.insert(*role_id, role);
            }
            RoleEvent::Removed(event) => {
                self.roles.remove(&event.role_id);
            }
        }
    }

    fn decide(&self, command: RoleCommand, context: &DecisionContext) -> Result<Vec<RoleEvent>, RoleError> {
        match command {
            RoleCommand::Define { command: DefineRole { name, permissions }, by } => {
                let role_id = RoleId::derive(context.command_id);
                if self.roles.len() >= MAX_ROLES {
                    return Err(RoleError::TooMany);
                }
                let permissions = self.checked(role_id, &name, permissions, &by)?;
                Ok(vec![RoleEvent::Defined(RoleDefined { role_id, name, permissions })])
            }
            RoleCommand::Change { command: ChangeRole { id, name, permissions }, by } => {
                let before = self.roles.get(&id).ok_or(RoleError::NotFound)?;
                // The permissions from before are taken from its holders, so they must not exceed the caller's own either.
                not_above(&before.permissions, &by)?;
                let name = name.unwrap_or_else(|| before.name.clone());
                let permissions = permissions.unwrap_or_else(|| before.permissions.clone());
                let permissions = self.checked(id, &name, permissions, &by)?;
                if *before == (CustomRole { name: name.clone(), permissions: permissions.clone() }) {
                    return Ok(vec![]);
                }
                Ok(vec![RoleEvent::Changed(RoleChanged { role_id: id, name, permissions })])
            }
            RoleCommand::Remove { command: RemoveRole { id }, by } => {
                not_above(&self.roles.get(&id).ok_or(RoleError::NotFound)?.permissions, &by)?;
                Ok(vec![RoleEvent::Removed(RoleRemoved { role_id: id })])
            }
        }
    }

    fn wrap(event: RoleEvent) -> Event {
        Event::Role(event)
    }

    fn event_of(event: &Event) -> Option<&RoleEvent> {
        if let Event::Role(event) = event { Some(event) } else { None }
    }
}

impl CustomRoles {
    /// Returns the permissions sorted and deduplicated, if name and permissions are valid.
    fn checked(
        &self,
        id: RoleId,
        name: &str,
        permissions: Vec<String>,
        by: &BTreeSet<Permission>,
    ) -> Result<Vec<String>, RoleError> {
        let mut faults = Faults::default();
        faults.name("/name", name);
        let folded = name.trim().to_lowercase();
        if ["owner", "admin", "member", "editor", "viewer", "auditor"].contains(&folded.as_str())
            || self.roles.iter().any(|(other, role)| *other != id && role.name.trim().to_lowercase() == folded)
        {
            faults.add("/name", "taken", "another role of this organization has this name already");
        }
        for (place, name) in permissions.iter().enumerate() {
            if Permission::named(name).is_none() {
                let known: Vec<&str> = Permission::ALL.iter().map(|permission| permission.name()).collect();
                let detail = format!("there is no permission {name:?}; there are {}", known.join(", "));
                faults.add(format!("/permissions/{place}"), "unknown_permission", detail);
            }
        }
        faults.none_or(RoleError::Invalid)?;
        not_above(&permissions, by)?;
        Ok(permissions.into_iter().collect::<BTreeSet<_>>().into_iter().collect())
    }
}

fn not_above(permissions: &[String], by: &BTreeSet<Permission>) -> Result<(), RoleError> {
    let above = permissions.iter().filter_map(|name| Permission::named(name)).find(|one| !by.contains(one));
    above.map_or(Ok(()), |permission| Err(RoleError::AboveOwn(permission)))
}

/// The reasons why a role command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// No such role, or no longer.
    #[error("there is no such role in this organization")]
    NotFound,
    /// The maximum number of roles is reached.
    #[error("an organization has at most {MAX_ROLES} roles of its own; remove one first")]
    TooMany,
    /// The permission exceeds the caller's own.
    #[error("you do not have the permission {0} yourself; ask a member who has it")]
    AboveOwn(Permission),
}

impl From<RoleError> for Rejection {
    fn from(error: RoleError) -> Self {
        let (kind, code) = match error {
            RoleError::Invalid(errors) => return Self::invalid(errors),
            RoleError::NotFound => (RejectionKind::NotFound, "not_found"),
            RoleError::TooMany => (RejectionKind::Conflict, "too_many_roles"),
            RoleError::AboveOwn(_) => (RejectionKind::Forbidden, "role_above_own"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::Role;

    use super::*;
    use crate::testing::{context, fields, given, rejection};

    fn of(role: Role) -> BTreeSet<Permission> {
        Permission::of_role(role)
    }

    fn texts(permissions: &[&str]) -> Vec<String> {
        permissions.iter().map(|&name| name.to_owned()).collect()
    }

    fn define(name: &str, permissions: &[&str], by: Role) -> RoleCommand {
        let command = DefineRole { name: name.to_owned(), permissions: texts(permissions) };
        RoleCommand::Define { command, by: of(by) }
    }

    fn id(n: u8) -> RoleId {
        RoleId::fresh(1_700_000_000_000, [n; 10])
    }

    fn defined(n: u8, name: &str, permissions: &[&str]) -> RoleEvent {
        let (name, permissions) = (name.to_owned(), texts(permissions));
        RoleEvent::Defined(RoleDefined { role_id: id(n), name, permissions })
    }

    #[test]
    fn a_role_has_each_permission_once_in_one_order() {
        let decided = given::<CustomRoles>(&[]).when(define(
            "Ingest",
            &["records:write", "records:read", "records:write"],
            Role::Admin,
        ));
        let expected = RoleDefined {
            role_id: RoleId::derive(context().command_id),
            name: "Ingest".to_owned(),
            permissions: texts(&["records:read", "records:write"]),
        };
        assert_eq!(decided, Ok(vec![RoleEvent::Defined(expected)]));
    }

    #[test]
    fn a_role_is_never_more_than_who_makes_it() {
        let refused = given::<CustomRoles>(&[]).when(define("Boss", &["parking:manage"], Role::Owner));
        assert_eq!(rejection(refused).code, "role_above_own");
        let book = given::<CustomRoles>(&[defined(1, "Keys", &["api_keys:manage"])]);
        let less = ChangeRole { id: id(1), name: None, permissions: Some(vec![]) };
        assert_eq!(
            rejection(book.when(RoleCommand::Change { command: less, by: of(Role::Member) })).code,
            "role_above_own"
        );
        let gone = RoleCommand::Remove { command: RemoveRole { id: id(1) }, by: of(Role::Member) };
        assert_eq!(rejection(book.when(gone)).code, "role_above_own");
    }

    #[test]
    fn names_differ_whatever_the_case_of_their_letters() {
        let book = given::<CustomRoles>(&[defined(1, "Ingest", &[])]);
        for taken in ["ingest", " INGEST ", "Owner", "editor"] {
            assert_eq!(fields(book.when(define(taken, &[], Role::Owner))), [("/name".to_owned(), "taken".to_owned())]);
        }
        let same = ChangeRole { id: id(1), name: Some("Ingest".to_owned()), permissions: None };
        assert_eq!(book.when(RoleCommand::Change { command: same, by: of(Role::Owner) }), Ok(vec![]));
    }

    #[test]
    fn what_is_no_permission_is_pointed_at() {
        let bad = given::<CustomRoles>(&[]).when(define("X", &["records:read", "records:fly"], Role::Owner));
        assert_eq!(fields(bad), [("/permissions/1".to_owned(), "unknown_permission".to_owned())]);
    }

    #[test]
    fn a_removed_role_gives_nothing() {
        let removed = RoleEvent::Removed(RoleRemoved { role_id: id(1) });
        let book = given::<CustomRoles>(&[defined(1, "Ingest", &["records:write"]), removed]);
        assert_eq!(book.0.permissions(id(1)), None);
        let again = RoleCommand::Remove { command: RemoveRole { id: id(1) }, by: of(Role::Owner) };
        assert_eq!(book.when(again), Err(RoleError::NotFound));
    }
}
