//! The members of an organization: one aggregate, because "never the last owner" is a rule over all of them.

use std::collections::BTreeMap;

use orgstream_events::{
    AggregateId, AggregateType, Event, MemberAdded, MemberEvent, MemberId, MemberRemoved, MemberRoleChanged, OrgId,
    Role, UserId,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Place, Rejection, RejectionKind,
    Requires, Scope,
    grants::Grant,
    openapi,
    text::{Faults, fold_email, same_email},
};

/// The current members, and the former ones.
#[derive(Debug, Clone, Default)]
pub struct Members {
    current: BTreeMap<MemberId, Member>,
    /// The former members, by their login and by their address, with the position of the removal in the org's stream.
    left: BTreeMap<UserId, u64>,
    left_emails: BTreeMap<String, u64>,
}

/// One person inside one organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The person's identity across organizations.
    pub user_id: UserId,
    /// The e-mail address.
    pub email: String,
    /// The role.
    pub role: Role,
}

impl Members {
    /// Returns the member of this id.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.current.get(&id)
    }

    /// Returns the membership of this person.
    pub fn of_user(&self, user: UserId) -> Option<(MemberId, &Member)> {
        self.current.iter().find(|(_, member)| member.user_id == user).map(|(id, member)| (*id, member))
    }

    /// Iterates over all members, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.current.iter().map(|(id, member)| (*id, member))
    }

    /// Returns the member with this address, regardless of case.
    pub fn of_email(&self, email: &str) -> Option<MemberId> {
        self.current.iter().find(|(_, member)| same_email(&member.email, email)).map(|(id, _)| *id)
    }

    /// Returns the position in the org's stream where this person was last removed, under any of their logins; 0 without a
    /// removal.
    fn left_at(&self, user: UserId, email: &str) -> u64 {
        let by_login = self.left.get(&user).copied();
        let by_address = self.left_emails.get(&fold_email(email)).copied();
        by_login.max(by_address).unwrap_or_default()
    }

    /// Whether this person was removed, and not invited or added again since.
    fn has_left(&self, user: UserId, email: &str) -> bool {
        self.left.contains_key(&user) || self.left_emails.contains_key(&fold_email(email))
    }

    /// Whether a key's voucher is no longer a member: such a key brings back no removed person.
    fn is_left_behind(&self, voucher: Option<MemberId>) -> bool {
        voucher.is_some_and(|voucher| self.get(voucher).is_none())
    }

    /// Applies `event` to the roster, where `seq` is its position in the org's stream.
    fn fold(&mut self, event: &MemberEvent, seq: u64) {
        match event {
            MemberEvent::Added(event) => {
                let member = Member { user_id: event.user_id, email: event.email.clone(), role: event.role };
                self.left.remove(&member.user_id);
                self.left_emails.remove(&fold_email(&member.email));
                self.current.insert(event.member_id, member);
            }
            MemberEvent::RoleChanged(event) => {
                if let Some(member) = self.current.get_mut(&event.member_id) {
                    member.role = event.to;
                }
            }
            MemberEvent::Removed(event) => {
                if let Some(member) = self.current.remove(&event.member_id) {
                    self.left_emails.insert(fold_email(&member.email), seq);
                    self.left.insert(member.user_id, seq);
                }
            }
        }
    }

    /// Refuses a person who is a member already, and an address that another member has.
    fn not_here(&self, user: UserId, email: &str) -> Result<(), MemberError> {
        if self.of_user(user).is_some() {
            return Err(MemberError::AlreadyMember);
        }
        if self.of_email(email).is_some() { Err(MemberError::EmailTaken) } else { Ok(()) }
    }

    fn existing(&self, id: MemberId) -> Result<&Member, MemberError> {
        self.get(id).ok_or(MemberError::NotFound)
    }

    /// Refuses to remove the rights of the last owner.
    fn not_the_last_owner(&self, member: &Member) -> Result<(), MemberError> {
        let owners = self.current.values().filter(|member| member.role == Role::Owner).count();
        if member.role == Role::Owner && owners == 1 { Err(MemberError::LastOwner) } else { Ok(()) }
    }
}

/// The commands of the members. `by` is the caller's role: no caller grants or removes more than it has.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberCommand {
    /// Adds the first member of a new organization: its owner.
    Found {
        /// The founder.
        user_id: UserId,
        /// The e-mail address.
        email: String,
    },
    /// Adds a member.
    Add {
        /// The command as received.
        command: AddMember,
        /// The caller's role.
        by: Role,
        /// The member that vouches for the calling key.
        voucher: Option<MemberId>,
    },
    /// Adds a member by an accepted invitation.
    Join {
        /// The person.
        user_id: UserId,
        /// The e-mail address: the one that was invited, as the person's issuer verified it.
        email: String,
        /// The role that the invitation offers.
        role: Role,
        /// The position in the org's stream where it was sent.
        sent: u64,
        /// The member that vouches for the key that sent it.
        voucher: Option<MemberId>,
    },
    /// Adds a member by sign-in: with an address of a domain that is the organization's own, or by its own issuer.
    Provision {
        /// The person.
        user_id: UserId,
        /// The e-mail address, as the person's issuer verified it.
        email: String,
        /// The reason why the organization permits no members by sign-in, if it does not.
        closed: Option<Closed>,
    },
    /// Changes the role.
    ChangeRole {
        /// The command as received.
        command: ChangeMemberRole,
        /// The caller's role.
        by: Role,
    },
    /// Removes a member.
    Remove {
        /// The command as received.
        command: RemoveMember,
        /// The caller's role.
        by: Role,
    },
}

/// The reason why a sign-in creates no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The setting forbids it.
    NotAllowed,
    /// The domain is not proven, or not that of the address.
    NotProven,
    /// The connection creates no members.
    NoJit,
}

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

/// Returns the identity of a person of whom only the e-mail address is known: no issuer ever has an empty name.
pub fn user_of_email(email: &str) -> UserId {
    UserId::from_login("", &fold_email(email))
}

impl Aggregate for Members {
    type Command = MemberCommand;
    type Event = MemberEvent;
    type Error = MemberError;
    const TYPE: AggregateType = AggregateType::Member;

    fn apply(&mut self, event: &MemberEvent) {
        self.fold(event, 0);
    }

    fn apply_at(&mut self, event: &MemberEvent, place: Place<'_>) {
        self.fold(event, place.seq);
    }

    fn decide(&self, command: MemberCommand, context: &DecisionContext) -> Result<Vec<MemberEvent>, MemberError> {
        let add = |user_id, email: String, role| {
            let mut faults = Faults::default();
            faults.email("/email", &email);
            faults.none_or(MemberError::Invalid)?;
            let member_id = MemberId::derive(context.command_id);
            Ok(vec![MemberEvent::Added(MemberAdded { member_id, user_id, email, role })])
        };
        match command {
            MemberCommand::Found { user_id, email } => {
                if self.current.is_empty() {
                    add(user_id, email, Role::Owner)
                } else {
                    Err(MemberError::AlreadyFounded)
                }
            }
            MemberCommand::Add { command: AddMember { email, user_id, role }, by, voucher } => {
                within(by, role)?;
                let user_id = user_id.unwrap_or_else(|| user_of_email(&email));
                if self.is_left_behind(voucher) && self.has_left(user_id, &email) {
                    return Err(MemberError::WasRemoved);
                }
                self.not_here(user_id, &email)?;
                add(user_id, email, role)
            }
            MemberCommand::Join { user_id, email, role, sent, voucher } => {
                // The remover knew of no invitation, or meant it to be void.
                let asks_back = self.is_left_behind(voucher) && self.has_left(user_id, &email);
                if asks_back || self.left_at(user_id, &email) > sent {
                    return Err(MemberError::WasRemoved);
                }
                self.not_here(user_id, &email)?;
                add(user_id, email, role)
            }
            MemberCommand::Provision { user_id, email, closed } => {
                match closed {
                    Some(Closed::NotAllowed) => return Err(MemberError::JoiningOff),
                    Some(Closed::NotProven) => return Err(MemberError::DomainNotProven),
                    Some(Closed::NoJit) => return Err(MemberError::NoJit),
                    // A removal was deliberate: the person comes back only by an invitation or an addition.
                    None if self.has_left(user_id, &email) => return Err(MemberError::WasRemoved),
                    None => {}
                }
                self.not_here(user_id, &email)?;
                add(user_id, email, Role::Member)
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

/// The reasons why a member command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The organization has members already.
    #[error("the organization has members already")]
    AlreadyFounded,
    /// The person is a member already.
    #[error("this person is a member already; change their role instead")]
    AlreadyMember,
    /// Another member has the address.
    #[error("a member with this e-mail address exists already; remove that member first or use another address")]
    EmailTaken,
    /// The organization permits no joining by domain.
    #[error("this organization admits no members by signing in (its setting jit_provisioning)")]
    JoiningOff,
    /// The domain is not the organization's, or not that of the address.
    #[error("this organization has not proven that the domain of the address is its own")]
    DomainNotProven,
    /// The connection permits sign-in, but no joining.
    #[error("this connection admits no members (its field jit)")]
    NoJit,
    /// The person is a former member.
    #[error("this person was removed from the organization; they come back by an invitation that is sent from now on")]
    WasRemoved,
    /// No such member, or no longer.
    #[error("there is no such member in this organization")]
    NotFound,
    /// At least one owner must remain.
    #[error("the last owner cannot be removed or lose the role; make another member owner first")]
    LastOwner,
    /// The role is above the caller's own.
    #[error("a member with role {by} cannot give, change or take the role {role}; ask a member who has it")]
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
            MemberError::JoiningOff | MemberError::NoJit => (RejectionKind::Forbidden, "jit_not_allowed"),
            MemberError::DomainNotProven => (RejectionKind::Forbidden, "domain_not_proven"),
            MemberError::WasRemoved => (RejectionKind::Forbidden, "member_was_removed"),
            MemberError::NotFound => (RejectionKind::NotFound, "not_found"),
            MemberError::LastOwner => (RejectionKind::Conflict, "last_owner"),
            MemberError::RoleAboveOwn { .. } => (RejectionKind::Forbidden, "role_above_own"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{Actor, ActorType};

    use super::*;
    use crate::testing::{context, fields, given, rejection};

    fn id(n: u8) -> MemberId {
        MemberId::fresh(1_700_000_000_000, [n; 10])
    }

    fn added(n: u8, role: Role) -> MemberEvent {
        let email = format!("M{n}@acme.example");
        let user_id = UserId::from_login("https://issuer.example", &n.to_string());
        MemberEvent::Added(MemberAdded { member_id: id(n), user_id, email, role })
    }

    fn add(email: &str, role: Role, by: Role) -> MemberCommand {
        MemberCommand::Add { command: AddMember { email: email.to_owned(), user_id: None, role }, by, voucher: None }
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
        let member_id = MemberId::derive(context().command_id);
        assert_eq!(
            given::<Members>(&[]).when(MemberCommand::Found { user_id, email: email.clone() }),
            Ok(vec![MemberEvent::Added(MemberAdded { member_id, user_id, email, role: Role::Owner })])
        );
    }

    #[test]
    fn an_organization_is_founded_once() {
        let found = MemberCommand::Found { user_id: user_of_email("x@y"), email: "x@y".to_owned() };
        assert_eq!(given::<Members>(&[added(1, Role::Owner)]).when(found), Err(MemberError::AlreadyFounded));
    }

    #[test]
    fn a_person_without_a_login_is_known_by_the_email() {
        let events =
            given::<Members>(&[added(1, Role::Owner)]).when(add("Bob@Acme.example", Role::Member, Role::Owner));
        let Ok([MemberEvent::Added(event)]) = events.as_deref() else { panic!("{events:?}") };
        assert_eq!(event.user_id, user_of_email("bob@acme.example"));
        assert_eq!(event.email, "Bob@Acme.example");
    }

    #[test]
    fn nobody_is_a_member_twice() {
        let MemberEvent::Added(one) = added(1, Role::Owner) else { unreachable!() };
        let command =
            AddMember { email: "other@acme.example".to_owned(), user_id: Some(one.user_id), role: Role::Viewer };
        let again = MemberCommand::Add { command, by: Role::Owner, voucher: None };
        assert_eq!(rejection(given::<Members>(&[added(1, Role::Owner)]).when(again)).code, "already_member");
    }

    #[test]
    fn an_email_belongs_to_one_member_whatever_its_case() {
        let same = add("m1@ACME.example", Role::Viewer, Role::Owner);
        assert_eq!(rejection(given::<Members>(&[added(1, Role::Owner)]).when(same)).code, "email_taken");
    }

    #[test]
    fn whoever_joins_by_an_invitation_is_nobodys_double() {
        let roster = given::<Members>(&[added(1, Role::Owner)]);
        let join = |user: &str, email: &str| MemberCommand::Join {
            user_id: UserId::from_login("https://issuer.example", user),
            email: email.to_owned(),
            role: Role::Admin,
            sent: 1,
            voucher: None,
        };
        assert_eq!(rejection(roster.when(join("1", "other@acme.example"))).code, "already_member");
        assert_eq!(rejection(roster.when(join("2", "m1@acme.example"))).code, "email_taken");
        let joined = roster.when(join("2", "m2@acme.example"));
        assert!(matches!(joined.as_deref(), Ok([MemberEvent::Added(added)]) if added.role == Role::Admin));
    }

    #[test]
    fn whoever_was_removed_does_not_come_back_by_signing_in() {
        let MemberEvent::Added(two) = added(2, Role::Member) else { unreachable!() };
        let join = |closed| MemberCommand::Provision { user_id: two.user_id, email: two.email.clone(), closed };
        let founded = given::<Members>(&[added(1, Role::Owner)]);
        assert!(founded.when(join(None)).is_ok_and(|events| events.len() == 1));
        assert_eq!(rejection(founded.when(join(Some(Closed::NotAllowed)))).code, "jit_not_allowed");
        assert_eq!(rejection(founded.when(join(Some(Closed::NotProven)))).code, "domain_not_proven");
        let removed = MemberEvent::Removed(MemberRemoved { member_id: id(2) });
        let after = given::<Members>(&[added(1, Role::Owner), added(2, Role::Member), removed]);
        assert_eq!(rejection(after.when(join(None))).code, "member_was_removed");
        let invited = MemberCommand::Join {
            user_id: two.user_id,
            email: two.email.clone(),
            role: Role::Viewer,
            sent: 1,
            voucher: None,
        };
        assert!(after.when(invited).is_ok(), "an invitation is how they come back");
    }

    #[test]
    fn whoever_was_removed_comes_back_by_no_other_login_and_by_no_older_invitation() {
        let MemberEvent::Added(two) = added(2, Role::Member) else { unreachable!() };
        let removed = MemberEvent::Removed(MemberRemoved { member_id: id(2) });
        let mut roster = Members::default();
        let actor = Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None };
        for (seq, event) in [added(1, Role::Owner), added(2, Role::Member), removed].iter().enumerate() {
            roster.apply_at(event, Place { seq: 10 * (seq as u64 + 1), actor: &actor });
        }
        let other = UserId::from_login("https://another-issuer.example", "two");
        let signs_in = |user_id, email: &str| {
            roster.decide(MemberCommand::Provision { user_id, email: email.to_owned(), closed: None }, &context())
        };
        assert_eq!(signs_in(other, "M2@ACME.example"), Err(MemberError::WasRemoved));
        assert_eq!(signs_in(two.user_id, "new@acme.example"), Err(MemberError::WasRemoved));
        assert!(signs_in(other, "new@acme.example").is_ok());
        let accepts = |user_id, email: &str, sent| {
            let join = MemberCommand::Join { user_id, email: email.to_owned(), role: Role::Admin, sent, voucher: None };
            roster.decide(join, &context())
        };
        for (user, email) in [(other, "m2@acme.example"), (two.user_id, "new@acme.example")] {
            assert_eq!(accepts(user, email, 29), Err(MemberError::WasRemoved), "sent before the removal at 30");
            assert!(accepts(user, email, 31).is_ok());
        }
    }

    #[test]
    fn letters_beyond_ascii_have_no_case_in_an_address() {
        let roster = given::<Members>(&[added(1, Role::Owner)]);
        let MemberEvent::Added(one) = added(1, Role::Owner) else { unreachable!() };
        let kelvin = one.email.replace('M', "\u{212a}");
        assert_ne!(user_of_email("kim@acme.example"), user_of_email("\u{212a}im@acme.example"));
        assert_eq!(roster.0.of_email(&kelvin), None);
        assert_eq!(user_of_email("KIM@acme.example"), user_of_email("kim@acme.example"));
    }

    #[test]
    fn a_removed_person_can_come_back() {
        let removed = MemberEvent::Removed(MemberRemoved { member_id: id(2) });
        let roster = given::<Members>(&[added(1, Role::Owner), added(2, Role::Member), removed]);
        assert!(roster.when(add("m2@acme.example", Role::Member, Role::Owner)).is_ok());
    }

    #[test]
    fn nobody_who_was_removed_is_asked_back_by_a_key_that_was_left_behind() {
        let removed = MemberEvent::Removed(MemberRemoved { member_id: id(2) });
        let roster = given::<Members>(&[added(1, Role::Owner), added(2, Role::Admin), added(3, Role::Admin), removed]);
        let asked = |email: &str, by| {
            let command = AddMember { email: email.to_owned(), user_id: None, role: Role::Admin };
            let add = MemberCommand::Add { command, by: Role::Admin, voucher: Some(id(by)) };
            let user_id = user_of_email(email);
            let join = MemberCommand::Join {
                user_id,
                email: email.to_owned(),
                role: Role::Admin,
                sent: 9,
                voucher: Some(id(by)),
            };
            [roster.when(add), roster.when(join)]
        };
        for refused in asked("M2@acme.example", 2) {
            assert_eq!(rejection(refused).code, "member_was_removed");
        }
        // A key whose voucher is a member may, and one whose voucher was removed may invite others.
        assert!(asked("m2@acme.example", 3).iter().all(Result::is_ok));
        assert!(asked("new@acme.example", 2).iter().all(Result::is_ok));
    }

    #[test]
    fn the_last_owner_stays() {
        let roster = given::<Members>(&[added(1, Role::Owner), added(2, Role::Admin)]);
        assert_eq!(roster.when(remove(1, Role::Owner)), Err(MemberError::LastOwner));
        assert_eq!(roster.when(change(1, Role::Admin, Role::Owner)), Err(MemberError::LastOwner));
        assert_eq!(rejection(roster.when(remove(1, Role::Owner))).kind.status(), 409);
    }

    #[test]
    fn one_of_two_owners_may_go() {
        let roster = given::<Members>(&[added(1, Role::Owner), added(2, Role::Owner)]);
        assert_eq!(
            roster.when(remove(1, Role::Owner)),
            Ok(vec![MemberEvent::Removed(MemberRemoved { member_id: id(1) })])
        );
    }

    #[test]
    fn a_new_role_says_what_it_was_before() {
        let roster = given::<Members>(&[added(1, Role::Owner), added(2, Role::Admin)]);
        let changed = MemberRoleChanged { member_id: id(2), from: Role::Admin, to: Role::Viewer };
        assert_eq!(roster.when(change(2, Role::Viewer, Role::Admin)), Ok(vec![MemberEvent::RoleChanged(changed)]));
        assert_eq!(roster.when(change(2, Role::Admin, Role::Owner)), Ok(vec![]));
    }

    #[test]
    fn nobody_hands_out_or_takes_more_than_they_have() {
        let roster = given::<Members>(&[added(1, Role::Owner), added(2, Role::Owner), added(3, Role::Admin)]);
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
        assert_eq!(
            rejection(given::<Members>(&[added(1, Role::Owner)]).when(remove(9, Role::Owner))).code,
            "not_found"
        );
    }

    #[test]
    fn a_bad_email_is_pointed_at() {
        let bad = add("not an address", Role::Viewer, Role::Owner);
        assert_eq!(fields(given::<Members>(&[]).when(bad)), [("/email".to_owned(), "email".to_owned())]);
    }
}
