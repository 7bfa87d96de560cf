//! Intent: what a caller may ask for, and the pure decision whether it happens.
//!
//! One file is one aggregate, always in the same order: state, `apply`, commands, `decide`, errors, tests. Nothing in
//! these files is async, reads a clock or draws randomness; the handler beside them does that for all of them.

pub mod api_key;
mod cache;
mod claiming;
pub mod domain;
mod founding;
mod grants;
pub mod handler;
mod identity;
pub mod invitation;
mod joining;
pub mod kind;
pub mod member;
pub mod openapi;
pub mod organization;
pub mod parking;
mod patience;
pub mod personal;
mod properties;
mod public_domains;
pub mod record;
pub mod rejection;
pub mod request;
pub mod role;
pub mod schema;
mod secrets;
pub mod settings;
pub mod sso_connection;
mod text;

use std::borrow::Cow;

use orgstream_events::{
    Actor, AggregateId, AggregateType, CommandId, DomainId, Event, InvitationId, KeyId, OrgId, PLATFORM_ORG, RecordId,
    Timestamp,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::body::{Misfit, shaped};

pub use api_key::{IssueApiKey, RevokeApiKey, RotateApiKey};
pub use domain::{ClaimDomain, JoinByDomain, ProveDomain, RemoveDomain};
pub use grants::Grant;
pub use invitation::{AcceptInvitation, IssueInvitation, ResendInvitation, RevokeInvitation};
pub use kind::{ChangeKind, RegisterKind, RestoreKind, RetireKind};
pub use member::{AddMember, ChangeMemberRole, RemoveMember};
pub use organization::{
    ChangeLimits, ChangePlan, CreateOrganization, RenameOrganization, ResumeOrganization, SuspendOrganization,
    UpgradeOrganization,
};
pub use parking::{RetryParked, SkipParked};
pub use record::{ArchiveRecord, CreateRecord, UpdateRecord};
pub use rejection::{FieldError, Rejection, RejectionKind};
pub use role::{ChangeRole, DefineRole, RemoveRole};
pub use settings::ChangeSettings;
pub use sso_connection::{AddSsoConnection, JoinBySso, RemoveSsoConnection, SetDefaultSsoConnection};

/// What `decide` may know besides the state and the command. There is nothing else: no I/O, no clock, no randomness.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The time, read once for the whole command.
    pub now: Timestamp,
    /// The command; the ids of everything it creates follow from it.
    pub command_id: CommandId,
    /// The tenant.
    pub org: OrgId,
}

/// Where an event stands, and who did it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The sequence of its commit in the org's stream.
    pub seq: u64,
    /// Whose doing it is.
    pub actor: &'a Actor,
}

/// A consistency boundary: the state that a decision needs, rebuilt from its own events and nothing else.
pub trait Aggregate: Default + Clone + Send + Sync + 'static {
    /// What can be asked of it, with everything that the handler found out beforehand.
    type Command: Send;
    /// What can happen to it.
    type Event;
    /// Why it refuses.
    type Error: Into<Rejection>;
    /// Its kind, as subjects have it.
    const TYPE: AggregateType;

    /// Takes in what happened. It cannot fail: it already happened.
    fn apply(&mut self, event: &Self::Event);

    /// The same, with where it stands and who did it, for those who compare what happened to two aggregates.
    fn apply_at(&mut self, event: &Self::Event, _: Place<'_>) {
        self.apply(event);
    }

    /// Says what happens. No events mean that everything already is as asked, so that there is nothing to append.
    fn decide(&self, command: Self::Command, facts: &Facts) -> Result<Vec<Self::Event>, Self::Error>;

    /// The event among all events.
    fn wrap(event: Self::Event) -> Event;

    /// The event, if it is one of this aggregate's.
    fn event_of(event: &Event) -> Option<&Self::Event>;
}

/// A command that has a name on the wire.
pub trait Named {
    /// Its `type`.
    const NAME: &'static str;
}

macro_rules! commands {
    ($($(#[$doc:meta])* $command:ident = $name:literal;)*) => {
        /// Everything that a producer can ask for: a JSON object whose `type` says which command it is.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum Command {
            $($(#[$doc])* #[serde(rename = $name)] $command($command),)*
        }

        $(impl Named for $command {
            const NAME: &'static str = $name;
        })*

        impl Command {
            /// The name of every command.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Reads a command: an object whose `type` says which, and whose other fields are the command's.
            pub fn read(value: Value) -> Result<Self, Misfit> {
                let Value::Object(mut fields) = value else {
                    return Err(Misfit::must_be("an object whose `type` says which command it is"));
                };
                let name = fields.remove("type").ok_or_else(|| Misfit::missing("type"))?;
                let name: String = shaped(name).map_err(|misfit| misfit.under("type"))?;
                match name.as_str() {
                    $($name => shaped::<$command>(Value::Object(fields)).map(Self::$command),)*
                    _ => Err(Misfit::unknown_name(&name, Self::NAMES).under("type")),
                }
            }

            /// The command's name: its `type` on the wire.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$command(_) => $name,)*
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
                openapi::one_of_commands(&[$(($name, <$command as PartialSchema>::schema)),*])
            }
        }

        impl ToSchema for Command {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed("Command")
            }

            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                schemas.extend(openapi::each_command(&[$(($name, <$command as PartialSchema>::schema)),*]));
            }
        }
    };
}

commands! {
    /// A new organization, owned by whoever asks.
    CreateOrganization = "create_organization";
    /// Another name or slug.
    RenameOrganization = "rename_organization";
    /// Other settings; what is not mentioned stays.
    ChangeSettings = "change_settings";
    /// One person's own organization becomes one that others can join.
    UpgradeOrganization = "upgrade_organization";
    /// Nobody but the platform may act in it any more.
    SuspendOrganization = "suspend_organization";
    /// Everything works again.
    ResumeOrganization = "resume_organization";
    /// Another plan.
    ChangePlan = "change_plan";
    /// Other limits.
    ChangeLimits = "change_limits";
    /// One more person.
    AddMember = "add_member";
    /// More or fewer rights for one person.
    ChangeMemberRole = "change_member_role";
    /// One person less.
    RemoveMember = "remove_member";
    /// A way in for one person, by e-mail.
    IssueInvitation = "issue_invitation";
    /// Another mail, with a new token.
    ResendInvitation = "resend_invitation";
    /// No way in any more.
    RevokeInvitation = "revoke_invitation";
    /// Join by an invitation. For people who sign in.
    AcceptInvitation = "accept_invitation";
    /// Join by an address of a domain that is the organization's own. For people who sign in.
    JoinByDomain = "join_by_domain";
    /// A role of the organization's own.
    DefineRole = "define_role";
    /// Another name or other permissions of such a role.
    ChangeRole = "change_role";
    /// One such role less.
    RemoveRole = "remove_role";
    /// A domain that is the organization's own, as it says.
    ClaimDomain = "claim_domain";
    /// Look whether the domain's DNS says so too.
    ProveDomain = "prove_domain";
    /// A domain less.
    RemoveDomain = "remove_domain";
    /// An issuer that people sign in to this organization with.
    AddSsoConnection = "add_sso_connection";
    /// Where people are sent who do not say otherwise.
    SetDefaultSsoConnection = "set_default_sso_connection";
    /// One such issuer less.
    RemoveSsoConnection = "remove_sso_connection";
    /// Join by such an issuer. For people who sign in.
    JoinBySso = "join_by_sso";
    /// A new API key, shown once.
    IssueApiKey = "issue_api_key";
    /// Another secret for a key, shown once.
    RotateApiKey = "rotate_api_key";
    /// No more calls with this key.
    RevokeApiKey = "revoke_api_key";
    /// A new kind of records, for all organizations.
    RegisterKind = "register_kind";
    /// Another definition of a kind; what is not mentioned stays.
    ChangeKind = "change_kind";
    /// No new records of this kind.
    RetireKind = "retire_kind";
    /// New records of a retired kind again.
    RestoreKind = "restore_kind";
    /// A new record.
    CreateRecord = "create_record";
    /// New content of a record, whole.
    UpdateRecord = "update_record";
    /// A record out of sight.
    ArchiveRecord = "archive_record";
    /// Apply parked events again.
    RetryParked = "retry_parked";
    /// Give up the first parked message of an aggregate.
    SkipParked = "skip_parked";
}

impl Command {
    /// What the command is about. What it creates gets an id that follows from the command, so a retry names the same
    /// thing; the organization that [`CreateOrganization`] makes is `facts.org`.
    pub fn aggregate(&self, facts: &Facts) -> AggregateId {
        match self {
            Self::CreateOrganization(_)
            | Self::RenameOrganization(_)
            | Self::ChangeSettings(_)
            | Self::UpgradeOrganization(_)
            | Self::SuspendOrganization(_)
            | Self::ResumeOrganization(_)
            | Self::ChangePlan(_)
            | Self::ChangeLimits(_) => AggregateId::Organization(facts.org),
            Self::AddMember(_)
            | Self::ChangeMemberRole(_)
            | Self::RemoveMember(_)
            | Self::JoinByDomain(_)
            | Self::JoinBySso(_) => AggregateId::Member(facts.org),
            Self::AddSsoConnection(_) | Self::SetDefaultSsoConnection(_) | Self::RemoveSsoConnection(_) => {
                AggregateId::SsoConnection(facts.org)
            }
            Self::IssueInvitation(_) => AggregateId::Invitation(InvitationId::derive(facts.command_id)),
            Self::ResendInvitation(command) => AggregateId::Invitation(command.id),
            Self::RevokeInvitation(command) => AggregateId::Invitation(command.id),
            Self::AcceptInvitation(command) => AggregateId::Invitation(command.id),
            Self::DefineRole(_) | Self::ChangeRole(_) | Self::RemoveRole(_) => AggregateId::Role(facts.org),
            Self::ClaimDomain(command) => AggregateId::Domain(DomainId::of(facts.org, &command.domain)),
            Self::ProveDomain(command) => AggregateId::Domain(command.id),
            Self::RemoveDomain(command) => AggregateId::Domain(command.id),
            Self::IssueApiKey(_) => AggregateId::ApiKey(KeyId::derive(facts.command_id)),
            Self::RotateApiKey(command) => AggregateId::ApiKey(command.id),
            Self::RevokeApiKey(command) => AggregateId::ApiKey(command.id),
            Self::RegisterKind(command) => AggregateId::Kind(command.kind.clone()),
            Self::ChangeKind(command) => AggregateId::Kind(command.kind.clone()),
            Self::RetireKind(command) => AggregateId::Kind(command.kind.clone()),
            Self::RestoreKind(command) => AggregateId::Kind(command.kind.clone()),
            Self::CreateRecord(command) => {
                AggregateId::Record(command.id.unwrap_or_else(|| RecordId::derive(facts.command_id)))
            }
            Self::UpdateRecord(command) => AggregateId::Record(command.id),
            Self::ArchiveRecord(command) => AggregateId::Record(command.id),
            Self::RetryParked(command) => AggregateId::Parking(command.pipeline),
            Self::SkipParked(command) => AggregateId::Parking(command.pipeline),
        }
    }

    /// Whether it makes something new, which a success then says.
    pub fn makes_something(&self) -> bool {
        match self {
            Self::CreateOrganization(_)
            | Self::AddMember(_)
            | Self::IssueInvitation(_)
            | Self::AcceptInvitation(_)
            | Self::JoinByDomain(_)
            | Self::JoinBySso(_)
            | Self::AddSsoConnection(_)
            | Self::DefineRole(_)
            | Self::ClaimDomain(_)
            | Self::IssueApiKey(_)
            | Self::RegisterKind(_)
            | Self::CreateRecord(_) => true,
            Self::RenameOrganization(_)
            | Self::ChangeSettings(_)
            | Self::UpgradeOrganization(_)
            | Self::SuspendOrganization(_)
            | Self::ResumeOrganization(_)
            | Self::ChangePlan(_)
            | Self::ChangeLimits(_)
            | Self::ChangeMemberRole(_)
            | Self::RemoveMember(_)
            | Self::RotateApiKey(_)
            | Self::ResendInvitation(_)
            | Self::RevokeInvitation(_)
            | Self::ChangeRole(_)
            | Self::RemoveRole(_)
            | Self::ProveDomain(_)
            | Self::RemoveDomain(_)
            | Self::SetDefaultSsoConnection(_)
            | Self::RemoveSsoConnection(_)
            | Self::RevokeApiKey(_)
            | Self::ChangeKind(_)
            | Self::RetireKind(_)
            | Self::RestoreKind(_)
            | Self::UpdateRecord(_)
            | Self::ArchiveRecord(_)
            | Self::RetryParked(_)
            | Self::SkipParked(_) => false,
        }
    }

    /// Whether the command is about what all organizations share, and so only for [`PLATFORM_ORG`] and its operators.
    pub fn is_global(&self) -> bool {
        matches!(self, Self::RegisterKind(_) | Self::ChangeKind(_) | Self::RetireKind(_) | Self::RestoreKind(_))
    }

    /// The tenant whose stream takes the events of this command when it was sent to `org`.
    pub fn org(&self, org: OrgId) -> OrgId {
        if self.is_global() { PLATFORM_ORG } else { org }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! The given / when / then of every aggregate's tests.

    use super::*;

    /// The facts of every test: the first second of 2024.
    pub(crate) fn facts() -> Facts {
        let now = Timestamp::from_unix_ms(1_704_067_200_000);
        let org = OrgId::fresh(1_700_000_000_000, [1; 10]);
        Facts { now, command_id: CommandId::fresh(now.unix_ms(), [2; 10]), org }
    }

    /// What is decided about `command` after `events`.
    pub(crate) fn given<A: Aggregate>(events: &[A::Event]) -> Given<A> {
        let mut state = A::default();
        for event in events {
            state.apply(event);
        }
        Given(state)
    }

    pub(crate) struct Given<A>(pub(crate) A);

    impl<A: Aggregate> Given<A> {
        pub(crate) fn when(&self, command: A::Command) -> Result<Vec<A::Event>, A::Error> {
            self.0.decide(command, &facts())
        }
    }

    /// The rejection that a refusal becomes.
    pub(crate) fn rejection<T: std::fmt::Debug, E: Into<Rejection>>(result: Result<T, E>) -> Rejection {
        match result {
            Ok(events) => panic!("accepted: {events:?}"),
            Err(error) => error.into(),
        }
    }

    /// The pointers and codes of a refusal for its fields.
    pub(crate) fn fields<T: std::fmt::Debug, E: Into<Rejection>>(result: Result<T, E>) -> Vec<(String, String)> {
        let rejection = rejection(result);
        assert_eq!(rejection.code, "validation_error", "{rejection}");
        rejection.errors.into_iter().map(|error| (error.pointer, error.code.into_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::problem::Problem;

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
        let problem = refusal(json!({"type": "archive_record", "id": testing::facts().org}));
        assert!(problem.detail.contains("is not a res_ id"), "{problem:?}");
    }

    fn refusal(command: Value) -> Problem {
        Command::read(command).unwrap_err().into()
    }

    #[test]
    fn what_a_command_creates_is_named_by_the_command() {
        let facts = testing::facts();
        let mut command = CreateRecord { kind: "model".parse().unwrap(), data: json!({}), id: None };
        let derived = RecordId::derive(facts.command_id);
        assert_eq!(Command::from(command.clone()).aggregate(&facts), AggregateId::Record(derived));
        let chosen = RecordId::fresh(1, [9; 10]);
        command.id = Some(chosen);
        assert_eq!(Command::from(command).aggregate(&facts), AggregateId::Record(chosen));
    }

    #[test]
    fn kinds_belong_to_the_platform_whoever_sends_them() {
        let org = testing::facts().org;
        let retire = Command::from(RetireKind { kind: "model".parse().unwrap() });
        assert_eq!(retire.org(org), PLATFORM_ORG);
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
