//! The bodies of producers: one command or many, as JSON or MessagePack, with or without an envelope around each.
//!
//! HTTP and NATS both parse bodies here, so that the same bytes mean the same by either protocol.

use orgstream_domain::{Command, FieldError, shaped};
use orgstream_events::{CorrelationId, EventId, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::body::{Reading, read, refused};
use crate::{
    app::{
        problem::Problem,
        submit::{Gateway, MAX_BATCH, Origin},
    },
    auth::Access,
    commands::{
        record_secrets::NewSecrets,
        request::{Accepted, Request},
    },
};

/// The largest body, in bytes.
pub const MAX_BODY: usize = 1 << 20;

pub use super::body::{Format, parse_json};

impl Format {
    /// Parses the format in a `Content-Type`. Both formats have one charset, which may be named and not be another.
    pub fn from_content_type(content_type: &str) -> Result<Self, Problem> {
        let mut parts = content_type.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default();
        let charsets = parts
            .filter_map(|part| part.split_once('='))
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
        for (_, charset) in charsets {
            let charset = charset.trim().trim_matches('"');
            if !["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known)) {
                return Err(Problem::unsupported(
                    "a body is UTF-8: send it as that, and leave charset out or say utf-8",
                ));
            }
        }
        if essence.eq_ignore_ascii_case("application/json") {
            Ok(Self::Json)
        } else if ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"]
            .iter()
            .any(|name| essence.eq_ignore_ascii_case(name))
        {
            Ok(Self::MessagePack)
        } else {
            Err(Problem::unsupported(
                "send application/json, or application/msgpack where commands are taken, and say so in Content-Type",
            ))
        }
    }
}

/// Returns the answer to a body over [`MAX_BODY`].
pub fn body_too_large() -> Problem {
    Problem::too_large(format!("the body is over the limit of {MAX_BODY} bytes (1 MiB)"))
}

/// A command with what may be said around it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandEnvelope {
    /// Command to carry out; `type` names it.
    #[schema(value_type = Command)]
    pub command: Value,
    /// Key of the caller for retries, 1 to 255 visible characters: a command sent again under it has no second effect and the
    /// same answer.
    #[schema(example = "import-7/line-12")]
    pub idempotency_key: Option<String>,
    /// Version that the caller saw; the command is refused at any other (`version_conflict`).
    pub expected_version: Option<u64>,
    /// Time of the occurrence, RFC 3339; now by default, at most 5 minutes in the future.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub occurred_at: Option<Timestamp>,
    /// Event that caused the command (`evt_` and 26 characters).
    #[schema(value_type = Option<String>, example = "evt_01h455vb4pex5vsknk084sn02q")]
    pub causation_id: Option<EventId>,
    /// Id of the larger piece of work (`cor_` and 26 characters).
    #[schema(value_type = Option<String>, example = "cor_01h455vb4pex5vsknk084sn02q")]
    pub correlation_id: Option<CorrelationId>,
}

/// The commands of a body. A command that cannot be parsed is its own refusal; the others are carried out.
#[derive(Debug)]
pub enum Submission {
    /// One command.
    One(Box<Request>),
    /// Several, each with its own outcome.
    Many(Vec<Result<Request, Problem>>),
}

impl Submission {
    /// Parses a body. `key` is the idempotency key that came beside it; of several commands each gets a part of it.
    pub fn read(body: &[u8], format: Format, key: Option<&str>) -> Result<Self, Problem> {
        let Reading { value, faults } = read(body, format)?;
        match value {
            Some(Value::Array(items)) => Self::many(items, faults, key).map(Self::Many),
            Some(one) => {
                let mut request = read_command(one, faults)?;
                match (key, &request.idempotency_key) {
                    (Some(outside), Some(inside)) if outside != inside => {
                        return Err(Problem::bad_request("the header Idempotency-Key and `idempotency_key` differ"));
                    }
                    (Some(outside), _) => request.idempotency_key = Some(outside.to_owned()),
                    (None, _) => {}
                }
                Ok(Self::One(Box::new(request)))
            }
            None => Err(refused(inside_command(faults))),
        }
    }

    fn many(
        items: Vec<Value>,
        faults: Vec<FieldError>,
        key: Option<&str>,
    ) -> Result<Vec<Result<Request, Problem>>, Problem> {
        if items.is_empty() {
            return Err(Problem::bad_request("an array of commands must not be empty"));
        }
        if items.len() > MAX_BATCH {
            let count = items.len();
            return Err(Problem::too_large(format!(
                "{count} commands are over the limit of {MAX_BATCH} in one request"
            )));
        }
        let mut faults_of: Vec<Vec<FieldError>> = items.iter().map(|_| Vec::new()).collect();
        for fault in faults {
            // A command reports its own faults, as if it had come alone.
            let (item, pointer) = fault.pointer.strip_prefix('/').and_then(|path| path.split_once('/')).map_or_else(
                || (fault.pointer.trim_start_matches('/'), String::new()),
                |(item, rest)| (item, format!("/{rest}")),
            );
            if let Some(faults) = item.parse::<usize>().ok().and_then(|item| faults_of.get_mut(item)) {
                faults.push(FieldError { pointer, ..fault.clone() });
            }
        }
        let mut requests: Vec<Result<Request, Problem>> =
            items.into_iter().zip(faults_of).map(|(item, faults)| read_command(item, faults)).collect();
        for (index, request) in requests.iter_mut().enumerate() {
            if let Ok(request) = request
                && request.idempotency_key.is_none()
            {
                let Some(key) = key else {
                    return Err(Problem::new(
                        400,
                        "idempotency_key_missing",
                        "Idempotency key missing",
                        format!(
                            "several commands at once need the header Idempotency-Key, or `idempotency_key` in each; \
                             command {index} has none"
                        ),
                    ));
                };
                request.idempotency_key = Some(format!("{key}/{index}"));
            }
        }
        Ok(requests)
    }
}

/// Carries out the parsed commands; every outcome is at the index of its command.
pub async fn carry_out(
    gateway: &Gateway,
    access: &Access,
    origin: &Origin,
    requests: Vec<Result<Request, Problem>>,
) -> Vec<Result<Accepted, Problem>> {
    let mut readable = Vec::with_capacity(requests.len());
    let mut outcomes: Vec<Option<Problem>> = Vec::with_capacity(requests.len());
    for request in requests {
        outcomes.push(match request {
            Ok(request) => {
                readable.push(request);
                None
            }
            Err(problem) => Some(problem),
        });
    }
    let mut carried_out = gateway.submit_all(access, origin, readable).await.into_iter();
    outcomes
        .into_iter()
        .map(|refused| match refused {
            Some(problem) => Err(problem),
            None => carried_out.next().unwrap_or_else(|| Err(Problem::internal("a command was not answered"))),
        })
        .collect()
}

/// Parses an idempotency key: 1 to 255 visible ASCII characters, bare or quoted.
pub fn idempotency_key(text: &str) -> Result<String, Problem> {
    let quoted = text.len() >= 2 && text.starts_with('"') && text.ends_with('"');
    let key = if quoted { text.get(1..text.len() - 1).unwrap_or_default() } else { text };
    // A structured-field string could escape quotes; a key that has any is more likely two keys gone wrong.
    let visible = key.bytes().all(|byte| (0x21..=0x7e).contains(&byte) && byte != b'"' && byte != b'\\');
    if visible && (1..=255).contains(&key.len()) {
        Ok(key.to_owned())
    } else {
        let detail = "an idempotency key has 1 to 255 visible ASCII characters without quotes and backslashes";
        Err(Problem::new(400, "invalid_header", "Invalid header", format!("Idempotency-Key: {detail}")))
    }
}

/// Returns the caller's own id of a request, if it is valid; otherwise a new one.
pub fn request_id(given: Option<&str>) -> String {
    let given = given.filter(|id| {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
        (1..=128).contains(&id.len()) && id.bytes().all(safe)
    });
    given.map_or_else(|| format!("req_{}", Uuid::now_v7().simple()), str::to_owned)
}

/// Moves pointers into the command, whatever is around it: a command has no field `command`.
fn inside_command(mut faults: Vec<FieldError>) -> Vec<FieldError> {
    for fault in &mut faults {
        if let Some(inside) = fault.pointer.strip_prefix("/command/") {
            fault.pointer = format!("/{inside}");
        }
    }
    faults
}

fn read_command(value: Value, faults: Vec<FieldError>) -> Result<Request, Problem> {
    let Value::Object(fields) = &value else {
        return Err(Problem::bad_request("a command is a JSON object whose `type` says which command it is"));
    };
    let in_envelope = fields.contains_key("command");
    if !faults.is_empty() {
        return Err(refused(inside_command(faults)));
    }
    if !in_envelope {
        return Ok(Command::read(value)?.into());
    }
    let envelope: CommandEnvelope = shaped(value)?;
    let command = Command::read(envelope.command)?;
    let key = envelope.idempotency_key.as_deref().map(idempotency_key).transpose()?;
    Ok(Request {
        idempotency_key: key,
        expected_version: envelope.expected_version,
        occurred_at: envelope.occurred_at,
        causation_id: envelope.causation_id,
        correlation_id: envelope.correlation_id,
        secrets: NewSecrets::default(),
        ..command.into()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value, key: Option<&str>) -> Result<Submission, Problem> {
        Submission::read(value.to_string().as_bytes(), Format::Json, key)
    }

    fn record() -> Value {
        json!({"type": "create_record", "kind": "evaluation", "data": {"score": 1}})
    }

    #[test]
    fn a_command_may_come_bare_or_in_an_envelope() {
        let Submission::One(bare) = read(&record(), Some("k")).unwrap() else { panic!() };
        assert_eq!(bare.idempotency_key.as_deref(), Some("k"));
        let envelope = json!({"command": record(), "idempotency_key": "k", "expected_version": 3});
        let Submission::One(wrapped) = read(&envelope, None).unwrap() else { panic!() };
        assert_eq!((wrapped.idempotency_key.as_deref(), wrapped.expected_version), (Some("k"), Some(3)));
        assert_eq!(wrapped.command, bare.command);
        assert_eq!(read(&envelope, Some("other")).unwrap_err().code, "bad_request");
    }

    #[test]
    fn many_commands_share_a_key_or_bring_their_own() {
        let Submission::Many(items) = read(&json!([record(), record()]), Some("k")).unwrap() else { panic!() };
        let keys: Vec<_> = items.into_iter().map(|item| item.unwrap().idempotency_key.unwrap()).collect();
        assert_eq!(keys, ["k/0", "k/1"]);
        assert_eq!(read(&json!([record()]), None).unwrap_err().code, "idempotency_key_missing");
        assert!(read(&json!([{"command": record(), "idempotency_key": "mine"}]), None).is_ok());
    }

    #[test]
    fn the_limit_is_named() {
        let error = read(&Value::Array(vec![record(); 1_001]), Some("k")).unwrap_err();
        assert_eq!((error.status, error.code), (413, "payload_too_large"));
        assert!(error.detail.contains("1000"), "{}", error.detail);
        assert_eq!(read(&json!([]), Some("k")).unwrap_err().status, 400);
    }

    #[test]
    fn one_unreadable_command_does_not_stop_the_others() {
        let Submission::Many(items) = read(&json!([{"type": "drop_table"}, record()]), Some("k")).unwrap() else {
            panic!()
        };
        assert_eq!(items[0].as_ref().unwrap_err().errors[0].code, "unknown_value");
        assert!(items[1].is_ok());
    }

    #[test]
    fn faults_are_pointed_at() {
        let mut unknown = record();
        unknown["colour"] = json!("red");
        let error = read(&unknown, None).unwrap_err();
        assert_eq!((error.status, error.errors[0].pointer.as_str()), (422, "/colour"));
        assert_eq!(read(&json!(7), None).unwrap_err().code, "bad_request");
        let error = read(&json!({"type": "create_record", "data": {}}), None).unwrap_err();
        assert_eq!((error.errors[0].pointer.as_str(), error.errors[0].code.as_ref()), ("/kind", "required"));
        let error = read(&json!({"command": record(), "occurred_at": "yesterday"}), None).unwrap_err();
        assert_eq!(error.errors[0].pointer, "/occurred_at");
        let error = parse_json::<CommandEnvelope>(br#"{"command": {}, "colour": "red"}"#).unwrap_err();
        assert_eq!(error.errors[0].pointer, "/colour");
    }

    #[test]
    fn what_is_no_json_is_a_bad_request_with_a_place() {
        let error = Submission::read(b"{\"type\":\n oops}", Format::Json, None).unwrap_err();
        assert_eq!((error.status, error.code), (400, "malformed_body"));
        assert!(error.detail.contains("line 2 column 2"), "{}", error.detail);
        let error = Submission::read(b"{\"a\":\"\xff\"}", Format::Json, None).unwrap_err();
        assert!(error.detail.contains("byte 7"), "{}", error.detail);
        assert_eq!(Submission::read(b"", Format::Json, None).unwrap_err().status, 400);
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let refused = Submission::read(deep.as_bytes(), Format::Json, None).unwrap_err();
        assert_eq!((refused.status, &*refused.errors[0].code), (422, "too_deep"));
    }

    #[test]
    fn message_pack_says_the_same_and_cannot_do_harm() {
        let bytes = rmp_serde::to_vec_named(&record()).unwrap();
        let Submission::One(packed) = Submission::read(&bytes, Format::MessagePack, None).unwrap() else { panic!() };
        let Submission::One(json) = read(&record(), None).unwrap() else { panic!() };
        assert_eq!(packed.command, json.command);
        assert_eq!(Submission::read(b"{}", Format::MessagePack, None).unwrap_err().code, "malformed_body");
        for hostile in [&[0xc1][..], &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0xdf, 0xff, 0xff, 0xff, 0xff], &[]] {
            assert_eq!(Submission::read(hostile, Format::MessagePack, None).unwrap_err().status, 400);
        }
        let deep = Submission::read(&vec![0x91; 100_000], Format::MessagePack, None).unwrap_err();
        assert_eq!((deep.status, &*deep.errors[0].code), (422, "too_deep"));
    }

    #[test]
    fn a_request_keeps_its_own_id_if_it_is_one() {
        assert_eq!(request_id(Some("a1-b_2.c:3")), "a1-b_2.c:3");
        for bad in ["", "a b", "a\tb", "<script>", &"x".repeat(129)] {
            assert!(request_id(Some(bad)).starts_with("req_"), "{bad}");
        }
        assert_ne!(request_id(None), request_id(None));
    }

    #[test]
    fn keys_come_bare_or_quoted() {
        assert_eq!(idempotency_key("abc-1").unwrap(), "abc-1");
        assert_eq!(idempotency_key("\"abc-1\"").unwrap(), "abc-1");
        for bad in ["", "\"\"", "a b", "ä", "a\"b", "\"", &"x".repeat(256)] {
            assert_eq!(idempotency_key(bad).unwrap_err().code, "invalid_header", "{bad}");
        }
    }
}
