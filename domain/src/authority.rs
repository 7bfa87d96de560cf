//! The delegation rule: a principal grants, sets or learns no more than its role and its scopes both allow.
//!
//! What a command grants is declared with the command (`commands/grants.rs`); this module decides whether the principal may.

use std::collections::BTreeSet;

use orgstream_events::Role;

use crate::{Permission, Scopes};

/// The permissions of a principal in an organization, as far as it may delegate them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    role: Role,
    of_role: BTreeSet<Permission>,
    scopes: Scopes,
}

/// The reason why a principal may not grant something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// The role is above the principal's own.
    #[error("the role {by} cannot give the role {role}; ask a member who has it")]
    Role {
        /// The principal's role.
        by: Role,
        /// The role to be granted.
        role: Role,
    },
    /// The principal's role lacks the permission.
    #[error("your role {by} does not have the permission {permission}, and a grant cannot exceed it")]
    Permission {
        /// The principal's role.
        by: Role,
        /// The first missing permission.
        permission: Permission,
    },
    /// The principal's role has the permission and its scopes do not.
    #[error("this credential's scopes do not have the permission {permission}, and a grant cannot exceed it")]
    Scopes {
        /// The first missing permission.
        permission: Permission,
    },
}

impl Authority {
    /// The authority of a principal whose role has the permissions `of_role`, within `scopes`.
    pub fn new(role: Role, of_role: BTreeSet<Permission>, scopes: Scopes) -> Self {
        Self { role, of_role, scopes }
    }

    /// Returns all permissions of the principal.
    pub fn permissions(&self) -> BTreeSet<Permission> {
        self.of_role.iter().copied().filter(|permission| self.scopes.allow(*permission)).collect()
    }

    /// Checks that the principal may grant these permissions, or use them to learn something.
    pub fn may_grant(&self, permissions: &BTreeSet<Permission>) -> Result<(), Excess> {
        let by = self.role;
        for &permission in permissions {
            if !self.of_role.contains(&permission) {
                return Err(Excess::Permission { by, permission });
            }
            if !self.scopes.allow(permission) {
                return Err(Excess::Scopes { permission });
            }
        }
        Ok(())
    }

    /// Checks that the principal may grant a role of which these `permissions` are used: all of the role's, or fewer. A role
    /// can be above another with the same permissions: an admin creates no owner.
    pub fn may_grant_role(&self, role: Role, permissions: &BTreeSet<Permission>) -> Result<(), Excess> {
        if !self.role.includes(role) {
            return Err(Excess::Role { by: self.role, role });
        }
        self.may_grant(permissions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(names: &[&str]) -> Scopes {
        Scopes::named(Some(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()))
    }

    fn of(role: Role, scopes: Scopes) -> Authority {
        Authority::new(role, Permission::of_role(role), scopes)
    }

    #[test]
    fn an_admin_without_scopes_gives_every_role_but_the_owners() {
        let admin = of(Role::Admin, Scopes::ALL);
        for role in Role::BUILT_IN {
            let given = admin.may_grant_role(role, &Permission::of_role(role));
            assert_eq!(given.is_ok(), role != Role::Owner, "{role}: {given:?}");
        }
        let refused = admin.may_grant_role(Role::Owner, &BTreeSet::new());
        assert_eq!(refused, Err(Excess::Role { by: Role::Admin, role: Role::Owner }));
    }

    #[test]
    fn scopes_bound_every_role_that_is_given() {
        let members = of(Role::Owner, scopes(&["members:read", "members:manage"]));
        for role in Role::BUILT_IN {
            let given = members.may_grant_role(role, &Permission::of_role(role));
            assert!(matches!(given, Err(Excess::Scopes { .. })), "{role}: {given:?}");
        }
        let viewing: Vec<&str> = Permission::of_role(Role::Viewer).into_iter().map(Permission::name).collect();
        let viewer = of(Role::Admin, scopes(&viewing));
        assert!(viewer.may_grant_role(Role::Viewer, &Permission::of_role(Role::Viewer)).is_ok());
        assert!(viewer.may_grant_role(Role::Member, &Permission::of_role(Role::Member)).is_err());
    }

    /// For every role and all scopes, a principal may grant exactly what it may do.
    #[test]
    fn what_may_be_given_is_what_may_be_done() {
        for role in Role::BUILT_IN {
            for scope in Permission::ALL {
                let authority = of(role, scopes(&[scope.name()]));
                for permission in Permission::ALL {
                    let may = permission.is_granted_to(role) && permission == scope;
                    assert_eq!(authority.may_grant(&BTreeSet::from([*permission])).is_ok(), may, "{role} {scope}");
                    assert_eq!(authority.permissions().contains(permission), may);
                }
            }
        }
    }

    #[test]
    fn a_scope_beyond_the_role_gives_nothing() {
        let viewer = of(Role::Viewer, scopes(&["members:manage"]));
        let refused = viewer.may_grant(&BTreeSet::from([Permission::ManageMembers]));
        assert!(matches!(refused, Err(Excess::Permission { .. })), "{refused:?}");
    }
}
