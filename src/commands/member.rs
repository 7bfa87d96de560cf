//! The members of an organization: one aggregate, because "never the last owner" is a rule over all of them.

use std::collections::BTreeMap;

use orgstream_events::{
    AggregateType, Event, MemberAdded, MemberEvent, MemberId, MemberRemoved, MemberRoleChanged, Role, UserId,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Aggregate, Facts, FieldError, Rejection, RejectionKind, openapi, text::Faults};

/// Everybody who is a member now.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    members: BTreeMap<MemberId, Member>,
}

/// One person inside one organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The person outside it.
    pub user_id: UserId,
    /// Where to reach them.
    pub email: String,
    /// What they may do.
    pub role: Role,
}

impl Roster {
    /// The member of this id.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The member that this person is here.
    pub fn of_user(&self, user: UserId) -> Option<(MemberId, &Member)> {
        self.members.iter().find(|(_, member)| member.user_id == user).map(|(id, member)| (*id, member))
    }

    /// Everybody, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    fn existing(&self, id: MemberId) -> Result<&Member, MemberError> {
        self.get(id).ok_or(MemberError::NotFound)
    }

    /// Refuses to take away the rights of the last one who has them all.
    fn not_the_last_owner(&self, member: &Member) -> Result<(), MemberError> {
        let owners = self.members.values().filter(|member| member.role == Role::Owner).count();
        if member.role == Role::Owner && owners == 1 { Err(MemberError::LastOwner) } else { Ok(()) }
    }
}

/// What can be asked of the members. `by` is the role of whoever asks: nobody hands out, or takes, more than they have.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberCommand {
    /// The first member of a new organization: its owner.
    Found {
        /// Who made the organization.
        user_id: UserId,
        /// Where to reach them.
        email: String,
    },
    /// One more.
    Add {
        /// As the caller has it.
        command: AddMember,
        /// The caller's role.
        by: Role,
    },
    /// Another role.
    ChangeRole {
        /// As the caller has it.
        command: ChangeMemberRole,
        /// The caller's role.
        by: Role,
    },
    /// One less.
    Remove {
        /// As the caller has it.
        command: RemoveMember,
        /// The caller's role.
        by: Role,
    },
}

/// One more person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMember {
    /// Where to reach them. Unique inside the organization, whatever the case of its letters.
    #[schema(example = "ann@acme.example", max_length = 254)]
    pub email: String,
    /// The login identity, if it is known; without it, the e-mail address is the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "usr_01h455vb4pex5vsknk084sn02q")]
    pub user_id: Option<UserId>,
    /// What they may do; not more than you may.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
}

/// More or fewer rights for one person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeMemberRole {
    /// Who.
    #[schema(value_type = String, example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub id: MemberId,
    /// What they may do from now on; not more than you may.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
}

/// One person less. What they made stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveMember {
    /// Who.
    #[schema(value_type = String, example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub id: MemberId,
}

/// The identity of a person of whom only the e-mail address is known: no issuer ever has an empty name.
pub fn user_of_email(email: &str) -> UserId {
    UserId::from_login("", &email.to_lowercase())
}

impl Aggregate for Roster {
    type Command = MemberCommand;
    type Event = MemberEvent;
    type Error = MemberError;
    const TYPE: AggregateType = AggregateType::Member;

    fn apply(&mut self, event: &MemberEvent) {
        match event {
            MemberEvent::Added(event) => {
                let member = Member { user_id: event.user_id, email: event.email.clone(), role: event.role };
                self.members.insert(event.member_id, member);
            }
            MemberEvent::RoleChanged(event) => {
                if let Some(member) = self.members.get_mut(&event.member_id) {
                    member.role = event.to;
                }
            }
            MemberEvent::Removed(event) => {
                self.members.remove(&event.member_id);
            }
        }
    }

    fn decide(&self, command: MemberCommand, facts: &Facts) -> Result<Vec<MemberEvent>, MemberError> {
        let add = |user_id, email: String, role| {
            let mut faults = Faults::default();
            faults.email("/email", &email);
            faults.none_or(MemberError::Invalid)?;
            let member_id = MemberId::derive(facts.command_id);
            Ok(vec![MemberEvent::Added(MemberAdded { member_id, user_id, email, role })])
        };
        match command {
            MemberCommand::Found { user_id, email } => {
                if self.members.is_empty() {
                    add(user_id, email, Role::Owner)
                } else {
                    Err(MemberError::AlreadyFounded)
                }
            }
            MemberCommand::Add { command: AddMember { email, user_id, role }, by } => {
                within(by, role)?;
                let user_id = user_id.unwrap_or_else(|| user_of_email(&email));
                if self.of_user(user_id).is_some() {
                    return Err(MemberError::AlreadyMember);
                }
                let lower = email.to_lowercase();
                if self.members.values().any(|member| member.email.to_lowercase() == lower) {
                    return Err(MemberError::EmailTaken);
                }
                add(user_id, email, role)
            }
            MemberCommand::ChangeRole { command: ChangeMemberRole { id, role: to }, by } => {
                let member = self.existing(id)?;
                within(by, member.role)?;
                within(by, to)?;
                if member.role == to {
                    return Ok(vec![]);
                }
                self.not_the_last_owner(member)?;
                Ok(vec![MemberEvent::RoleChanged(MemberRoleChanged { member_id: id, from: member.role, to })])
            }
            MemberCommand::Remove { command: RemoveMember { id }, by } => {
                let member = self.existing(id)?;
                within(by, member.role)?;
                self.not_the_last_owner(member)?;
                Ok(vec![MemberEvent::Removed(MemberRemoved { member_id: id })])
            }
        }
    }

    fn wrap(event: MemberEvent) -> Event {
        Event::Member(event)
    }

    fn event_of(event: &Event) -> Option<&MemberEvent> {
        if let Event::Member(event) = event { Some(event) } else { None }
    }
}

fn within(by: Role, role: Role) -> Result<(), MemberError> {
    if by.includes(role) { Ok(()) } else { Err(MemberError::RoleAboveOwn { by, role }) }
}

/// Why the members refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Its fields are wrong.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The organization has members already.
    #[error("the organization has members already")]
    AlreadyFounded,
    /// The person is here.
    #[error("this person is a member already; change their role instead")]
    AlreadyMember,
    /// Somebody else has the address.
    #[error("a member with this e-mail address exists already; remove that member first or use another address")]
    EmailTaken,
    /// No such member, or not any more.
    #[error("there is no such member in this organization")]
    NotFound,
    /// Somebody must be able to do everything.
    #[error("the last owner cannot be removed or lose the role; make somebody else owner first")]
    LastOwner,
    /// More than the caller has.
    #[error("a member with role {by} cannot give, change or take the role {role}; ask somebody who has it")]
    RoleAboveOwn {
        /// The caller's role.
        by: Role,
        /// The role in question.
        role: Role,
    },
}

impl From<MemberError> for Rejection {
    fn from(error: MemberError) -> Self {
        let (kind, code) = match error {
            MemberError::Invalid(errors) => return Self::invalid(errors),
            MemberError::AlreadyFounded => (RejectionKind::Conflict, "members_exist"),
            MemberError::AlreadyMember => (RejectionKind::Conflict, "already_member"),
            MemberError::EmailTaken => (RejectionKind::Conflict, "email_taken"),
            MemberError::NotFound => (RejectionKind::NotFound, "not_found"),
            MemberError::LastOwner => (RejectionKind::Conflict, "last_owner"),
            MemberError::RoleAboveOwn { .. } => (RejectionKind::Forbidden, "role_above_own"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{facts, fields, given, rejection},
        *,
    };

    fn id(n: u8) -> MemberId {
        MemberId::fresh(1_700_000_000_000, [n; 10])
    }

    fn added(n: u8, role: Role) -> MemberEvent {
        let email = format!("M{n}@acme.example");
        let user_id = UserId::from_login("https://issuer.example", &n.to_string());
        MemberEvent::Added(MemberAdded { member_id: id(n), user_id, email, role })
    }

    fn add(email: &str, role: Role, by: Role) -> MemberCommand {
        MemberCommand::Add { command: AddMember { email: email.to_owned(), user_id: None, role }, by }
    }

    fn change(n: u8, role: Role, by: Role) -> MemberCommand {
        MemberCommand::ChangeRole { command: ChangeMemberRole { id: id(n), role }, by }
    }

    fn remove(n: u8, by: Role) -> MemberCommand {
        MemberCommand::Remove { command: RemoveMember { id: id(n) }, by }
    }

    #[test]
    fn the_creator_becomes_the_owner() {
        let user_id = user_of_email("ann@acme.example");
        let email = "ann@acme.example".to_owned();
        let member_id = MemberId::derive(facts().command_id);
        assert_eq!(
            given::<Roster>(&[]).when(MemberCommand::Found { user_id, email: email.clone() }),
            Ok(vec![MemberEvent::Added(MemberAdded { member_id, user_id, email, role: Role::Owner })])
        );
    }

    #[test]
    fn an_organization_is_founded_once() {
        let found = MemberCommand::Found { user_id: user_of_email("x@y"), email: "x@y".to_owned() };
        assert_eq!(given::<Roster>(&[added(1, Role::Owner)]).when(found), Err(MemberError::AlreadyFounded));
    }

    #[test]
    fn a_person_without_a_login_is_known_by_the_email() {
        let events = given::<Roster>(&[added(1, Role::Owner)]).when(add("Bob@Acme.example", Role::Member, Role::Owner));
        let Ok([MemberEvent::Added(event)]) = events.as_deref() else { panic!("{events:?}") };
        assert_eq!(event.user_id, user_of_email("bob@acme.example"));
        assert_eq!(event.email, "Bob@Acme.example");
    }

    #[test]
    fn nobody_is_a_member_twice() {
        let MemberEvent::Added(one) = added(1, Role::Owner) else { unreachable!() };
        let command =
            AddMember { email: "other@acme.example".to_owned(), user_id: Some(one.user_id), role: Role::Viewer };
        let again = MemberCommand::Add { command, by: Role::Owner };
        assert_eq!(rejection(given::<Roster>(&[added(1, Role::Owner)]).when(again)).code, "already_member");
    }

    #[test]
    fn an_email_belongs_to_one_member_whatever_its_case() {
        let same = add("m1@ACME.example", Role::Viewer, Role::Owner);
        assert_eq!(rejection(given::<Roster>(&[added(1, Role::Owner)]).when(same)).code, "email_taken");
    }

    #[test]
    fn a_removed_person_can_come_back() {
        let removed = MemberEvent::Removed(MemberRemoved { member_id: id(2) });
        let roster = given::<Roster>(&[added(1, Role::Owner), added(2, Role::Member), removed]);
        assert!(roster.when(add("m2@acme.example", Role::Member, Role::Owner)).is_ok());
    }

    #[test]
    fn the_last_owner_stays() {
        let roster = given::<Roster>(&[added(1, Role::Owner), added(2, Role::Admin)]);
        assert_eq!(roster.when(remove(1, Role::Owner)), Err(MemberError::LastOwner));
        assert_eq!(roster.when(change(1, Role::Admin, Role::Owner)), Err(MemberError::LastOwner));
        assert_eq!(rejection(roster.when(remove(1, Role::Owner))).kind.status(), 409);
    }

    #[test]
    fn one_of_two_owners_may_go() {
        let roster = given::<Roster>(&[added(1, Role::Owner), added(2, Role::Owner)]);
        assert_eq!(
            roster.when(remove(1, Role::Owner)),
            Ok(vec![MemberEvent::Removed(MemberRemoved { member_id: id(1) })])
        );
    }

    #[test]
    fn a_new_role_says_what_it_was_before() {
        let roster = given::<Roster>(&[added(1, Role::Owner), added(2, Role::Admin)]);
        let changed = MemberRoleChanged { member_id: id(2), from: Role::Admin, to: Role::Viewer };
        assert_eq!(roster.when(change(2, Role::Viewer, Role::Admin)), Ok(vec![MemberEvent::RoleChanged(changed)]));
        assert_eq!(roster.when(change(2, Role::Admin, Role::Owner)), Ok(vec![]));
    }

    #[test]
    fn nobody_hands_out_or_takes_more_than_they_have() {
        let roster = given::<Roster>(&[added(1, Role::Owner), added(2, Role::Owner), added(3, Role::Admin)]);
        for command in [
            add("new@acme.example", Role::Owner, Role::Admin),
            change(3, Role::Owner, Role::Admin),
            change(1, Role::Viewer, Role::Admin),
            remove(1, Role::Admin),
        ] {
            let refused = rejection(roster.when(command));
            assert_eq!((refused.code, refused.kind.status()), ("role_above_own", 403));
        }
    }

    #[test]
    fn somebody_who_is_not_here_is_not_found() {
        assert_eq!(rejection(given::<Roster>(&[added(1, Role::Owner)]).when(remove(9, Role::Owner))).code, "not_found");
    }

    #[test]
    fn a_bad_email_is_pointed_at() {
        let bad = add("not an address", Role::Viewer, Role::Owner);
        assert_eq!(fields(given::<Roster>(&[]).when(bad)), [("/email".to_owned(), "email".to_owned())]);
    }
}
