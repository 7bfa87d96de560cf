//! What the way in must know of a command without deciding it.

use orgstream_events::AggregateId;

use super::Command;

impl Command {
    /// Whether the command begins something whose id follows from the command, so that there is no history to read.
    pub fn creates_under_own_id(&self) -> bool {
        match self {
            Self::CreateOrganization(_) | Self::IssueInvitation(_) | Self::IssueApiKey(_) => true,
            Self::CreateRecord(command) => command.id.is_none(),
            _ => false,
        }
    }

    /// Whether an organization that is suspended still takes it: what the platform decides, nobody else.
    pub fn works_while_suspended(&self) -> bool {
        matches!(
            self,
            Self::SuspendOrganization(_)
                | Self::ResumeOrganization(_)
                | Self::ChangePlan(_)
                | Self::ChangeLimits(_)
                | Self::RetryParked(_)
                | Self::SkipParked(_)
        )
    }

    /// Whether somebody expects to get in as soon as it is answered.
    pub fn gives_access(&self) -> bool {
        matches!(
            self,
            Self::CreateOrganization(_)
                | Self::AddMember(_)
                | Self::AcceptInvitation(_)
                | Self::JoinByDomain(_)
                | Self::JoinBySso(_)
                | Self::DefineRole(_)
                | Self::IssueApiKey(_)
                | Self::RotateApiKey(_)
                | Self::ResumeOrganization(_)
        )
    }

    /// Whether it makes sense only where several people are, and so not in somebody's personal organization.
    pub fn is_about_others(&self) -> bool {
        matches!(
            self,
            Self::AddMember(_)
                | Self::IssueInvitation(_)
                | Self::ResendInvitation(_)
                | Self::AcceptInvitation(_)
                | Self::JoinByDomain(_)
                | Self::JoinBySso(_)
                | Self::DefineRole(_)
                | Self::ClaimDomain(_)
                | Self::AddSsoConnection(_)
        )
    }

    /// What other commands of the same request must wait for, as a key; none when there is nothing to wait for.
    pub fn order_key(&self) -> Option<String> {
        let name = |aggregate: AggregateId| Some(aggregate.to_string());
        match self {
            Self::CreateOrganization(_) | Self::IssueInvitation(_) | Self::IssueApiKey(_) => None,
            Self::RenameOrganization(_)
            | Self::ChangeSettings(_)
            | Self::UpgradeOrganization(_)
            | Self::SuspendOrganization(_)
            | Self::ResumeOrganization(_)
            | Self::ChangePlan(_)
            | Self::ChangeLimits(_) => Some("organization".to_owned()),
            Self::AddMember(_)
            | Self::ChangeMemberRole(_)
            | Self::RemoveMember(_)
            | Self::JoinByDomain(_)
            | Self::JoinBySso(_) => Some("member".to_owned()),
            Self::AddSsoConnection(_) | Self::SetDefaultSsoConnection(_) | Self::RemoveSsoConnection(_) => {
                Some("sso_connection".to_owned())
            }
            Self::ResendInvitation(command) => name(AggregateId::Invitation(command.id)),
            Self::RevokeInvitation(command) => name(AggregateId::Invitation(command.id)),
            Self::AcceptInvitation(command) => name(AggregateId::Invitation(command.id)),
            Self::DefineRole(_) | Self::ChangeRole(_) | Self::RemoveRole(_) => Some("role".to_owned()),
            // A claim names its domain, the others its id: all of them in one line, so that none overtakes another.
            Self::ClaimDomain(_) | Self::ProveDomain(_) | Self::RemoveDomain(_) => Some("domain".to_owned()),
            Self::RotateApiKey(command) => name(AggregateId::ApiKey(command.id)),
            Self::RevokeApiKey(command) => name(AggregateId::ApiKey(command.id)),
            Self::RegisterKind(command) => name(AggregateId::Kind(command.kind.clone())),
            Self::ChangeKind(command) => name(AggregateId::Kind(command.kind.clone())),
            Self::RetireKind(command) => name(AggregateId::Kind(command.kind.clone())),
            Self::RestoreKind(command) => name(AggregateId::Kind(command.kind.clone())),
            Self::CreateRecord(command) => command.id.and_then(|id| name(AggregateId::Record(id))),
            Self::UpdateRecord(command) => name(AggregateId::Record(command.id)),
            Self::ArchiveRecord(command) => name(AggregateId::Record(command.id)),
            Self::RetryParked(command) => name(AggregateId::Parking(command.pipeline)),
            Self::SkipParked(command) => name(AggregateId::Parking(command.pipeline)),
        }
    }
}
