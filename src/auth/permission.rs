//! What may be done, and by whom: the one table that routes, commands and the documentation share.

use std::{collections::BTreeSet, fmt};

use orgstream_events::Role;

use crate::commands::Command;

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
    /// Issue and revoke API keys.
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
    /// Put an organization on another plan. For operators.
    ManagePlan = "organization:plan": ;
    /// Register, change and retire kinds. For operators, in the platform's own org.
    ManageKinds = "kinds:manage": ;
}

impl Permission {
    /// Everything that a built-in role may do.
    pub fn of_role(role: Role) -> BTreeSet<Self> {
        Self::ALL.iter().copied().filter(|permission| permission.is_granted_to(role)).collect()
    }

    /// Whether an operator of the platform has it in an org of a tenant.
    pub fn is_operators(self) -> bool {
        matches!(self, Self::ManageParking | Self::Suspend | Self::ManagePlan | Self::ReadProjections)
    }

    /// What a command needs; none for those of people who are not in the org yet.
    pub fn for_command(command: &Command) -> Option<Self> {
        Some(match command {
            Command::CreateOrganization(_)
            | Command::AcceptInvitation(_)
            | Command::JoinByDomain(_)
            | Command::JoinBySso(_) => return None,
            Command::RenameOrganization(_) | Command::ChangeSettings(_) | Command::UpgradeOrganization(_) => {
                Self::ManageOrganization
            }
            Command::SuspendOrganization(_) | Command::ResumeOrganization(_) => Self::Suspend,
            Command::ChangePlan(_) => Self::ManagePlan,
            Command::AddMember(_)
            | Command::ChangeMemberRole(_)
            | Command::RemoveMember(_)
            | Command::IssueInvitation(_)
            | Command::ResendInvitation(_)
            | Command::RevokeInvitation(_) => Self::ManageMembers,
            Command::DefineRole(_) | Command::ChangeRole(_) | Command::RemoveRole(_) => Self::ManageRoles,
            Command::AddSsoConnection(_) | Command::SetDefaultSsoConnection(_) | Command::RemoveSsoConnection(_) => {
                Self::ManageSso
            }
            Command::ClaimDomain(_) | Command::ProveDomain(_) | Command::RemoveDomain(_) => Self::ManageDomains,
            Command::IssueApiKey(_) | Command::RevokeApiKey(_) => Self::ManageKeys,
            Command::RegisterKind(_) | Command::ChangeKind(_) | Command::RetireKind(_) => Self::ManageKinds,
            Command::CreateRecord(_) | Command::UpdateRecord(_) | Command::ArchiveRecord(_) => Self::WriteRecords,
            Command::RetryParked(_) | Command::SkipParked(_) => Self::ManageParking,
        })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
