//! All commands: their names on the wire, how they are parsed, and the aggregates that they address.

use std::borrow::Cow;

use orgstream_events::{AggregateId, CommandId, OrgId, PLATFORM_ORG};
use serde::{Serialize, Serializer};
use serde_json::Value;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{
    AcceptInvitation, AddMember, AddSsoConnection, AppendRecords, ArchiveRecord, CancelDeletion, ChangeKind,
    ChangeLimits, ChangeMemberRole, ChangePlan, ChangeRole, ChangeSettings, ChangeTopUp, ChargeUsage,
    ChooseCatalogItem, ClaimDomain, ClearCatalogChoice, CloseMonth, CreateOrganization, CreateRecord, CreditAccount,
    DecisionContext, DeclineTopUp, DefineRole, EndBilling, ExtendHold, IssueApiKey, IssueInvitation, JoinByDomain,
    JoinBySso, LinkBillingCustomer, MarkInvoicePaid, Misfit, NoteBillingCustomerReleased, NoteInvoicePushed,
    NoteInvoiceWithdrawn, PayTopUp, Permission, ProveDomain, PublishCatalogItem, PublishPlan, RegisterKind,
    ReleaseHold, RemoveDomain, RemoveMember, RemoveRole, RemoveSsoConnection, RenameOrganization, RequestDeletion,
    RequestTopUp, ResendInvitation, ReserveUsage, RestoreKind, RestoreSignIn, ResumeOrganization, RetireKind,
    RetryParked, RevokeApiKey, RevokeInvitation, RotateApiKey, SetDefaultSsoConnection, SettleHold, SkipParked,
    SuspendOrganization, UpdateRecord, UpgradeOrganization, VoidInvoice, WithdrawCatalogItem, grants::Grant, openapi,
    shaped,
};

/// The declaration of a command, besides its fields. There are no defaults: each command decides all of it.
#[derive(Debug, PartialEq)]
pub struct CommandSpec {
    /// The `type` on the wire.
    pub name: &'static str,
    /// The permission or the kind of principal that is required.
    pub requires: Requires,
    /// The names of the events that follow from it: the audit trail of the command.
    pub events: &'static [&'static str],
    /// Whether it creates a resource, which makes the success status 201.
    pub creates: bool,
    /// The organization whose stream receives its events.
    pub scope: Scope,
    /// Whether a suspended organization still accepts it: decisions of the platform, and nothing else.
    pub while_suspended: bool,
    /// Whether a personal organization accepts it: everything but commands that need several people.
    pub in_personal: bool,
    /// Whether it grants access that must be effective as soon as the command is answered.
    pub gives_access: bool,
    /// The hourly limit that it counts against.
    pub hourly_limit: Option<HourlyLimit>,
}

/// The requirement on the caller of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requires {
    /// This permission in the organization.
    Permission(Permission),
    /// A signed-in person, who is not a member of the organization yet.
    Person,
}

impl Requires {
    /// Returns the permission, if the requirement is one.
    pub fn permission(self) -> Option<Permission> {
        match self {
            Self::Permission(permission) => Some(permission),
            Self::Person => None,
        }
    }
}

/// The organization whose stream receives the events of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The organization that the command was sent to.
    Organization,
    /// The platform's ([`PLATFORM_ORG`]): the command is for operators and about data that all organizations share.
    Platform,
}

/// The operations that are limited per organization and hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HourlyLimit {
    /// Invitations sent.
    Invitations,
}

/// The aggregate that a command addresses.
pub enum About {
    /// An existing aggregate.
    One(AggregateId),
    /// A new aggregate, whose id follows from the command's, so that a retry names the same one and there is no history to
    /// read.
    New(fn(CommandId) -> AggregateId),
}

/// A command as declared in its aggregate's file.
pub trait Declared {
    /// Everything that does not depend on its fields.
    const SPEC: CommandSpec;

    /// Returns the aggregate that it addresses, in `org`.
    fn about(&self, org: OrgId) -> About;

    /// Returns everything that it grants or discloses.
    fn grants(&self) -> Vec<Grant>;
}

/// A command as JSON: its name, then its fields.
#[derive(Serialize)]
struct Tagged<'a, C> {
    #[serde(rename = "type")]
    name: &'static str,
    #[serde(flatten)]
    command: &'a C,
}

macro_rules! commands {
    ($($command:ident),* $(,)?) => {
        /// Every command that a producer can send: a JSON object whose `type` names the command.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Command {
            $(#[doc = concat!("See [`", stringify!($command), "`].")] $command($command),)*
        }

        impl Serialize for Command {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$command(command) => {
                        Tagged { name: $command::SPEC.name, command }.serialize(serializer)
                    })*
                }
            }
        }

        impl Command {
            /// The declarations of all commands.
            pub const SPECS: &'static [CommandSpec] = &[$($command::SPEC),*];

            /// The names of all commands.
            pub const NAMES: &'static [&'static str] = &[$($command::SPEC.name),*];

            /// Parses a command: an object whose `type` names it, and whose other fields are the command's.
            pub fn read(value: Value) -> Result<Self, Misfit> {
                let Value::Object(mut fields) = value else {
                    return Err(Misfit::must_be("an object whose `type` says which command it is"));
                };
                let name = fields.remove("type").ok_or_else(|| Misfit::missing("type"))?;
                let name: String = shaped(name).map_err(|misfit| misfit.under("type"))?;
                $(if name == $command::SPEC.name {
                    return shaped::<$command>(Value::Object(fields)).map(Self::$command);
                })*
                Err(Misfit::unknown_name(&name, Self::NAMES).under("type"))
            }

            /// Returns the command's declaration.
            pub fn spec(&self) -> &'static CommandSpec {
                match self {
                    $(Self::$command(_) => const { &$command::SPEC },)*
                }
            }

            fn about(&self, org: OrgId) -> About {
                match self {
                    $(Self::$command(command) => command.about(org),)*
                }
            }

            /// Returns everything that it grants or discloses.
            pub fn grants(&self) -> Vec<Grant> {
                match self {
                    $(Self::$command(command) => command.grants(),)*
                }
            }
        }

        $(impl From<$command> for Command {
            fn from(command: $command) -> Self {
                Self::$command(command)
            }
        })*

        impl PartialSchema for Command {
            fn schema() -> RefOr<Schema> {
                openapi::one_of_commands(&[$(($command::SPEC.name, <$command as PartialSchema>::schema)),*])
            }
        }

        impl ToSchema for Command {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed("Command")
            }

            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                let commands = [$(($command::SPEC.name, <$command as PartialSchema>::schema as fn() -> RefOr<Schema>)),*];
                schemas.extend(openapi::each_command(&commands));
            }
        }
    };
}

commands! {
    CreateOrganization,
    RenameOrganization,
    ChangeSettings,
    UpgradeOrganization,
    SuspendOrganization,
    ResumeOrganization,
    RestoreSignIn,
    ChangePlan,
    ChangeLimits,
    RequestDeletion,
    CancelDeletion,
    AddMember,
    ChangeMemberRole,
    RemoveMember,
    IssueInvitation,
    ResendInvitation,
    RevokeInvitation,
    AcceptInvitation,
    JoinByDomain,
    DefineRole,
    ChangeRole,
    RemoveRole,
    ClaimDomain,
    ProveDomain,
    RemoveDomain,
    AddSsoConnection,
    SetDefaultSsoConnection,
    RemoveSsoConnection,
    JoinBySso,
    IssueApiKey,
    RotateApiKey,
    RevokeApiKey,
    RegisterKind,
    ChangeKind,
    RetireKind,
    RestoreKind,
    CreateRecord,
    UpdateRecord,
    ArchiveRecord,
    AppendRecords,
    PublishCatalogItem,
    WithdrawCatalogItem,
    ChooseCatalogItem,
    ClearCatalogChoice,
    PublishPlan,
    ReserveUsage,
    ExtendHold,
    SettleHold,
    ReleaseHold,
    ChargeUsage,
    CreditAccount,
    ChangeTopUp,
    RequestTopUp,
    PayTopUp,
    DeclineTopUp,
    CloseMonth,
    EndBilling,
    MarkInvoicePaid,
    VoidInvoice,
    LinkBillingCustomer,
    NoteBillingCustomerReleased,
    NoteInvoicePushed,
    NoteInvoiceWithdrawn,
    RetryParked,
    SkipParked,
}

impl Command {
    /// Returns the name: its `type` on the wire.
    pub fn name(&self) -> &'static str {
        self.spec().name
    }

    /// Returns the aggregate that it addresses. What it creates gets an id that follows from the command, so a retry names
    /// the same aggregate.
    pub fn aggregate(&self, context: &DecisionContext) -> AggregateId {
        match self.about(context.org) {
            About::One(aggregate) => aggregate,
            About::New(derive) => derive(context.command_id),
        }
    }

    /// Whether it creates an aggregate whose id follows from the command, so that there is no history to read.
    pub fn creates_under_own_id(&self) -> bool {
        // The organization that it is sent to makes no difference here.
        matches!(self.about(PLATFORM_ORG), About::New(_))
    }

    /// Returns the aggregate on which other commands of the same request must wait; none when there is nothing to wait for.
    pub fn order_key(&self, org: OrgId) -> Option<AggregateId> {
        match self.about(org) {
            About::One(aggregate) => Some(aggregate),
            About::New(_) => None,
        }
    }

    /// Returns the organization whose stream receives its events when it was sent to `org`.
    pub fn org(&self, org: OrgId) -> OrgId {
        match self.spec().scope {
            Scope::Organization => org,
            Scope::Platform => PLATFORM_ORG,
        }
    }

    /// Whether the answer has a secret, which only the sender of the command may be given again.
    pub fn answers_a_secret(&self) -> bool {
        self.grants().iter().any(|grant| matches!(grant, Grant::Key(..) | Grant::KeyAgain(_)))
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::RecordId;
    use serde_json::json;

    use super::*;
    use crate::testing;
    use crate::*;

    #[test]
    fn a_command_reads_back_under_its_name() {
        let command =
            Command::read(json!({"type": "create_record", "kind": "evaluation", "data": {"score": 1}})).unwrap();
        assert_eq!(command.name(), "create_record");
        assert_eq!(Command::read(serde_json::to_value(&command).unwrap()).unwrap(), command);
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let problem = refusal(json!({"type": "retire_kind", "kind": "model", "force": true}));
        assert_eq!((problem.errors[0].pointer.as_str(), &*problem.errors[0].code), ("/force", "unknown_field"));
        assert!(problem.detail.contains("there are: kind"), "{problem:?}");
    }

    #[test]
    fn an_unknown_command_is_refused_with_the_known_ones() {
        let problem = refusal(json!({"type": "drop_table"}));
        assert_eq!((problem.errors[0].pointer.as_str(), &*problem.errors[0].code), ("/type", "unknown_value"));
        assert!(problem.detail.contains("drop_table") && problem.detail.contains("create_record"), "{problem:?}");
        assert_eq!(refusal(json!({"kind": "model"})).errors[0].pointer, "/type");
        assert_eq!(refusal(json!({"type": 7})).errors[0].pointer, "/type");
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let problem = refusal(json!({"type": "archive_record", "id": testing::context().org}));
        assert!(problem.detail.contains("is not a res_ id"), "{problem:?}");
    }

    fn refusal(command: Value) -> Rejection {
        Command::read(command).unwrap_err().into()
    }

    #[test]
    fn what_a_command_creates_is_named_by_the_command() {
        let context = testing::context();
        let mut command = CreateRecord { kind: "model".parse().unwrap(), data: json!({}), id: None };
        let derived = RecordId::derive(context.command_id);
        assert_eq!(Command::from(command.clone()).aggregate(&context), AggregateId::Record(derived));
        let chosen = RecordId::fresh(1, [9; 10]);
        command.id = Some(chosen);
        assert_eq!(Command::from(command).aggregate(&context), AggregateId::Record(chosen));
    }

    #[test]
    fn the_catalog_belongs_to_the_platform_whoever_sends_a_command() {
        let org = testing::context().org;
        let id = RecordId::fresh(1, [1; 10]);
        let withdraw = Command::from(WithdrawCatalogItem { id, reason: "superseded".to_owned() });
        assert_eq!(withdraw.org(org), PLATFORM_ORG);
        let retire = Command::from(RetireKind { kind: "x_ticket".parse().unwrap() });
        assert_eq!(retire.org(org), org);
        let archive = Command::from(ArchiveRecord { id: RecordId::fresh(1, [1; 10]), reason: None });
        assert_eq!(archive.org(org), org);
    }

    #[test]
    fn every_command_is_documented_with_its_type() {
        let schema = serde_json::to_value(Command::schema()).unwrap();
        let mut schemas = Vec::new();
        Command::schemas(&mut schemas);
        let variants: Vec<_> =
            schemas.into_iter().map(|(name, schema)| (name, serde_json::to_value(schema).unwrap())).collect();
        let names: Vec<_> =
            variants.iter().map(|(_, variant)| variant["properties"]["type"]["enum"][0].clone()).collect();
        assert_eq!(names, Command::NAMES);
        for (number, (name, variant)) in variants.iter().enumerate() {
            let reference = format!("#/components/schemas/{name}");
            assert_eq!(schema["oneOf"][number]["$ref"], reference);
            assert_eq!(schema["discriminator"]["mapping"][Command::NAMES[number]], reference);
            assert_eq!(variant["type"], "object");
            assert_eq!(variant["required"][0], "type");
            assert_eq!(variant["additionalProperties"], false);
        }
    }
}
