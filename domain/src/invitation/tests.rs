//! What the commands of an invitation do, and what is refused.

use orgstream_events::InvitationId;

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
    InvitationCommand::Resend { command: ResendInvitation { id: id(), expires_in_days: None }, mac, by: Role::Admin }
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
    let code =
        |events: &[InvitationEvent]| rejection(given::<Invitation>(events).when(accept(MAC, "ann@acme.example"))).code;
    assert_eq!(code(&[issued(in_days(0))]), "invitation_expired");
    assert_eq!(code(&[issued(in_days(1)), revoked()]), "invitation_revoked");
    assert_eq!(code(&[issued(in_days(1)), accepted()]), "invitation_used");
    assert_eq!(code(&[]), "not_found");
}

#[test]
fn without_its_token_nothing_is_told() {
    let refused =
        given::<Invitation>(&[issued(in_days(1)), accepted()]).when(accept(Fingerprint([8; 32]), "ann@acme.example"));
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
    assert_eq!(given::<Invitation>(&[issued(in_days(1)), accepted()]).when(resend(new)), Err(InvitationError::Used));
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
