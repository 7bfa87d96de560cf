//! What the commands of a key do, and what is refused.

use orgstream_events::{Actor, KeyEnvironment, KeyId};
use serde_json::json;

use super::*;
use crate::testing::{context, fields, given, rejection};

fn token() -> TokenParts {
    let public_id = "AbCdEf012345".parse().unwrap();
    TokenParts { public_id, secret_mac: Fingerprint([7; 32]), last4: "wxyz".to_owned() }
}

fn issue(fields: &serde_json::Value, max_days: Option<u32>) -> ApiKeyCommand {
    let mut json = json!({"name": "ci", "role": "member"});
    for (name, value) in fields.as_object().unwrap() {
        json[name] = value.clone();
    }
    let command = serde_json::from_value(json).unwrap();
    ApiKeyCommand::Issue { command, token: token(), inherited: None, creator: None, max_days }
}

fn issued(expires_at: Option<Timestamp>) -> ApiKeyEvent {
    let TokenParts { public_id, secret_mac, last4 } = token();
    let (name, role) = ("ci".to_owned(), Role::Member);
    ApiKeyEvent::Issued(ApiKeyIssued {
        name,
        public_id,
        secret_mac,
        last4,
        role,
        environment: KeyEnvironment::Live,
        expires_at,
        scopes: None,
        allowed_ips: Vec::new(),
        creator: None,
    })
}

fn rotate(overlap_seconds: u32, expires_in_days: Option<u32>) -> ApiKeyCommand {
    let id = KeyId::fresh(1, [1; 10]);
    let command = RotateApiKey { id, overlap_seconds, expires_at: None, expires_in_days };
    ApiKeyCommand::Rotate { command, token: token(), max_days: Some(90) }
}

fn rotated(overlap_seconds: i64, expires_at: Option<Timestamp>) -> ApiKeyEvent {
    let TokenParts { public_id, secret_mac, last4 } = token();
    let previous_ends_at = Timestamp::from_unix_ms(context().now.unix_ms() + overlap_seconds * 1000);
    ApiKeyEvent::Rotated(ApiKeyRotated { public_id, secret_mac, last4, previous_ends_at, expires_at })
}

fn revoke() -> ApiKeyCommand {
    ApiKeyCommand::Revoke(RevokeApiKey { id: KeyId::fresh(1, [1; 10]), reason: Some("leaked".to_owned()) })
}

fn in_days(days: i64) -> Timestamp {
    Timestamp::from_unix_ms(context().now.unix_ms() + days * DAY_MS)
}

#[test]
fn a_key_keeps_what_recognizes_its_secret() {
    assert_eq!(given::<ApiKey>(&[]).when(issue(&json!({}), None)), Ok(vec![issued(None)]));
}

#[test]
fn a_key_lives_as_long_as_the_organization_allows_unless_said_otherwise() {
    let key = given::<ApiKey>(&[]);
    assert_eq!(key.when(issue(&json!({}), Some(90))), Ok(vec![issued(Some(in_days(90)))]));
    let shorter = issue(&json!({"expires_in_days": 7}), Some(90));
    assert_eq!(key.when(shorter), Ok(vec![issued(Some(in_days(7)))]));
    let exact = issue(&json!({"expires_at": in_days(90)}), Some(90));
    assert_eq!(key.when(exact), Ok(vec![issued(Some(in_days(90)))]));
}

#[test]
fn a_key_cannot_outlive_what_the_organization_allows() {
    let later = issue(&json!({"expires_in_days": 91}), Some(90));
    let found = fields(given::<ApiKey>(&[]).when(later));
    assert_eq!(found, [("/expires_in_days".to_owned(), "too_late".to_owned())]);
}

#[test]
fn a_life_that_makes_no_sense_is_refused() {
    for (json, code) in [
        (json!({"expires_in_days": 0}), "out_of_range"),
        (json!({"expires_in_days": 3651}), "out_of_range"),
        (json!({"expires_at": in_days(0)}), "in_the_past"),
        (json!({"expires_at": in_days(1), "expires_in_days": 1}), "ambiguous"),
    ] {
        assert_eq!(fields(given::<ApiKey>(&[]).when(issue(&json, None)))[0].1, code);
    }
}

#[test]
fn a_key_is_issued_once() {
    let again = given::<ApiKey>(&[issued(None)]).when(issue(&json!({}), None));
    assert_eq!(rejection(again).code, "api_key_exists");
}

#[test]
fn a_revoked_key_stays_revoked() {
    let revoked = ApiKeyEvent::Revoked(ApiKeyRevoked { reason: Some("leaked".to_owned()) });
    assert_eq!(given::<ApiKey>(&[issued(None)]).when(revoke()), Ok(vec![revoked.clone()]));
    assert_eq!(given::<ApiKey>(&[issued(None), revoked]).when(revoke()), Ok(vec![]));
}

#[test]
fn a_key_that_does_not_exist_cannot_be_revoked() {
    assert_eq!(rejection(given::<ApiKey>(&[]).when(revoke())).kind, RejectionKind::NotFound);
}

#[test]
fn a_rotated_key_keeps_its_end_unless_said_otherwise() {
    let key = given::<ApiKey>(&[issued(Some(in_days(7)))]);
    assert_eq!(key.when(rotate(60, None)), Ok(vec![rotated(60, Some(in_days(7)))]));
    assert_eq!(key.when(rotate(0, Some(30))), Ok(vec![rotated(0, Some(in_days(30)))]));
    let found = fields(key.when(rotate(604_801, Some(91))));
    assert_eq!(found[0], ("/overlap_seconds".to_owned(), "out_of_range".to_owned()));
    assert_eq!(found[1], ("/expires_in_days".to_owned(), "too_late".to_owned()));
}

#[test]
fn a_key_that_has_ended_is_not_rotated() {
    let revoked = ApiKeyEvent::Revoked(ApiKeyRevoked { reason: None });
    for history in
        [vec![issued(None), revoked], vec![issued(Some(in_days(0)))], vec![issued(None), rotated(0, Some(in_days(-1)))]]
    {
        assert_eq!(rejection(given::<ApiKey>(&history).when(rotate(0, None))).code, "api_key_ended");
    }
    assert_eq!(rejection(given::<ApiKey>(&[]).when(rotate(0, None))).code, "not_found");
}

#[test]
fn without_scopes_a_key_gets_those_of_whoever_issues_it() {
    let inherited = Some(vec!["api_keys:manage".to_owned(), "records:read".to_owned()]);
    let ApiKeyCommand::Issue { command, token, max_days, .. } = issue(&json!({"role": "admin"}), None) else {
        unreachable!()
    };
    let issue = ApiKeyCommand::Issue { command, token, inherited: inherited.clone(), creator: None, max_days };
    match given::<ApiKey>(&[]).when(issue).unwrap().remove(0) {
        ApiKeyEvent::Issued(issued) => assert_eq!(issued.scopes, inherited),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_knows_on_whose_word_it_is_and_which_of_its_tokens_count() {
    let ann = MemberId::fresh(1, [3; 10]);
    let by = |actor_type, id: String| Actor { actor_type, id, auth: None };
    let of_a_key = match issue(&json!({}), None) {
        ApiKeyCommand::Issue { command, token, inherited, max_days, .. } => {
            ApiKeyCommand::Issue { command, token, inherited, creator: Some(ann), max_days }
        }
        other => panic!("{other:?}"),
    };
    let of_a_key = given::<ApiKey>(&[]).when(of_a_key).unwrap().remove(0);
    for (event, actor) in [
        (issued(None), by(ActorType::Member, ann.to_string())),
        (of_a_key, by(ActorType::ApiKey, KeyId::fresh(1, [4; 10]).to_string())),
    ] {
        let mut key = ApiKey::default();
        key.apply_at(&event, Place { seq: 1, actor: &actor, recorded_at: Timestamp::default() });
        assert_eq!(key.creator(), Some(ann), "{actor:?}");
    }
    let public_ids = ["AbCdEf012345", "GhIjKl012345", "MnOpQr012345"].map(|text| text.parse().unwrap());
    let [first, second, third]: &[KeyPublicId; 3] = &public_ids;
    let rotated = |public_id: &KeyPublicId, ends| {
        let (secret_mac, last4) = (Fingerprint([7; 32]), "wxyz".to_owned());
        let previous_ends_at = Timestamp::from_unix_ms(ends);
        ApiKeyEvent::Rotated(ApiKeyRotated {
            public_id: public_id.clone(),
            secret_mac,
            last4,
            previous_ends_at,
            expires_at: None,
        })
    };
    let key = given::<ApiKey>(&[issued(None), rotated(second, 10), rotated(third, 20)]).0;
    let ends = |public_id| key.token_ends_at(public_id).map(Timestamp::unix_ms);
    assert_eq!((ends(first), ends(second), ends(third)), (Some(0), Some(20), None));
}

#[test]
fn scopes_and_networks_are_what_they_say() {
    let wrong =
        issue(&json!({"scopes": ["records:eat", "members:manage"], "allowed_ips": ["here", "10.1.2.3/8"]}), None);
    let found = fields(given::<ApiKey>(&[]).when(wrong));
    let expected = [("/allowed_ips/0", "network"), ("/scopes/0", "unknown_value"), ("/scopes/1", "not_in_role")];
    assert_eq!(found, expected.map(|(pointer, code)| (pointer.to_owned(), code.to_owned())));
    let right = issue(&json!({"allowed_ips": ["10.1.2.3/8", "2001:db8::1"]}), None);
    match given::<ApiKey>(&[]).when(right).unwrap().remove(0) {
        ApiKeyEvent::Issued(issued) => assert_eq!(issued.allowed_ips, ["10.0.0.0/8", "2001:db8::1/128"]),
        other => panic!("{other:?}"),
    }
}
