//! What may be done, and by whom: the one table that routes, commands and the documentation share.

use std::{collections::BTreeSet, fmt, sync::Arc};

use orgstream_events::Role;
macro_rules! permissions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal: $($role:ident),*;)*) => {
        /// One thing that a principal may or may not do in an org.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Permission {
            $($(#[$doc])* $variant,)*
        }

        impl Permission {
            /// Every permission there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name, as errors and the documentation have it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The permission of this name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|permission| permission.name() == name)
            }

            /// Whether the role has it. What a role of an organization's own may, that organization says.
            pub fn is_granted_to(self, role: Role) -> bool {
                match self {
                    $(Self::$variant => [$(Role::$role),*].contains(&role),)*
                }
            }
        }
    };
}

permissions! {
    /// See the organization and its settings.
    ReadOrganization = "organization:read": Owner, Admin, Member, Viewer;
    /// Rename it, change its settings.
    ManageOrganization = "organization:manage": Owner, Admin;
    /// See which domains it has; claim, prove and remove them.
    ManageDomains = "domains:manage": Owner, Admin;
    /// See, add and remove connections to issuers of its own.
    ManageSso = "sso:manage": Owner, Admin;
    /// See who the members are.
    ReadMembers = "members:read": Owner, Admin, Member, Viewer;
    /// Add, change and remove members; see, issue, resend and revoke invitations.
    ManageMembers = "members:manage": Owner, Admin;
    /// Make, change and remove roles of the organization's own.
    ManageRoles = "roles:manage": Owner, Admin;
    /// See which API keys there are.
    ReadKeys = "api_keys:read": Owner, Admin;
    /// Issue, rotate and revoke API keys.
    ManageKeys = "api_keys:manage": Owner, Admin;
    /// Read records and follow events.
    ReadRecords = "records:read": Owner, Admin, Member, Viewer;
    /// Create, update and archive records.
    WriteRecords = "records:write": Owner, Admin, Member;
    /// Read and replay the audit log.
    ReadAudit = "audit:read": Owner, Admin, Auditor;
    /// See how far the projections are.
    ReadProjections = "projections:read": Owner, Admin, Member, Viewer, Auditor;
    /// See, retry and skip parked events. For operators.
    ManageParking = "parking:manage": ;
    /// Suspend and resume an organization. For operators.
    Suspend = "organization:suspend": ;
    /// Put an organization on another plan, or give it limits of its own. For operators.
    ManagePlan = "organization:plan": ;
    /// Look into an organization for a while, or end that. For operators.
    BreakGlass = "break_glass:manage": ;
    /// Register, change, retire and restore kinds. For operators, in the platform's own org.
    ManageKinds = "kinds:manage": ;
}

impl Permission {
    /// What it is about: the name before the colon.
    pub fn subject(self) -> &'static str {
        self.name().split(':').next().unwrap_or_default()
    }

    /// Everything that a built-in role may do.
    pub fn of_role(role: Role) -> BTreeSet<Self> {
        Self::ALL.iter().copied().filter(|permission| permission.is_granted_to(role)).collect()
    }

    /// Whether it only looks at what a tenant has: what an operator may do behind broken glass.
    pub fn is_reading(self) -> bool {
        matches!(
            self,
            Self::ReadOrganization | Self::ReadMembers | Self::ReadKeys | Self::ReadRecords | Self::ReadAudit
        )
    }

    /// Whether an operator of the platform has it in an org of a tenant.
    pub fn is_operators(self) -> bool {
        matches!(
            self,
            Self::ManageParking | Self::Suspend | Self::ManagePlan | Self::ReadProjections | Self::BreakGlass
        )
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a key may do within its role: everything, or only these permissions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes(Option<Arc<[Permission]>>);

impl Scopes {
    /// Everything that the role may.
    pub const ALL: Self = Self(None);

    /// Reads what is stored. A name that only a newer version knows allows nothing here.
    pub fn named(names: Option<&[String]>) -> Self {
        Self(names.map(|names| names.iter().filter_map(|name| Permission::named(name)).collect()))
    }

    /// Whether the permission is among them.
    pub fn allow(&self, permission: Permission) -> bool {
        self.0.as_ref().is_none_or(|scopes| scopes.contains(&permission))
    }

    /// Whether whoever has these may hand out `other` to somebody of a role.
    pub fn include(&self, other: &Self, role: Role) -> bool {
        // What a role of an organization's own may is not known here.
        if matches!(role, Role::Custom(_)) {
            return self.0.is_none();
        }
        Permission::ALL
            .iter()
            .filter(|permission| permission.is_granted_to(role) && other.allow(**permission))
            .all(|permission| self.allow(*permission))
    }

    /// Their names; none for everything.
    pub fn names(&self) -> Option<Vec<String>> {
        self.0.as_ref().map(|scopes| scopes.iter().map(|scope| scope.name().to_owned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(names: &[&str]) -> Scopes {
        Scopes::named(Some(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()))
    }

    #[test]
    fn scopes_bound_what_is_handed_out() {
        let reading = scopes(&["records:read", "api_keys:manage"]);
        assert!(Scopes::ALL.include(&reading, Role::Admin) && Scopes::ALL.include(&Scopes::ALL, Role::Owner));
        assert!(reading.include(&scopes(&["records:read"]), Role::Member));
        assert!(!reading.include(&scopes(&["records:write"]), Role::Member));
        assert!(!reading.include(&Scopes::ALL, Role::Viewer));
        // What the role does not have anyway is no more than nothing.
        assert!(reading.include(&scopes(&["records:read", "members:manage"]), Role::Viewer));
        assert!(!reading.include(&scopes(&["records:read", "members:manage"]), Role::Admin));
    }

    #[test]
    fn a_scope_of_a_newer_version_allows_nothing() {
        let unknown = scopes(&["spaceships:launch"]);
        assert!(Permission::ALL.iter().all(|permission| !unknown.allow(*permission)));
        assert_eq!(scopes(&["audit:read"]).names(), Some(vec!["audit:read".to_owned()]));
    }

    #[test]
    fn permissions_have_names_of_their_own() {
        for permission in Permission::ALL {
            assert_eq!(Permission::named(permission.name()), Some(*permission));
        }
    }
}
