//! One invitation: issued once, then accepted or revoked; until then it can be resent, and it expires.
//!
//! Membership is decided by the members aggregate, so the accepting person is added there in the same atomic append.

mod commands;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use orgstream_events::{
    ActorType, AggregateType, DomainName, Event, Fingerprint, InvitationAccepted, InvitationEvent, InvitationIssued,
    InvitationResent, InvitationRevoked, InvitePolicy, MemberId, Role, Timestamp,
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::{
    Aggregate, DecisionContext, FieldError, Place, Rejection, RejectionKind,
    text::{Faults, same_email},
};

pub use commands::{AcceptInvitation, IssueInvitation, ResendInvitation, RevokeInvitation};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// The default validity of an invitation, in days.
pub const USUAL_DAYS: u32 = 7;
/// The longest validity of an invitation, in days.
pub const MAX_DAYS: u32 = 30;

/// The state of an invitation. By default it does not exist yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Invitation {
    offer: Option<Offer>,
    end: Option<End>,
    sent: Option<Sent>,
}

/// The newest mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sent {
    /// The principal that vouches for it.
    by: (ActorType, String),
    /// Its position in the org's stream.
    at: u64,
}

/// The offered role and its recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The only address that can accept.
    pub email: String,
    /// The role on acceptance.
    pub role: Role,
    expires_at: Timestamp,
    token_mac: Fingerprint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Accepted,
    Revoked,
}

impl Invitation {
    /// Returns the offer, once it was issued.
    pub fn offer(&self) -> Option<&Offer> {
        self.offer.as_ref()
    }

    /// Returns the principal that vouches for the offer: the sender of the newest mail.
    pub fn sent_by(&self) -> Option<&(ActorType, String)> {
        self.sent.as_ref().map(|sent| &sent.by)
    }

    /// Returns the position of that mail in the org's stream.
    pub fn sent_at(&self) -> u64 {
        self.sent.as_ref().map_or(0, |sent| sent.at)
    }

    /// Returns the offer if it can still be accepted, expired or not.
    fn open(&self) -> Result<&Offer, InvitationError> {
        match (&self.offer, self.end) {
            (None, _) => Err(InvitationError::NotFound),
            (Some(_), Some(End::Accepted)) => Err(InvitationError::Used),
            (Some(_), Some(End::Revoked)) => Err(InvitationError::Revoked),
            (Some(offer), None) => Ok(offer),
        }
    }
}

/// The commands of an invitation. `by` is the caller's role, `mac` verifies the token.
#[derive(Debug, Clone, PartialEq)]
pub enum InvitationCommand {
    /// Issues the invitation.
    Issue {
        /// The command as received.
        command: IssueInvitation,
        /// The hash of the token that is mailed.
        mac: Fingerprint,
        /// The caller's role.
        by: Role,
        /// The organization's rules for invitations.
        rules: InviteRules,
    },
    /// Sends a new token in place of the previous one.
    Resend {
        /// The command as received.
        command: ResendInvitation,
        /// The hash of the new token.
        mac: Fingerprint,
        /// The caller's role.
        by: Role,
    },
    /// Revokes the invitation.
    Revoke {
        /// The command as received.
        command: RevokeInvitation,
        /// The caller's role.
        by: Role,
    },
    /// Accepts the invitation.
    Accept {
        /// The hash of the token that was presented.
        mac: Fingerprint,
        /// The address that the person's issuer verified.
        email: String,
        /// The id of the new member.
        member_id: MemberId,
        /// Whether the sender could still send it now.
        is_offered: bool,
    },
}

/// The recipients that an organization lets be invited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InviteRules {
    /// The general policy.
    pub policy: InvitePolicy,
    /// The domains of permitted addresses, where the policy restricts them.
    pub allowed_domains: BTreeSet<DomainName>,
    /// Whether the person is a member already.
    pub is_member: bool,
}

impl Aggregate for Invitation {
    type Command = InvitationCommand;
    type Event = InvitationEvent;
    type Error = InvitationError;
    const TYPE: AggregateType = AggregateType::Invitation;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &InvitationEvent) {
        match event {
            InvitationEvent::Issued(InvitationIssued { email, role, expires_at, token_mac }) => {
                let (email, role, expires_at, token_mac) = (email.clone(), *role, *expires_at, *token_mac);
                self.offer = Some(Offer { email, role, expires_at, token_mac });
            }
            InvitationEvent::Resent(event) => {
                if let Some(offer) = &mut self.offer {
                    (offer.expires_at, offer.token_mac) = (event.expires_at, event.token_mac);
                }
            }
            InvitationEvent::Revoked(_) => self.end = Some(End::Revoked),
            InvitationEvent::Accepted(_) => self.end = Some(End::Accepted),
        }
    }

    fn apply_at(&mut self, event: &InvitationEvent, place: Place<'_>) {
        if let InvitationEvent::Issued(_) | InvitationEvent::Resent(_) = event {
            let by = (place.actor.actor_type, place.actor.id.clone());
            self.sent = Some(Sent { by, at: place.seq });
        }
        self.apply(event);
    }

    fn decide(
        &self,
        command: InvitationCommand,
        context: &DecisionContext,
    ) -> Result<Vec<InvitationEvent>, InvitationError> {
        let mut faults = Faults::default();
        let mut end = |days: Option<u32>| {
            let days = days.unwrap_or(USUAL_DAYS);
            if !(1..=MAX_DAYS).contains(&days) {
                faults.add("/expires_in_days", "out_of_range", format!("must be 1 to {MAX_DAYS}"));
            }
            Timestamp::from_unix_ms(context.now.unix_ms() + i64::from(days) * DAY_MS)
        };
        match command {
            InvitationCommand::Issue { command: IssueInvitation { email, role, expires_in_days }, mac, by, rules } => {
                if self.offer.is_some() {
                    return Err(InvitationError::AlreadyExists);
                }
                let expires_at = end(expires_in_days);
                faults.email("/email", &email);
                faults.none_or(InvitationError::Invalid)?;
                within(by, role)?;
                rules.allow(&email)?;
                let issued = InvitationIssued { email, role, expires_at, token_mac: mac };
                Ok(vec![InvitationEvent::Issued(issued)])
            }
            InvitationCommand::Resend { command, mac, by } => {
                within(by, self.open()?.role)?;
                let expires_at = end(command.expires_in_days);
                faults.none_or(InvitationError::Invalid)?;
                Ok(vec![InvitationEvent::Resent(InvitationResent { expires_at, token_mac: mac })])
            }
            InvitationCommand::Revoke { command: RevokeInvitation { reason, .. }, by } => {
                let offer = match self.open() {
                    Err(InvitationError::Revoked) => return Ok(vec![]),
                    other => other?,
                };
                within(by, offer.role)?;
                if let Some(reason) = &reason {
                    faults.reason("/reason", reason);
                }
                faults.none_or(InvitationError::Invalid)?;
                Ok(vec![InvitationEvent::Revoked(InvitationRevoked { reason })])
            }
            InvitationCommand::Accept { mac, email, member_id, is_offered } => {
                // The outcome of an invitation is disclosed only to holders of its token.
                let token_mac = self.offer.as_ref().ok_or(InvitationError::NotFound)?.token_mac;
                if !bool::from(token_mac.0.ct_eq(&mac.0)) {
                    return Err(InvitationError::NotFound);
                }
                let offer = self.open()?;
                if !same_email(&offer.email, &email) {
                    return Err(InvitationError::OtherEmail);
                }
                if offer.expires_at <= context.now {
                    return Err(InvitationError::Expired(offer.expires_at));
                }
                if !is_offered {
                    return Err(InvitationError::Withdrawn);
                }
                Ok(vec![InvitationEvent::Accepted(InvitationAccepted { member_id })])
            }
        }
    }

    fn wrap(event: InvitationEvent) -> Event {
        Event::Invitation(event)
    }

    fn event_of(event: &Event) -> Option<&InvitationEvent> {
        if let Event::Invitation(event) = event { Some(event) } else { None }
    }
}

impl InviteRules {
    fn allow(&self, email: &str) -> Result<(), InvitationError> {
        if self.is_member {
            return Err(InvitationError::AlreadyMember);
        }
        match self.policy {
            InvitePolicy::All => Ok(()),
            InvitePolicy::None => Err(InvitationError::InvitesOff),
            InvitePolicy::Restricted => match DomainName::of_email(email) {
                Some(domain) if self.allowed_domains.contains(&domain) => Ok(()),
                _ => Err(InvitationError::DomainNotAllowed),
            },
        }
    }
}

fn within(by: Role, role: Role) -> Result<(), InvitationError> {
    if by.includes(role) { Ok(()) } else { Err(InvitationError::RoleAboveOwn { by, role }) }
}

/// The reasons why an invitation command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The invitation was issued before.
    #[error("this invitation was issued already; send a new command id to issue another")]
    AlreadyExists,
    /// No such invitation, or not with this token.
    #[error("there is no such invitation; was a newer one sent?")]
    NotFound,
    /// The invitation was accepted.
    #[error("this invitation was accepted already; ask for another one")]
    Used,
    /// The invitation was revoked.
    #[error("this invitation was revoked; ask for another one")]
    Revoked,
    /// The invitation has expired.
    #[error("this invitation ended at {0}; ask for it to be sent again")]
    Expired(Timestamp),
    /// The sender has lost the right to invite.
    #[error("the sender of this invitation may not give this role any more; ask for another one")]
    Withdrawn,
    /// The invitation is for another address.
    #[error("this invitation is for another e-mail address; sign in with the address that it was sent to")]
    OtherEmail,
    /// The person is a member already.
    #[error("a member with this e-mail address exists already; change their role instead")]
    AlreadyMember,
    /// The organization has disabled invitations.
    #[error("this organization sends no invitations (its setting invite_policy)")]
    InvitesOff,
    /// The organization does not permit this address.
    #[error("this organization invites only addresses of its allowed_domains; add the domain there first")]
    DomainNotAllowed,
    /// The role is above the caller's own.
    #[error("a member with role {by} cannot invite with the role {role}, or change such an invitation")]
    RoleAboveOwn {
        /// The caller's role.
        by: Role,
        /// The role in question.
        role: Role,
    },
}

impl From<InvitationError> for Rejection {
    fn from(error: InvitationError) -> Self {
        let (kind, code) = match error {
            InvitationError::Invalid(errors) => return Self::invalid(errors),
            InvitationError::AlreadyExists => (RejectionKind::Conflict, "invitation_exists"),
            InvitationError::NotFound => (RejectionKind::NotFound, "not_found"),
            InvitationError::Used => (RejectionKind::Conflict, "invitation_used"),
            InvitationError::Revoked => (RejectionKind::Conflict, "invitation_revoked"),
            InvitationError::Expired(_) => (RejectionKind::Conflict, "invitation_expired"),
            InvitationError::Withdrawn => (RejectionKind::Conflict, "invitation_withdrawn"),
            InvitationError::OtherEmail => (RejectionKind::Forbidden, "invitation_other_email"),
            InvitationError::AlreadyMember => (RejectionKind::Conflict, "already_member"),
            InvitationError::InvitesOff => (RejectionKind::Forbidden, "invites_off"),
            InvitationError::DomainNotAllowed => (RejectionKind::Forbidden, "domain_not_allowed"),
            InvitationError::RoleAboveOwn { .. } => (RejectionKind::Forbidden, "role_above_own"),
        };
        Self::new(kind, code, error)
    }
}
