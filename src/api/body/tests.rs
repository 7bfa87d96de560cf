use std::collections::BTreeSet;

use orgstream_domain::Command;
use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, Commit, CommitDraft, Event, EventSubject, OrgId, RecordCreated,
    RecordEvent, RecordId, Salt, Shard, Timestamp,
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::body::*;

fn json_faults(body: &str) -> Vec<(String, String)> {
    faults_of(read(body.as_bytes(), Format::Json).unwrap())
}

fn packed_faults(body: &[u8]) -> Vec<(String, String)> {
    faults_of(read(body, Format::MessagePack).unwrap())
}

fn faults_of(reading: Reading) -> Vec<(String, String)> {
    reading.faults.into_iter().map(|fault| (fault.pointer, fault.code.into_owned())).collect()
}

fn one(pointer: &str, code: &str) -> Vec<(String, String)> {
    vec![(pointer.to_owned(), code.to_owned())]
}

#[test]
fn what_would_not_come_back_is_pointed_at_in_json() {
    for (body, pointer, code) in [
        (r#"{"a": {"b": [1, 18446744073709551616]}}"#, "/a/b/1", "inexact_number"),
        (r#"{"a": -9223372036854775809}"#, "/a", "inexact_number"),
        (r#"{"a": 3.14159265358979323846264338327950288}"#, "/a", "inexact_number"),
        (r#"["1e5", 1e-400]"#, "/1", "inexact_number"),
        (r#"{"a": [true, -0.0]}"#, "/a/1", "inexact_number"),
        (r#"{"a": {"b": 1e400}}"#, "/a/b", "inexact_number"),
        (r#"{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}"#, "/b/c", "duplicate_field"),
        (r#"{"a": [{"c": 1, "\u0063": 2}]}"#, "/a/0/c", "duplicate_field"),
        (r#"{"a/b": {"x~": 1, "x~": 1}}"#, "/a~1b/x~0", "duplicate_field"),
        (r#"{"a": ["x\u0000y"]}"#, "/a/0", "nul_character"),
        (r#"{"a": {"x\u0000": 1}}"#, "/a", "nul_character"),
        (r#"{"a": {"b": "\ud800"}}"#, "/a/b", "lone_surrogate"),
        (r#"{"a": {"b": "\udc00\ud800x"}}"#, "/a/b", "lone_surrogate"),
        (r#"{"a": {"$serde_json::private::RawValue": "1"}}"#, "/a/$serde_json::private::RawValue", "reserved_field"),
        (r#"{"z": 1, "$serde_json::private::Number": "1"}"#, "/$serde_json::private::Number", "reserved_field"),
        (r#"{"\u0024serde_json::private::RawValue": "1"}"#, "/$serde_json::private::RawValue", "reserved_field"),
    ] {
        assert_eq!(json_faults(body), one(pointer, code), "{body}");
        let problem = parse_json::<Value>(body.as_bytes()).unwrap_err();
        assert_eq!((problem.status, problem.errors[0].pointer.as_str()), (422, pointer), "{body}");
    }
    let several = json_faults(r#"{"a": -0, "b": {"c": 1, "c": 1e-999}, "d": 1}"#);
    let pointers: BTreeSet<&str> = several.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert_eq!(pointers, ["/a", "/b/c"].into());
}

#[test]
fn what_would_not_come_back_is_pointed_at_in_message_pack() {
    let map = |field: &[u8]| [&[0x81, 0xa1, b'a'][..], field].concat();
    let double = |value: f64| [&[0xcb][..], &value.to_be_bytes()].concat();
    for (body, pointer, code) in [
        (map(&double(f64::NAN)), "/a", "inexact_number"),
        (map(&double(f64::INFINITY)), "/a", "inexact_number"),
        (map(&double(-0.0)), "/a", "inexact_number"),
        (map(&[0xca, 0xff, 0x80, 0, 0]), "/a", "inexact_number"),
        (map(&[0xc4, 1, 0]), "/a", "not_json"),
        (map(&[0xd4, 1, 0]), "/a", "not_json"),
        (map(&[0xd6, 0xff, 0, 0, 0, 0]), "/a", "not_json"),
        (map(&[0xa2, 0xc3, 0x28]), "/a", "not_json"),
        (map(&[0x81, 1, 1]), "/a", "not_json"),
        (map(&[0x81, 0xc4, 1, b'k', 1]), "/a", "not_json"),
        (map(&[0x81, 0xc0, 1]), "/a", "not_json"),
        (map(&[0x81, 0x90, 1]), "/a", "not_json"),
        (map(&[0x81, 0xd4, 1, 0, 1]), "/a", "not_json"),
        (map(&[0x81, 0xa1, 0xff, 1]), "/a", "not_json"),
        (map(&[0xa1, 0]), "/a", "nul_character"),
        (map(&[0x82, 0xa1, b'k', 1, 0xd9, 1, b'k', 1]), "/a/k", "duplicate_field"),
    ] {
        assert_eq!(packed_faults(&body), one(pointer, code), "{body:02x?}");
    }
    // A double is accepted as it is, whatever its text looks like.
    for value in [1e16, 1e-300, 0.1, 1.0, f64::MAX, 5e-324, 1.234_567_890_123_456_7e18] {
        let read = read(&double(value), Format::MessagePack).unwrap().whole().unwrap();
        assert_eq!(read.as_f64().unwrap().to_bits(), value.to_bits());
        assert!(read.is_f64());
    }
}

#[test]
fn what_is_too_deep_is_pointed_at() {
    let deep = format!(r#"{{"x": 1, "a": {{"b": {}1{}}}}}"#, "[".repeat(200), "]".repeat(200));
    // An array of one item, three hundred times.
    let packed = [&[0x81, 0xa1, b'a'][..], &[0x91; 300], &[1]].concat();
    for (faults, begins) in [(json_faults(&deep), "/a/b/0/0/0"), (packed_faults(&packed), "/a/0/0/0")] {
        assert_eq!((faults.len(), faults[0].1.as_str()), (1, "too_deep"), "{faults:?}");
        assert!(faults[0].0.starts_with(begins), "{faults:?}");
    }
    assert_eq!(parse_json::<Value>(deep.as_bytes()).unwrap_err().status, 422);
}

#[test]
fn what_is_no_body_is_a_bad_request() {
    for body in ["", " ", "{", "{} {}", "[1,]", "nul", "01", "\"\\x\"", "{\"a\" 1}"] {
        assert_eq!(parse_json::<Value>(body.as_bytes()).unwrap_err().status, 400, "{body}");
    }
    for body in [&[0xc1][..], &[], &[0x91], &[0x81, 0xa1, b'a', 0xc1], &[1, 1]] {
        assert_eq!(read(body, Format::MessagePack).map(|_| ()).unwrap_err().status, 400, "{body:02x?}");
    }
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Outer {
    name: String,
    #[serde(default)]
    count: Option<u16>,
    #[serde(default)]
    inner: Vec<Inner>,
    #[serde(default)]
    colour: Option<Colour>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Inner {
    on: bool,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Colour {
    Red,
    DarkBlue,
}

#[test]
fn an_array_is_no_object_and_errors_speak_the_words_of_the_api() {
    for (body, pointer, says) in [
        (r#"["space", 1]"#, "", "the body must be an object, not an array"),
        (r#"{"name": "x", "inner": [[true]]}"#, "/inner/0", "must be an object, not an array"),
        (r#"{"name": "x", "inner": {"on": true}}"#, "/inner", "must be an array, not an object"),
        (r#"{"name": "x", "inner": [{"on": 1}]}"#, "/inner/0/on", "must be true or false, not a number"),
        (r#"{"name": 7}"#, "/name", "must be a text, not a number"),
        (r#"{"name": null}"#, "/name", "must be a text, not null"),
        ("{}", "/name", "is missing"),
        (r#"{"name": "x", "count": -1}"#, "/count", "must be a whole number from 0 to 65535, not -1"),
        (r#"{"name": "x", "count": 1.5}"#, "/count", "must be a whole number from 0 to 65535, not 1.5"),
        (r#"{"name": "x", "count": "1"}"#, "/count", "must be a whole number, not a text"),
        (r#"{"name": "x", "colour": "green"}"#, "/colour", "\"green\" is not known here; there are: red, dark_blue"),
        (r#"{"name": "x", "colour": {"red": null}}"#, "/colour", "must be one of red, dark_blue, not an object"),
        (r#"{"name": "x", "size": 1}"#, "/size", "is not known here; there are: name, count, inner, colour"),
        ("\"x\"", "", "the body must be an object, not a text"),
    ] {
        let problem = parse_json::<Outer>(body.as_bytes()).unwrap_err();
        assert_eq!((problem.status, problem.errors[0].pointer.as_str()), (422, pointer), "{body}");
        assert_eq!(problem.errors[0].detail, says, "{body}");
    }
    let good = parse_json::<Outer>(br#"{"colour": "dark_blue", "inner": [{"on": true}], "count": null, "name": "x"}"#);
    let inner = vec![Inner { on: true }];
    assert_eq!(good.unwrap(), Outer { name: "x".to_owned(), count: None, inner, colour: Some(Colour::DarkBlue) });
}

#[derive(Debug, Deserialize, PartialEq)]
struct Parameters {
    limit: Option<u16>,
    archived: Option<bool>,
    colour: Option<Colour>,
    name: Option<String>,
}

#[test]
fn parameters_are_told_apart_and_said_to_be_wrong_by_name() {
    let pairs =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let good = pairs(&[("limit", "7"), ("archived", "true"), ("colour", "red"), ("name", "7")]);
    let expected =
        Parameters { limit: Some(7), archived: Some(true), colour: Some(Colour::Red), name: Some("7".to_owned()) };
    assert_eq!(read_parameters::<Parameters>(good).unwrap(), expected);
    for (bad, name, says) in [
        (&[("limit", "many")][..], "limit", "must be a whole number from 0 to 65535"),
        (&[("limit", "70000")], "limit", "must be a whole number from 0 to 65535"),
        (&[("limit", "")], "limit", "must be a whole number from 0 to 65535"),
        (&[("archived", "yes")], "archived", "must be true or false"),
        (&[("colour", "green")], "colour", "\"green\" is not known here; there are: red, dark_blue"),
        (&[("limit", "1"), ("limit", "2")], "limit", "must come once"),
        (&[("name", "a\0")], "name", "must be a text without the character U+0000"),
    ] {
        let misfit = read_parameters::<Parameters>(pairs(bad)).unwrap_err();
        assert_eq!(misfit.named(), (name, says), "{bad:?}");
    }
}

/// Generates names that hostile or careless clients give a field.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]{1,2}",
        2 => any::<String>(),
        1 => prop::sample::select(vec![
            "$serde_json::private::RawValue", "$serde_json::private::Number", "type", "", "a/b", "~", "\0", "__proto__",
        ]).prop_map(str::to_owned),
    ]
}

/// Generates the text of a number in any of its forms.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_filter("JSON", |number| number.is_finite()).prop_map(|number| json!(number).to_string()),
        "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?",
        prop::sample::select(vec!["-0", "-0.0", "1e16", "18446744073709551616", "1e-400", "1e400", "0.10"])
            .prop_map(str::to_owned),
    ]
}

/// Generates JSON text: escapes, forms of numbers and repeated names are a sender's choice, which a value no longer has.
fn json_text() -> impl Strategy<Value = String> {
    let escaped = any::<String>().prop_map(|text| {
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        format!("\"{units}\"")
    });
    let leaf = prop_oneof![
        4 => number(),
        2 => any::<String>().prop_map(|text| json!(text).to_string()),
        1 => escaped,
        1 => prop::sample::select(vec!["null", "true", "false", "\"\\ud800\"", "\"\\udc00\\ud800\""]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec((name(), inner), 0..6).prop_map(|fields| {
                let fields: Vec<String> =
                    fields.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

/// Generates MessagePack of every kind, with everything that JSON does not have.
fn packed() -> impl Strategy<Value = Vec<u8>> {
    fn long(marker: u8, length: usize, rest: &[u8]) -> Vec<u8> {
        [&[marker][..], &u32::try_from(length).unwrap().to_be_bytes(), rest].concat()
    }
    fn text(text: &str) -> Vec<u8> {
        long(0xdb, text.len(), text.as_bytes())
    }
    let leaf = prop_oneof![
        prop::sample::select(vec![vec![0xc0], vec![0xc2], vec![0xc3], vec![7], vec![0xff], vec![0xcc, 200]]),
        any::<i64>().prop_map(|number| [&[0xd3][..], &number.to_be_bytes()].concat()),
        any::<u64>().prop_map(|number| [&[0xcf][..], &number.to_be_bytes()].concat()),
        any::<f64>().prop_map(|number| [&[0xcb][..], &number.to_be_bytes()].concat()),
        any::<f32>().prop_map(|number| [&[0xca][..], &number.to_be_bytes()].concat()),
        prop::sample::select(vec![f64::NAN, f64::INFINITY, -0.0, 1e16, 1e17]).prop_map(|number| [
            &[0xcb][..],
            &number.to_be_bytes()
        ]
        .concat()),
        name().prop_map(|name| text(&name)),
        prop::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| long(0xdb, bytes.len(), &bytes)),
        prop::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| long(0xc6, bytes.len(), &bytes)),
        prop::collection::vec(any::<u8>(), 1..4).prop_map(|bytes| long(0xc9, bytes.len() - 1, &bytes)),
    ];
    leaf.prop_recursive(4, 30, 5, |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 0..5).prop_map(|items| long(0xdd, items.len(), &items.concat())),
            3 => prop::collection::vec((name().prop_map(|name| text(&name)), inner.clone()), 0..5)
                .prop_map(|fields| long(0xdf, fields.len(), &fields.into_iter().map(|(k, v)| [k, v].concat()).collect::<Vec<_>>().concat())),
            1 => (inner.clone(), inner).prop_map(|(key, value)| long(0xdf, 1, &[key, value].concat())),
        ]
    })
}

/// Returns `data` after a record's round trip: through the command, the event's bytes, and back.
fn kept(data: &Value) -> Value {
    let command = json!({"type": "create_record", "kind": "evaluation", "data": data});
    let Command::CreateRecord(command) = Command::read(command).unwrap() else { panic!() };
    let org = OrgId::fresh(1, [1; 10]);
    let aggregate = AggregateId::Record(RecordId::fresh(1, [2; 10]));
    let event = RecordEvent::Created(RecordCreated {
        kind: command.kind,
        kind_version: 1,
        data: command.data,
        references: vec![],
        unique: Vec::new(),
        searched: vec![],
        secrets: Vec::new(),
    });
    let draft = CommitDraft {
        org,
        aggregate: aggregate.clone(),
        version_before: 0,
        command_id: CommandId::fresh(1, [3; 10]),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: Timestamp::from_unix_ms(0),
        recorded_at: Timestamp::from_unix_ms(0),
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: orgstream_events::Context::default(),
        events: vec![Event::Record(event)],
    };
    let bytes = draft.seal(|| Salt([7; 32])).unwrap().encode().unwrap();
    let subject = EventSubject { shard: Shard(0), org, aggregate };
    let opened = Commit::decode(&bytes).unwrap().open(&subject).unwrap();
    opened.events[0].event.to_json()["data"].clone()
}

/// Returns the value as it is written in an answer and parsed by a client.
fn answered(value: &Value) -> Value {
    read(value.to_string().as_bytes(), Format::Json).unwrap().whole().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn json_that_is_taken_comes_back_as_it_was(text in json_text()) {
        let Ok(value) = read(text.as_bytes(), Format::Json).unwrap().whole() else { return Ok(()) };
        // An independent parser's value of the text is the accepted one.
        prop_assert_eq!(&serde_json::from_str::<Value>(&text).unwrap(), &value);
        prop_assert_eq!(kept(&value).to_string(), value.to_string());
        prop_assert_eq!(answered(&value).to_string(), value.to_string());
    }

    #[test]
    fn message_pack_that_is_taken_comes_back_as_it_was(bytes in packed()) {
        let Ok(value) = read(&bytes, Format::MessagePack).unwrap().whole() else { return Ok(()) };
        prop_assert_eq!(kept(&value).to_string(), value.to_string());
        prop_assert_eq!(answered(&value).to_string(), value.to_string());
        let again = rmp_serde::to_vec_named(&value).unwrap();
        prop_assert_eq!(read(&again, Format::MessagePack).unwrap().whole().unwrap(), value);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes, Format::Json);
        let _ = read(&bytes, Format::MessagePack);
    }
}
