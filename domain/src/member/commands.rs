//! The declarations of the members' commands: their fields as they are received, and who may send them.

use orgstream_events::{AggregateId, MemberId, OrgId, Role, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{About, CommandSpec, Declared, Permission, Requires, Scope, grants::Grant, openapi};

/// One more person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMember {
    /// E-mail address, at most 254 characters. Unique in the organization, in any case of letters.
    #[schema(example = "ann@acme.example", max_length = 254)]
    pub email: String,
    /// Id of the person (`usr_` and 26 characters), if known; without it, the e-mail address identifies the person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "usr_01h455vb4pex5vsknk084sn02q")]
    pub user_id: Option<UserId>,
    /// Role of the member; it may do no more than the caller.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
}

impl Declared for AddMember {
    const SPEC: CommandSpec = CommandSpec {
        name: "add_member",
        requires: Requires::Permission(Permission::ManageMembers),
        events: &["member.added"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Member(org))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Role(self.role)]
    }
}

/// More or fewer rights for one person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeMemberRole {
    /// Member id (`mem_` and 26 characters).
    #[schema(value_type = String, example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub id: MemberId,
    /// New role of the member; it may do no more than the caller.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
}

impl Declared for ChangeMemberRole {
    const SPEC: CommandSpec = CommandSpec {
        name: "change_member_role",
        requires: Requires::Permission(Permission::ManageMembers),
        events: &["member.role_changed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Member(org))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Role(self.role)]
    }
}

/// One person less. What they made stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveMember {
    /// Member id (`mem_` and 26 characters).
    #[schema(value_type = String, example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub id: MemberId,
}

impl Declared for RemoveMember {
    const SPEC: CommandSpec = CommandSpec {
        name: "remove_member",
        requires: Requires::Permission(Permission::ManageMembers),
        events: &["member.removed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Member(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}
