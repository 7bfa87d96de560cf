//! The declarations of an invitation's commands: their fields as they are received, and who may send them.

use orgstream_events::{AggregateId, InvitationId, OrgId, Role};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, CommandSpec, Declared, HourlyLimit, Permission, Requires, Scope, credentials::invitation::InvitationToken,
    grants::Grant, openapi,
};

/// An invitation for one person, who gets a mail with a token that is shown nowhere else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssueInvitation {
    /// E-mail address of the invited person, at most 254 characters. Accepting takes a sign-in with this address, verified by
    /// its issuer.
    #[schema(example = "ann@acme.example", max_length = 254)]
    pub email: String,
    /// Role of the future member; it may do no more than the caller.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// Days until it expires, 1 to 30; 7 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 30)]
    pub expires_in_days: Option<u32>,
}

impl Declared for IssueInvitation {
    const SPEC: CommandSpec = CommandSpec {
        name: "issue_invitation",
        requires: Requires::Permission(Permission::ManageMembers),
        events: &["invitation.issued"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: false,
        hourly_limit: Some(HourlyLimit::Invitations),
    };

    fn about(&self, _: OrgId) -> About {
        About::New(|command| AggregateId::Invitation(InvitationId::derive(command)))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Role(self.role)]
    }
}

/// Another mail with a new token. The token before is void, and the time begins anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResendInvitation {
    /// Invitation id (`inv_` and 26 characters).
    #[schema(value_type = String, example = "inv_01h455vb4pex5vsknk084sn02q")]
    pub id: InvitationId,
    /// Days until it expires, 1 to 30; 7 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 30)]
    pub expires_in_days: Option<u32>,
}

impl Declared for ResendInvitation {
    const SPEC: CommandSpec = CommandSpec {
        name: "resend_invitation",
        requires: Requires::Permission(Permission::ManageMembers),
        events: &["invitation.resent"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: false,
        hourly_limit: Some(HourlyLimit::Invitations),
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Invitation(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Invitation(self.id)]
    }
}

/// Revokes an invitation that was not accepted yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeInvitation {
    /// Invitation id (`inv_` and 26 characters).
    #[schema(value_type = String, example = "inv_01h455vb4pex5vsknk084sn02q")]
    pub id: InvitationId,
    /// Reason for the audit log, at most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl Declared for RevokeInvitation {
    const SPEC: CommandSpec = CommandSpec {
        name: "revoke_invitation",
        requires: Requires::Permission(Permission::ManageMembers),
        events: &["invitation.revoked"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Invitation(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Joins the organization that the invitation is for. For people who sign in, at their own address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptInvitation {
    /// Invitation id (`inv_` and 26 characters); found by the token.
    #[schema(value_type = String, example = "inv_01h455vb4pex5vsknk084sn02q")]
    pub id: InvitationId,
    /// Token of the invitation mail (`osi_…`).
    #[schema(value_type = String)]
    pub token: InvitationToken,
}

impl Declared for AcceptInvitation {
    const SPEC: CommandSpec = CommandSpec {
        name: "accept_invitation",
        requires: Requires::Person,
        events: &["invitation.accepted", "member.added"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Invitation(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Offered]
    }
}
