//! An organization's connections to issuers of its own: one aggregate, because one of them is the default.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::{
    AggregateId, AggregateType, ConnectionId, Event, LoginMethod, OrgId, OrganizationSettings, SsoConnectionAdded,
    SsoConnectionEvent, SsoConnectionRemoved, SsoDefaultChanged,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope, grants::Grant, public_url::is_public_url, settings::leads_in_without, text::Faults,
};

/// The maximum number of connections of an organization.
pub const MAX_CONNECTIONS: usize = 20;
/// The longest issuer and audience, in characters.
const MAX_AUDIENCE: usize = 255;

/// All connections of an organization.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Connections {
    all: BTreeMap<ConnectionId, SsoConnectionAdded>,
    default: Option<ConnectionId>,
    /// The issuers of all connections, past ones included: people joined by them, and are members still.
    issuers: BTreeSet<String>,
}

impl Connections {
    /// Whether the issuer is, or was, one of the organization's.
    pub fn has_had(&self, issuer: &str) -> bool {
        self.issuers.contains(issuer)
    }

    /// Returns the issuer and the audience of a connection.
    pub fn names(&self, id: ConnectionId) -> Option<(&str, &str)> {
        self.all.get(&id).map(|connection| (connection.issuer.as_str(), connection.audience.as_str()))
    }

    /// Returns all connections, as sign-in methods.
    pub fn methods(&self) -> BTreeSet<LoginMethod> {
        self.all.keys().map(|id| LoginMethod::sso(*id)).collect()
    }

    /// Whether the connection exists.
    pub fn has(&self, id: ConnectionId) -> bool {
        self.all.contains_key(&id)
    }

    /// Whether a person who signs in by the connection may become a member.
    pub fn lets_in(&self, id: ConnectionId) -> bool {
        self.all.get(&id).is_some_and(|connection| connection.jit)
    }
}

/// The commands of the connections.
#[derive(Debug, Clone, PartialEq)]
pub enum ConnectionCommand {
    /// Adds a connection.
    Add {
        /// The command as received.
        command: AddSsoConnection,
        /// Whether an issuer may be on this machine, which is for trials.
        local: bool,
    },
    /// Changes the default.
    SetDefault(SetDefaultSsoConnection),
    /// Removes a connection.
    Remove {
        /// The command as received.
        command: RemoveSsoConnection,
        /// The organization's settings for sign-in methods.
        settings: OrganizationSettings,
        /// How the caller was authenticated.
        by: Option<LoginMethod>,
    },
}

/// An issuer that people sign in to this organization with, and to no other by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddSsoConnection {
    /// Display name, 1 to 120 characters.
    #[schema(example = "Okta", max_length = 120)]
    pub name: String,
    /// Issuer of the tokens (`iss`): an `https` address with a public name, which serves `/.well-known/openid-configuration`.
    #[schema(example = "https://acme.okta.example", max_length = 255)]
    pub issuer: String,
    /// Audience of the tokens (`aud`); a pair of issuer and audience belongs to one organization.
    #[schema(example = "orgstream-acme", max_length = 255)]
    pub audience: String,
    /// True if a person becomes a member by signing in with the connection, while `jit_provisioning` is `restricted`.
    #[serde(default)]
    pub jit: bool,
}

impl Declared for AddSsoConnection {
    const SPEC: CommandSpec = CommandSpec {
        name: "add_sso_connection",
        requires: Requires::Permission(Permission::ManageSso),
        events: &["sso_connection.added"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::SsoConnection(org))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Issuer(self.issuer.clone())]
    }
}

/// Where people are sent who do not say otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDefaultSsoConnection {
    /// SSO connection id (`conn_` and 26 characters).
    #[schema(value_type = String, example = "conn_01h455vb4pex5vsknk084sn02q")]
    pub id: ConnectionId,
}

impl Declared for SetDefaultSsoConnection {
    const SPEC: CommandSpec = CommandSpec {
        name: "set_default_sso_connection",
        requires: Requires::Permission(Permission::ManageSso),
        events: &["sso_connection.default_changed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::SsoConnection(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// One connection less. Members who came by it stay, and sign in no more by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveSsoConnection {
    /// SSO connection id (`conn_` and 26 characters).
    #[schema(value_type = String, example = "conn_01h455vb4pex5vsknk084sn02q")]
    pub id: ConnectionId,
}

impl Declared for RemoveSsoConnection {
    const SPEC: CommandSpec = CommandSpec {
        name: "remove_sso_connection",
        requires: Requires::Permission(Permission::ManageSso),
        events: &["sso_connection.removed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::SsoConnection(org))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::IssuerEnded(self.id)]
    }
}

/// Joins the organization whose own issuer signed the caller in, where its settings allow that. For people who sign in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinBySso {
    /// SSO connection id (`conn_` and 26 characters).
    #[schema(value_type = String, example = "conn_01h455vb4pex5vsknk084sn02q")]
    pub id: ConnectionId,
}

impl Declared for JoinBySso {
    const SPEC: CommandSpec = CommandSpec {
        name: "join_by_sso",
        requires: Requires::Person,
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
        vec![Grant::Offered]
    }
}

impl Aggregate for Connections {
    type Command = ConnectionCommand;
    type Event = SsoConnectionEvent;
    type Error = ConnectionError;
    const TYPE: AggregateType = AggregateType::SsoConnection;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &SsoConnectionEvent) {
        match event {
            SsoConnectionEvent::Added(event) => {
                self.issuers.insert(event.issuer.clone());
                self.all.insert(event.connection_id, event.clone());
            }
            SsoConnectionEvent::DefaultChanged(event) => self.default = Some(event.connection_id),
            SsoConnectionEvent::Removed(event) => {
                self.all.remove(&event.connection_id);
                self.default = self.default.filter(|default| *default != event.connection_id);
            }
        }
    }

    fn decide(
        &self,
        command: ConnectionCommand,
        context: &DecisionContext,
    ) -> Result<Vec<SsoConnectionEvent>, ConnectionError> {
        match command {
            ConnectionCommand::Add { command: AddSsoConnection { name, issuer, audience, jit }, local } => {
                let mut faults = Faults::default();
                faults.name("/name", &name);
                faults.length("/audience", &audience, 1, MAX_AUDIENCE);
                if audience.chars().any(char::is_control) {
                    faults.add("/audience", "control_character", "must not contain control characters");
                }
                if issuer.contains('?') || !is_public_url(&issuer, local) {
                    let rule = "must be an https address with a public host name, without query or user, as the tokens have it";
                    faults.add("/issuer", "url", rule);
                }
                faults.none_or(ConnectionError::Invalid)?;
                if self.all.len() >= MAX_CONNECTIONS {
                    return Err(ConnectionError::TooMany);
                }
                if self.all.values().any(|other| other.issuer == issuer && other.audience == audience) {
                    return Err(ConnectionError::AlreadyExists);
                }
                let connection_id = ConnectionId::derive(context.command_id);
                let added = SsoConnectionAdded { connection_id, name, issuer, audience, jit };
                Ok(vec![SsoConnectionEvent::Added(added)])
            }
            ConnectionCommand::SetDefault(SetDefaultSsoConnection { id }) => {
                self.all.get(&id).ok_or(ConnectionError::NotFound)?;
                if self.default == Some(id) {
                    return Ok(vec![]);
                }
                Ok(vec![SsoConnectionEvent::DefaultChanged(SsoDefaultChanged { connection_id: id })])
            }
            ConnectionCommand::Remove { command: RemoveSsoConnection { id }, settings, by } => {
                self.all.get(&id).ok_or(ConnectionError::NotFound)?;
                if !leads_in_without(&settings, &LoginMethod::sso(id), &self.methods()) {
                    return Err(ConnectionError::LastWayIn);
                }
                let stays = |method: &LoginMethod| method.is_for_people() && *method != LoginMethod::sso(id);
                if !by.as_ref().is_some_and(stays) {
                    return Err(ConnectionError::LocksOut);
                }
                Ok(vec![SsoConnectionEvent::Removed(SsoConnectionRemoved { connection_id: id })])
            }
        }
    }

    fn wrap(event: SsoConnectionEvent) -> Event {
        Event::SsoConnection(event)
    }

    fn event_of(event: &Event) -> Option<&SsoConnectionEvent> {
        if let Event::SsoConnection(event) = event { Some(event) } else { None }
    }
}

/// The reasons why a connection command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// An equal connection exists.
    #[error("the organization has a connection to this issuer with this audience already")]
    AlreadyExists,
    /// No such connection, or no longer.
    #[error("there is no such connection in this organization")]
    NotFound,
    /// The caller signs in by this connection, or is not a person.
    #[error(
        "a connection is removed by a person who signed in another way: people who sign in by it lose their access"
    )]
    LocksOut,
    /// No sign-in method would remain.
    #[error(
        "the setting allowed_auth_methods has no other way for people than this connection: allow another one first"
    )]
    LastWayIn,
    /// The maximum number of connections is reached.
    #[error("an organization has at most {MAX_CONNECTIONS} connections; remove one first")]
    TooMany,
}

impl From<ConnectionError> for Rejection {
    fn from(error: ConnectionError) -> Self {
        let (kind, code) = match error {
            ConnectionError::Invalid(errors) => return Self::invalid(errors),
            ConnectionError::AlreadyExists => (RejectionKind::Conflict, "sso_connection_exists"),
            ConnectionError::NotFound => (RejectionKind::NotFound, "not_found"),
            ConnectionError::LocksOut => (RejectionKind::Conflict, "would_lock_out"),
            ConnectionError::LastWayIn => (RejectionKind::Conflict, "last_way_in"),
            ConnectionError::TooMany => (RejectionKind::Conflict, "too_many_sso_connections"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fields, given, rejection};

    fn add(issuer: &str, local: bool) -> ConnectionCommand {
        let (name, audience) = ("Okta".to_owned(), "orgstream".to_owned());
        ConnectionCommand::Add {
            command: AddSsoConnection { name, issuer: issuer.to_owned(), audience, jit: true },
            local,
        }
    }

    fn id(n: u8) -> ConnectionId {
        ConnectionId::fresh(1_700_000_000_000, [n; 10])
    }

    fn added(n: u8) -> SsoConnectionEvent {
        SsoConnectionEvent::Added(SsoConnectionAdded {
            connection_id: id(n),
            name: "Okta".to_owned(),
            issuer: format!("https://{n}x.issuer.example"),
            audience: "orgstream".to_owned(),
            jit: n == 1,
        })
    }

    #[test]
    fn an_issuer_is_out_in_public() {
        for good in ["https://acme.okta.example", "https://login.issuer.example:8443/acme/"] {
            assert!(given::<Connections>(&[]).when(add(good, false)).is_ok(), "{good}");
        }
        for bad in [
            "",
            "http://acme.okta.example",
            "https://localhost",
            "https://10.0.0.1",
            "https://[::1]",
            "https://metadata.internal",
            "https://user@acme.example",
            "https://acme.example?x",
            "http://127.0.0.1:8080",
        ] {
            let found = fields(given::<Connections>(&[]).when(add(bad, false)));
            assert_eq!(found, [("/issuer".to_owned(), "url".to_owned())], "{bad}");
        }
        assert!(given::<Connections>(&[]).when(add("http://127.0.0.1:8080", true)).is_ok());
    }

    #[test]
    fn one_connection_is_the_default_until_it_is_removed() {
        let default = |n| ConnectionCommand::SetDefault(SetDefaultSsoConnection { id: id(n) });
        let changed = |n| SsoConnectionEvent::DefaultChanged(SsoDefaultChanged { connection_id: id(n) });
        let removed = SsoConnectionEvent::Removed(SsoConnectionRemoved { connection_id: id(1) });
        assert_eq!(given::<Connections>(&[added(1)]).when(default(1)), Ok(vec![changed(1)]));
        assert_eq!(given::<Connections>(&[added(1), changed(1)]).when(default(1)), Ok(vec![]));
        assert_eq!(given::<Connections>(&[added(1), added(2), changed(1)]).when(default(2)), Ok(vec![changed(2)]));
        let without = given::<Connections>(&[added(1), changed(1), removed.clone()]);
        assert_eq!(rejection(without.when(default(1))).code, "not_found");
        assert!(!without.0.lets_in(id(1)));
        assert_eq!(given::<Connections>(&[added(1)]).when(remove(1, None)), Ok(vec![removed]));
    }

    fn remove(n: u8, allowed: Option<&[LoginMethod]>) -> ConnectionCommand {
        let allowed_auth_methods = allowed.map(|methods| methods.iter().cloned().collect());
        let settings = OrganizationSettings { allowed_auth_methods, ..OrganizationSettings::default() };
        let by = Some(LoginMethod::oidc());
        ConnectionCommand::Remove { command: RemoveSsoConnection { id: id(n) }, settings, by }
    }

    #[test]
    fn a_connection_is_removed_by_a_person_who_stays_able_to_sign_in() {
        let both = given::<Connections>(&[added(1), added(2)]);
        let removed_by = |by: Option<LoginMethod>| {
            let (command, settings) = (RemoveSsoConnection { id: id(1) }, OrganizationSettings::default());
            both.when(ConnectionCommand::Remove { command, settings, by })
        };
        for by in [None, Some(LoginMethod::api_key()), Some(LoginMethod::sso(id(1)))] {
            assert_eq!(rejection(removed_by(by.clone())).code, "would_lock_out", "{by:?}");
        }
        for by in [LoginMethod::oidc(), LoginMethod::sso(id(2))] {
            assert!(removed_by(Some(by.clone())).is_ok(), "{by:?}");
        }
    }

    #[test]
    fn the_last_way_in_for_people_stays() {
        let both = given::<Connections>(&[added(1), added(2)]);
        let [one, two, gone] = [1, 2, 9].map(|n| LoginMethod::sso(id(n)));
        for allowed in [vec![one.clone()], vec![one.clone(), LoginMethod::api_key()], vec![one.clone(), gone]] {
            assert_eq!(rejection(both.when(remove(1, Some(&allowed)))).code, "last_way_in", "{allowed:?}");
            assert!(both.when(remove(2, Some(&allowed))).is_ok());
        }
        for allowed in [vec![one.clone(), two], vec![one, LoginMethod::oidc()]] {
            assert!(both.when(remove(1, Some(&allowed))).is_ok(), "{allowed:?}");
        }
    }

    #[test]
    fn a_connection_is_there_once_and_lets_in_whom_it_says() {
        let both = given::<Connections>(&[added(1), added(2)]);
        assert_eq!(rejection(both.when(add("https://1x.issuer.example", false))).code, "sso_connection_exists");
        assert!(both.0.lets_in(id(1)) && !both.0.lets_in(id(2)));
    }
}
