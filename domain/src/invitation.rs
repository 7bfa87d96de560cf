//! One invitation: issued once, then accepted or revoked; until then it can be resent, and it expires.
//!
//! Membership is decided by the roster, so the accepting person is added there in the same atomic append.

use std::collections::BTreeSet;

use orgstream_events::{
    ActorType, AggregateId, AggregateType, DomainName, Event, Fingerprint, InvitationAccepted, InvitationEvent,
    InvitationId, InvitationIssued, InvitationResent, InvitationRevoked, InvitePolicy, MemberId, OrgId, Role,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, HourlyLimit, Permission, Place, Rejection,
    RejectionKind, Requires, Scope,
    credentials::invitation::InvitationToken,
    grants::Grant,
    openapi,
    text::{Faults, same_email},
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// The default validity of an invitation, in days.
pub const USUAL_DAYS: u32 = 7;
/// The longest validity of an invitation, in days.
pub const MAX_DAYS: u32 = 30;

/// The state of an invitation. By default it does not exist yet.
#[derive(Debug, Clone, Default)]
pub struct Invitation {
    offer: Option<Offer>,
    end: Option<End>,
    sent: Option<Sent>,
}

/// The newest mail.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    /// The principal that vouches for it.
    by: (ActorType, String),
    /// Its position in the org's stream.
    at: u64,
}

/// The offered role and its recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The only address that can accept.
    pub email: String,
    /// The role on acceptance.
    pub role: Role,
    expires_at: Timestamp,
    token_mac: Fingerprint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// A way in for one person. They get a mail with a token, which nobody else is shown.
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

/// Ends an invitation that nobody has accepted yet.
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

impl Aggregate for Invitation {
    type Command = InvitationCommand;
    type Event = InvitationEvent;
    type Error = InvitationError;
    const TYPE: AggregateType = AggregateType::Invitation;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{context, fields, given, rejection};

    const MAC: Fingerprint = Fingerprint([7; 32]);

    fn issue(role: Role, by: Role, days: Option<u32>, rules: InviteRules) -> InvitationCommand {
        let command = IssueInvitation { email: "Ann@Acme.example".to_owned(), role, expires_in_days: days };
        InvitationCommand::Issue { command, mac: MAC, by, rules }
    }

    fn in_days(days: i64) -> Timestamp {
        Timestamp::from_unix_ms(context().now.unix_ms() + days * DAY_MS)
    }

    fn issued(ends: Timestamp) -> InvitationEvent {
        InvitationEvent::Issued(InvitationIssued {
            email: "Ann@Acme.example".to_owned(),
            role: Role::Member,
            expires_at: ends,
            token_mac: MAC,
        })
    }

    fn accept(mac: Fingerprint, email: &str) -> InvitationCommand {
        let member_id = MemberId::derive(context().command_id);
        InvitationCommand::Accept { mac, email: email.to_owned(), member_id, is_offered: true }
    }

    fn id() -> InvitationId {
        InvitationId::fresh(1, [1; 10])
    }

    fn revoke(by: Role) -> InvitationCommand {
        InvitationCommand::Revoke { command: RevokeInvitation { id: id(), reason: None }, by }
    }

    fn resend(mac: Fingerprint) -> InvitationCommand {
        InvitationCommand::Resend {
            command: ResendInvitation { id: id(), expires_in_days: None },
            mac,
            by: Role::Admin,
        }
    }

    fn revoked() -> InvitationEvent {
        InvitationEvent::Revoked(InvitationRevoked { reason: None })
    }

    fn accepted() -> InvitationEvent {
        InvitationEvent::Accepted(InvitationAccepted { member_id: MemberId::derive(context().command_id) })
    }

    #[test]
    fn an_invitation_ends_after_a_week_unless_said_otherwise() {
        let invitation = given::<Invitation>(&[]);
        let usual = invitation.when(issue(Role::Member, Role::Admin, None, InviteRules::default()));
        assert_eq!(usual, Ok(vec![issued(in_days(7))]));
        let longest = invitation.when(issue(Role::Member, Role::Admin, Some(30), InviteRules::default()));
        assert_eq!(longest, Ok(vec![issued(in_days(30))]));
        for days in [0, 31] {
            let bad = invitation.when(issue(Role::Member, Role::Admin, Some(days), InviteRules::default()));
            assert_eq!(fields(bad), [("/expires_in_days".to_owned(), "out_of_range".to_owned())]);
        }
    }

    #[test]
    fn nobody_invites_above_their_own_role() {
        let refused = given::<Invitation>(&[]).when(issue(Role::Owner, Role::Admin, None, InviteRules::default()));
        assert_eq!(rejection(refused).code, "role_above_own");
    }

    #[test]
    fn an_organization_says_who_may_be_invited() {
        let rules = |policy, domains: &[&str]| InviteRules {
            policy,
            allowed_domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
            is_member: false,
        };
        let code = |rules| {
            let decided = given::<Invitation>(&[]).when(issue(Role::Member, Role::Owner, None, rules));
            decided.map_or_else(|error| Rejection::from(error).code, |_| "invited")
        };
        assert_eq!(code(rules(InvitePolicy::None, &["acme.example"])), "invites_off");
        assert_eq!(code(rules(InvitePolicy::Restricted, &["globex.example"])), "domain_not_allowed");
        assert_eq!(code(rules(InvitePolicy::Restricted, &["acme.example"])), "invited");
        assert_eq!(code(InviteRules { is_member: true, ..InviteRules::default() }), "already_member");
    }

    #[test]
    fn the_address_counts_whatever_the_case_of_its_letters() {
        let invitation = given::<Invitation>(&[issued(in_days(1))]);
        assert_eq!(invitation.when(accept(MAC, "ANN@acme.example")), Ok(vec![accepted()]));
        assert_eq!(invitation.when(accept(MAC, "bob@acme.example")), Err(InvitationError::OtherEmail));
    }

    #[test]
    fn nothing_but_the_letters_of_ascii_has_a_case() {
        // Unicode case folding turns a kelvin sign into a k, which is another mailbox.
        let kim = |email: &str| {
            InvitationEvent::Issued(InvitationIssued {
                email: email.to_owned(),
                role: Role::Member,
                expires_at: in_days(1),
                token_mac: MAC,
            })
        };
        let invitation = given::<Invitation>(&[kim("kim@acme.example")]);
        let stranger = invitation.when(accept(MAC, "\u{212a}im@acme.example"));
        assert_eq!(stranger, Err(InvitationError::OtherEmail));
        assert!(invitation.when(accept(MAC, "KIM@acme.example")).is_ok());
    }

    #[test]
    fn an_invitation_ends_with_the_say_of_whoever_sent_it() {
        let InvitationCommand::Accept { mac, email, member_id, .. } = accept(MAC, "ann@acme.example") else {
            unreachable!()
        };
        let withdrawn = InvitationCommand::Accept { mac, email, member_id, is_offered: false };
        let refused = given::<Invitation>(&[issued(in_days(1))]).when(withdrawn);
        assert_eq!(rejection(refused).code, "invitation_withdrawn");
    }

    #[test]
    fn each_way_to_be_too_late_has_its_own_code() {
        let code = |events: &[InvitationEvent]| {
            rejection(given::<Invitation>(events).when(accept(MAC, "ann@acme.example"))).code
        };
        assert_eq!(code(&[issued(in_days(0))]), "invitation_expired");
        assert_eq!(code(&[issued(in_days(1)), revoked()]), "invitation_revoked");
        assert_eq!(code(&[issued(in_days(1)), accepted()]), "invitation_used");
        assert_eq!(code(&[]), "not_found");
    }

    #[test]
    fn without_its_token_nothing_is_told() {
        let refused = given::<Invitation>(&[issued(in_days(1)), accepted()])
            .when(accept(Fingerprint([8; 32]), "ann@acme.example"));
        assert_eq!(refused, Err(InvitationError::NotFound));
    }

    #[test]
    fn a_new_mail_makes_the_old_token_void_and_the_time_new() {
        let new = Fingerprint([9; 32]);
        let old = given::<Invitation>(&[issued(in_days(-1))]);
        let resent = InvitationEvent::Resent(InvitationResent { expires_at: in_days(7), token_mac: new });
        assert_eq!(old.when(resend(new)), Ok(vec![resent.clone()]));
        let again = given::<Invitation>(&[issued(in_days(-1)), resent]);
        assert_eq!(again.when(accept(MAC, "ann@acme.example")), Err(InvitationError::NotFound));
        assert!(again.when(accept(new, "ann@acme.example")).is_ok());
        assert_eq!(
            given::<Invitation>(&[issued(in_days(1)), accepted()]).when(resend(new)),
            Err(InvitationError::Used)
        );
    }

    #[test]
    fn what_was_revoked_stays_revoked_and_what_was_accepted_accepted() {
        let open = given::<Invitation>(&[issued(in_days(1))]);
        assert_eq!(open.when(revoke(Role::Admin)), Ok(vec![revoked()]));
        assert_eq!(rejection(open.when(revoke(Role::Viewer))).code, "role_above_own");
        assert_eq!(given::<Invitation>(&[issued(in_days(1)), revoked()]).when(revoke(Role::Admin)), Ok(vec![]));
        let used = given::<Invitation>(&[issued(in_days(1)), accepted()]);
        assert_eq!(used.when(revoke(Role::Admin)), Err(InvitationError::Used));
    }
}
