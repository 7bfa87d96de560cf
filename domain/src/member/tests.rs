//! What the commands of the members do, and what is refused.

use orgstream_events::{Actor, ActorType, Timestamp};

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
    MemberCommand::Add {
        command: AddMember { email: email.to_owned(), user_id: None, role },
        by,
        voucher: None,
        quota: None,
    }
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
    let events = given::<Members>(&[added(1, Role::Owner)]).when(add("Bob@Acme.example", Role::Member, Role::Owner));
    let Ok([MemberEvent::Added(event)]) = events.as_deref() else { panic!("{events:?}") };
    assert_eq!(event.user_id, user_of_email("bob@acme.example"));
    assert_eq!(event.email, "Bob@Acme.example");
}

#[test]
fn nobody_is_a_member_twice() {
    let MemberEvent::Added(one) = added(1, Role::Owner) else { unreachable!() };
    let command = AddMember { email: "other@acme.example".to_owned(), user_id: Some(one.user_id), role: Role::Viewer };
    let again = MemberCommand::Add { command, by: Role::Owner, voucher: None, quota: None };
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
        quota: None,
    };
    assert_eq!(rejection(roster.when(join("1", "other@acme.example"))).code, "already_member");
    assert_eq!(rejection(roster.when(join("2", "m1@acme.example"))).code, "email_taken");
    let joined = roster.when(join("2", "m2@acme.example"));
    assert!(matches!(joined.as_deref(), Ok([MemberEvent::Added(added)]) if added.role == Role::Admin));
}

#[test]
fn whoever_was_removed_does_not_come_back_by_signing_in() {
    let MemberEvent::Added(two) = added(2, Role::Member) else { unreachable!() };
    let join =
        |closed| MemberCommand::Provision { user_id: two.user_id, email: two.email.clone(), closed, quota: None };
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
        quota: None,
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
        roster.apply_at(event, Place { seq: 10 * (seq as u64 + 1), actor: &actor, recorded_at: Timestamp::default() });
    }
    let other = UserId::from_login("https://another-issuer.example", "two");
    let signs_in = |user_id, email: &str| {
        roster.decide(
            MemberCommand::Provision { user_id, email: email.to_owned(), closed: None, quota: None },
            &context(),
        )
    };
    assert_eq!(signs_in(other, "M2@ACME.example"), Err(MemberError::WasRemoved));
    assert_eq!(signs_in(two.user_id, "new@acme.example"), Err(MemberError::WasRemoved));
    assert!(signs_in(other, "new@acme.example").is_ok());
    let accepts = |user_id, email: &str, sent| {
        let join = MemberCommand::Join {
            user_id,
            email: email.to_owned(),
            role: Role::Admin,
            sent,
            voucher: None,
            quota: None,
        };
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
        let add = MemberCommand::Add { command, by: Role::Admin, voucher: Some(id(by)), quota: None };
        let user_id = user_of_email(email);
        let join = MemberCommand::Join {
            user_id,
            email: email.to_owned(),
            role: Role::Admin,
            sent: 9,
            voucher: Some(id(by)),
            quota: None,
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
    assert_eq!(roster.when(remove(1, Role::Owner)), Ok(vec![MemberEvent::Removed(MemberRemoved { member_id: id(1) })]));
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
    assert_eq!(rejection(given::<Members>(&[added(1, Role::Owner)]).when(remove(9, Role::Owner))).code, "not_found");
}

#[test]
fn a_bad_email_is_pointed_at() {
    let bad = add("not an address", Role::Viewer, Role::Owner);
    assert_eq!(fields(given::<Members>(&[]).when(bad)), [("/email".to_owned(), "email".to_owned())]);
}

#[test]
fn no_door_leads_past_the_quota_and_a_smaller_one_removes_nobody() {
    let roster = given::<Members>(&[added(1, Role::Owner), added(2, Role::Member), added(3, Role::Member)]);
    let limit = |most| QuotaLimit { most, source: crate::plan::LimitSource::Plan, plan: "trial".parse().unwrap() };
    let (user_id, email) = (user_of_email("new@acme.example"), || "new@acme.example".to_owned());
    let doors = |most: u64| {
        let quota = Some(limit(most));
        [
            MemberCommand::Add {
                command: AddMember { email: email(), user_id: None, role: Role::Viewer },
                by: Role::Owner,
                voucher: None,
                quota: quota.clone(),
            },
            MemberCommand::Join {
                user_id,
                email: email(),
                role: Role::Viewer,
                sent: 9,
                voucher: None,
                quota: quota.clone(),
            },
            MemberCommand::Provision { user_id, email: email(), closed: None, quota },
        ]
    };
    for most in [2, 3] {
        for door in doors(most) {
            let refused = rejection(roster.when(door));
            assert_eq!((refused.code, refused.kind.status()), ("members_quota_exceeded", 409));
            assert!(refused.detail.contains("has 3 members") && refused.detail.contains("remove a member"));
        }
    }
    for door in doors(4) {
        assert_eq!(roster.when(door).map(|events| events.len()), Ok(1));
    }
    assert!(roster.when(change(2, Role::Admin, Role::Owner)).is_ok());
}
