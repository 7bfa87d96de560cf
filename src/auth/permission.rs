//! What may be done, and by whom: the one table that routes, commands and the documentation share.

use std::fmt;

use orgstream_events::Role;

use crate::commands::Command;

macro_rules! permissions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal: $($role:ident),*;)*) => {
        /// One thing that a principal may or may not do in an org.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

            /// Whether the role has it.
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
    /// See who the members are.
    ReadMembers = "members:read": Owner, Admin, Member, Viewer;
    /// Add, change and remove members.
    ManageMembers = "members:manage": Owner, Admin;
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
    /// What it is about: the name before the colon.
    pub fn subject(self) -> &'static str {
        self.name().split(':').next().unwrap_or_default()
    }

    /// Whether an operator of the platform has it in an org of a tenant.
    pub fn is_operators(self) -> bool {
        matches!(self, Self::ManageParking | Self::Suspend | Self::ManagePlan | Self::ReadProjections)
    }

    /// What a command needs; none for the one that makes the org it is for.
    pub fn for_command(command: &Command) -> Option<Self> {
        Some(match command {
            Command::CreateOrganization(_) => return None,
            Command::RenameOrganization(_) | Command::ChangeSettings(_) => Self::ManageOrganization,
            Command::SuspendOrganization(_) | Command::ResumeOrganization(_) => Self::Suspend,
            Command::ChangePlan(_) => Self::ManagePlan,
            Command::AddMember(_) | Command::ChangeMemberRole(_) | Command::RemoveMember(_) => Self::ManageMembers,
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
