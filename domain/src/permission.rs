//! Permissions and the roles that have them: the one table that routes, commands and the documentation share.

use std::{collections::BTreeSet, fmt, sync::Arc};

use orgstream_events::Role;
macro_rules! permissions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal: $($role:ident),*;)*) => {
        /// An action that a principal may or may not perform in an org.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Permission {
            $($(#[$doc])* $variant,)*
        }

        impl Permission {
            /// All permissions.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the name in errors and the documentation.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns the permission of this name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|permission| permission.name() == name)
            }

            /// Whether the role has it. The permissions of a custom role are defined by its organization.
            pub fn is_granted_to(self, role: Role) -> bool {
                match self {
                    $(Self::$variant => [$(Role::$role),*].contains(&role),)*
                }
            }
        }
    };
}

permissions! {
    /// Read the organization and its settings.
    ReadOrganization = "organization:read": Owner, Admin, Member, Viewer;
    /// Rename the organization, change its settings.
    ManageOrganization = "organization:manage": Owner, Admin;
    /// Delete the organization, and cancel that.
    DeleteOrganization = "organization:delete": Owner;
    /// List its domains; claim, prove and remove them.
    ManageDomains = "domains:manage": Owner, Admin;
    /// List, add and remove its SSO connections.
    ManageSso = "sso:manage": Owner, Admin;
    /// List the members.
    ReadMembers = "members:read": Owner, Admin, Member, Viewer;
    /// Add, change and remove members; list, issue, resend and revoke invitations.
    ManageMembers = "members:manage": Owner, Admin;
    /// Create, change and remove custom roles.
    ManageRoles = "roles:manage": Owner, Admin;
    /// List the API keys.
    ReadKeys = "api_keys:read": Owner, Admin;
    /// Issue, rotate and revoke API keys.
    ManageKeys = "api_keys:manage": Owner, Admin;
    /// Read records and follow events.
    ReadRecords = "records:read": Owner, Admin, Member, Viewer;
    /// Create, update and archive records.
    WriteRecords = "records:write": Owner, Admin, Member;
    /// Register, change, retire and restore kinds: the organization's own, and in the platform's own org the platform's, which is
    /// for operators.
    ManageKinds = "kinds:manage": Owner, Admin;
    /// Be shown the values of the records' secrets.
    UseSecrets = "secrets:use": Owner, Admin;
    /// Pin and hide items of the platform's catalog for the organization.
    ManageCatalog = "catalog:manage": Owner, Admin;
    /// Read the account: the balance, the holds, the usage, the limits and the invoices.
    ReadAccount = "account:read": Owner, Admin, Member, Viewer;
    /// Use what the account has: reserve, extend, settle, release and charge.
    UseAccount = "account:use": Owner, Admin, Member;
    /// Read and replay the audit log.
    ReadAudit = "audit:read": Owner, Admin, Auditor;
    /// Read the progress of the projections.
    ReadProjections = "projections:read": Owner, Admin, Member, Viewer, Auditor;
    /// List, retry and skip parked events. For operators.
    ManageParking = "parking:manage": ;
    /// Suspend and resume an organization. For operators.
    Suspend = "organization:suspend": ;
    /// Change an organization's plan, override its limits, credit its account, or close and settle its invoices; publish plans. For
    /// operators.
    ManagePlan = "organization:plan": ;
    /// Open a break-glass grant, with temporary read access to an organization, or end it. For operators.
    BreakGlass = "break_glass:manage": ;
    /// Publish items of the catalog and withdraw them. For operators, in the platform's own org.
    PublishCatalog = "catalog:publish": ;
}

impl Permission {
    /// Returns its subject: the name before the colon.
    pub fn subject(self) -> &'static str {
        self.name().split(':').next().unwrap_or_default()
    }

    /// Returns all permissions of a built-in role.
    pub fn of_role(role: Role) -> BTreeSet<Self> {
        Self::ALL.iter().copied().filter(|permission| permission.is_granted_to(role)).collect()
    }

    /// Whether it only reads tenant data: what an operator may do under a break-glass grant.
    pub fn is_reading(self) -> bool {
        matches!(
            self,
            Self::ReadOrganization
                | Self::ReadMembers
                | Self::ReadKeys
                | Self::ReadRecords
                | Self::ReadAccount
                | Self::ReadAudit
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

/// The permissions of a key within its role: all of them, or only these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes(Option<Arc<[Permission]>>);

impl Scopes {
    /// All permissions of the role.
    pub const ALL: Self = Self(None);

    /// Parses the stored names. A name that only a newer version knows allows nothing here.
    pub fn named(names: Option<&[String]>) -> Self {
        Self(names.map(|names| names.iter().filter_map(|name| Permission::named(name)).collect()))
    }

    /// Whether the permission is among them.
    pub fn allow(&self, permission: Permission) -> bool {
        self.0.as_ref().is_none_or(|scopes| scopes.contains(&permission))
    }

    /// Whether a principal with these scopes may grant `other` to a principal with the role.
    pub fn include(&self, other: &Self, role: Role) -> bool {
        // The permissions of a custom role are not known here.
        if matches!(role, Role::Custom(_)) {
            return self.0.is_none();
        }
        Permission::ALL
            .iter()
            .filter(|permission| permission.is_granted_to(role) && other.allow(**permission))
            .all(|permission| self.allow(*permission))
    }

    /// Returns their names; none for all permissions.
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
        // A scope that the role does not have anyway adds nothing.
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
