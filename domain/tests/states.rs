//! The states that snapshots have: what every aggregate makes of the golden events, with the number of its shape.
#![cfg(test)]

use std::{fs, path::PathBuf};

use orgstream_domain::{
    Aggregate, Place, account::Account, api_key::ApiKey, catalog_choices::CatalogChoices, catalog_item::CatalogItem,
    deletion::CompletedDeletion, domain::Domain, invitation::Invitation, invoice::Invoices, kind::Kind,
    member::Members, organization::Organization, parking::Parking, plan::Plan, quota::Quota, record::Record,
    record_log::RecordLog, role::CustomRoles, sso_connection::Connections, unique_value::UniqueValue,
};
use orgstream_events::{Commit, OpenedEvent};

/// The golden events of an aggregate, twice, so that each of them comes after each other.
fn events(aggregate: &str) -> Vec<OpenedEvent> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../events/tests/golden");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with(&format!("{aggregate}.")));
    files.sort_unstable();
    let once = files.iter().map(|file| {
        let hex = fs::read_to_string(file).unwrap();
        let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        let bytes: Vec<u8> = hex.trim().as_bytes().chunks(2).map(pair).collect();
        Commit::decode(&bytes).unwrap().events[0].clone().open().unwrap()
    });
    let once: Vec<OpenedEvent> = once.collect();
    assert!(!once.is_empty(), "{aggregate} has no golden events");
    [once.clone(), once].concat()
}

/// One line for each event: the aggregate, its shape, and the state after the event.
fn states<A: Aggregate>() -> String {
    let (mut state, mut lines) = (A::default(), String::new());
    for (seq, opened) in (1..).zip(events(A::TYPE.name())) {
        if let Some(event) = A::event_of(&opened.event) {
            state.apply_at(event, Place { seq, actor: &opened.header.actor, recorded_at: opened.header.recorded_at });
        }
        let json = serde_json::to_string(&state).unwrap();
        lines += &format!("{} {} {} {json}\n", A::TYPE.name(), A::SHAPE, opened.header.event_type);
        // What a snapshot brings back goes on as what was folded does.
        let read: A = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        state = read;
    }
    lines
}

#[test]
fn a_state_that_changed_has_another_shape() {
    let now = [
        states::<Account>(),
        states::<ApiKey>(),
        states::<CatalogChoices>(),
        states::<CatalogItem>(),
        states::<CompletedDeletion>(),
        states::<Connections>(),
        states::<CustomRoles>(),
        states::<Domain>(),
        states::<Invitation>(),
        states::<Invoices>(),
        states::<Kind>(),
        states::<Members>(),
        states::<Organization>(),
        states::<Parking>(),
        states::<Plan>(),
        states::<Quota>(),
        states::<Record>(),
        states::<RecordLog>(),
        states::<UniqueValue>(),
    ]
    .concat();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/states.txt");
    if std::env::var_os("STATES_WRITE").is_some() {
        fs::write(&file, &now).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap();
    for (line, known) in now.lines().zip(known.lines()) {
        let aggregate = line.split(' ').next().unwrap();
        assert_eq!(
            line, known,
            "{aggregate} makes another state of its events: raise its SHAPE, and run this test with STATES_WRITE=1"
        );
    }
    assert_eq!(now.lines().count(), known.lines().count(), "run this test with STATES_WRITE=1 for a new event");
}
