//! The members of an organization: one aggregate, because "never the last owner" is a rule over all of them.

mod commands;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use orgstream_events::{
    AggregateType, Event, MemberAdded, MemberEvent, MemberId, MemberRemoved, MemberRoleChanged, QuotaName, Role, UserId,
};
use serde::{Deserialize, Serialize};

use crate::{
    Aggregate, DecisionContext, FieldError, Place, Rejection, RejectionKind,
    quota::{OverQuota, QuotaLimit},
    text::{Faults, fold_email},
};

pub use commands::{AddMember, ChangeMemberRole, RemoveMember};

/// The current members, and the former ones. A member is shared by copies of the aggregate, which may have many.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Members {
    current: BTreeMap<MemberId, Arc<Member>>,
    /// The current members by their login and by their address, so that a search does not go through all of them.
    by_user: BTreeMap<UserId, MemberId>,
    by_email: BTreeMap<Arc<str>, MemberId>,
    owners: usize,
    /// The former members, by their login and by their address, with the position of the removal in the org's stream.
    left: BTreeMap<UserId, u64>,
    left_emails: BTreeMap<Arc<str>, u64>,
}

/// The stored state, without what follows from the members.
#[derive(Serialize, Deserialize)]
struct Stored {
    current: Vec<(MemberId, UserId, String, Role)>,
    left: BTreeMap<UserId, u64>,
    left_emails: BTreeMap<String, u64>,
}

impl From<Members> for Stored {
    fn from(Members { current, left, left_emails, .. }: Members) -> Self {
        let fields = |(id, member): (MemberId, Arc<Member>)| (id, member.user_id, member.email.clone(), member.role);
        let current = current.into_iter().map(fields).collect();
        let left_emails = left_emails.into_iter().map(|(email, seq)| (email.to_string(), seq)).collect();
        Self { current, left, left_emails }
    }
}

impl From<Stored> for Members {
    fn from(Stored { current, left, left_emails }: Stored) -> Self {
        let left_emails = left_emails.into_iter().map(|(email, seq)| (email.into(), seq)).collect();
        let mut members = Self { left, left_emails, ..Self::default() };
        for (id, user_id, email, role) in current {
            members.insert(id, Member { user_id, email, role });
        }
        members
    }
}

/// One person inside one organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
        self.current.get(&id).map(|member| &**member)
    }

    /// Returns the membership of this person.
    pub fn of_user(&self, user: UserId) -> Option<(MemberId, &Member)> {
        let id = *self.by_user.get(&user)?;
        Some((id, self.get(id)?))
    }

    /// Iterates over all members, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.current.iter().map(|(id, member)| (*id, &**member))
    }

    /// Returns the member with this address, regardless of case.
    pub fn of_email(&self, email: &str) -> Option<MemberId> {
        self.by_email.get(fold_email(email).as_str()).copied()
    }

    /// Returns the position in the org's stream where this person was last removed, under any of their logins; 0 without a
    /// removal.
    fn left_at(&self, user: UserId, email: &str) -> u64 {
        let by_login = self.left.get(&user).copied();
        let by_address = self.left_emails.get(fold_email(email).as_str()).copied();
        by_login.max(by_address).unwrap_or_default()
    }

    /// Whether this person was removed, and not invited or added again since.
    fn has_left(&self, user: UserId, email: &str) -> bool {
        self.left.contains_key(&user) || self.left_emails.contains_key(fold_email(email).as_str())
    }

    /// Whether a key's voucher is no longer a member: such a key brings back no removed person.
    fn is_left_behind(&self, voucher: Option<MemberId>) -> bool {
        voucher.is_some_and(|voucher| self.get(voucher).is_none())
    }

    /// Applies `event`, where `seq` is its position in the org's stream.
    fn fold(&mut self, event: &MemberEvent, seq: u64) {
        match event {
            MemberEvent::Added(event) => {
                let member = Member { user_id: event.user_id, email: event.email.clone(), role: event.role };
                self.left.remove(&member.user_id);
                self.left_emails.remove(fold_email(&member.email).as_str());
                self.take(event.member_id);
                self.insert(event.member_id, member);
            }
            MemberEvent::RoleChanged(event) => {
                if let Some(member) = self.take(event.member_id) {
                    self.insert(event.member_id, Member { role: event.to, ..Arc::unwrap_or_clone(member) });
                }
            }
            MemberEvent::Removed(event) => {
                if let Some(member) = self.take(event.member_id) {
                    self.left_emails.insert(fold_email(&member.email).into(), seq);
                    self.left.insert(member.user_id, seq);
                }
            }
        }
    }

    fn insert(&mut self, id: MemberId, member: Member) {
        self.owners += usize::from(member.role == Role::Owner);
        self.by_user.insert(member.user_id, id);
        self.by_email.insert(fold_email(&member.email).into(), id);
        self.current.insert(id, Arc::new(member));
    }

    fn take(&mut self, id: MemberId) -> Option<Arc<Member>> {
        let member = self.current.remove(&id)?;
        self.owners = self.owners.saturating_sub(usize::from(member.role == Role::Owner));
        self.by_user.remove(&member.user_id);
        self.by_email.remove(fold_email(&member.email).as_str());
        Some(member)
    }

    /// Returns the number of members.
    pub fn count(&self) -> usize {
        self.current.len()
    }

    /// Refuses a person who is a member already, an address that another member has, and more members than there may be.
    fn has_room_for(&self, user: UserId, email: &str, quota: Option<&QuotaLimit>) -> Result<(), MemberError> {
        if self.of_user(user).is_some() {
            return Err(MemberError::AlreadyMember);
        }
        if self.of_email(email).is_some() {
            return Err(MemberError::EmailTaken);
        }
        Ok(QuotaLimit::admits_one(quota, QuotaName::Members, self.count())?)
    }

    fn existing(&self, id: MemberId) -> Result<&Member, MemberError> {
        self.get(id).ok_or(MemberError::NotFound)
    }

    /// Refuses to remove the rights of the last owner.
    fn not_the_last_owner(&self, member: &Member) -> Result<(), MemberError> {
        if member.role == Role::Owner && self.owners == 1 { Err(MemberError::LastOwner) } else { Ok(()) }
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
        /// The most members.
        quota: Option<QuotaLimit>,
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
        /// The most members.
        quota: Option<QuotaLimit>,
    },
    /// Adds a member by sign-in: with an address of a domain that is the organization's own, or by its own issuer.
    Provision {
        /// The person.
        user_id: UserId,
        /// The e-mail address, as the person's issuer verified it.
        email: String,
        /// The reason why the organization permits no members by sign-in, if it does not.
        closed: Option<Closed>,
        /// The most members.
        quota: Option<QuotaLimit>,
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

/// Returns the identity of a person of whom only the e-mail address is known: no issuer ever has an empty name.
pub fn user_of_email(email: &str) -> UserId {
    UserId::from_login("", &fold_email(email))
}

impl Aggregate for Members {
    type Command = MemberCommand;
    type Event = MemberEvent;
    type Error = MemberError;
    const TYPE: AggregateType = AggregateType::Member;
    const SHAPE: u16 = 1;

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
            MemberCommand::Add { command: AddMember { email, user_id, role }, by, voucher, quota } => {
                within(by, role)?;
                let user_id = user_id.unwrap_or_else(|| user_of_email(&email));
                if self.is_left_behind(voucher) && self.has_left(user_id, &email) {
                    return Err(MemberError::WasRemoved);
                }
                self.has_room_for(user_id, &email, quota.as_ref())?;
                add(user_id, email, role)
            }
            MemberCommand::Join { user_id, email, role, sent, voucher, quota } => {
                // The remover knew of no invitation, or meant it to be void.
                let asks_back = self.is_left_behind(voucher) && self.has_left(user_id, &email);
                if asks_back || self.left_at(user_id, &email) > sent {
                    return Err(MemberError::WasRemoved);
                }
                self.has_room_for(user_id, &email, quota.as_ref())?;
                add(user_id, email, role)
            }
            MemberCommand::Provision { user_id, email, closed, quota } => {
                match closed {
                    Some(Closed::NotAllowed) => return Err(MemberError::JoiningOff),
                    Some(Closed::NotProven) => return Err(MemberError::DomainNotProven),
                    Some(Closed::NoJit) => return Err(MemberError::NoJit),
                    // A removal was deliberate: the person comes back only by an invitation or an addition.
                    None if self.has_left(user_id, &email) => return Err(MemberError::WasRemoved),
                    None => {}
                }
                self.has_room_for(user_id, &email, quota.as_ref())?;
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
    /// There are as many members as there may be.
    #[error(transparent)]
    OverQuota(#[from] OverQuota),
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
            MemberError::OverQuota(over) => return over.into(),
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
