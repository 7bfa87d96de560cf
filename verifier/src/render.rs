//! An event for people and for other programs: JSON lines, a table, and OCSF. Each line is a function of the entry
//! alone, so it can be verified from the entry.

use std::{collections::BTreeMap, fmt::Write as _};

use orgstream_events::{
    AccountEvent, ActorType, CodecError, Context, Event, Header, OutcomeStatus, ParkingEvent, SealedEvent,
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::Payload;

/// The version of OCSF that lines are written in; fields move between versions.
const OCSF_VERSION: &str = "1.3.0";
/// Entity Management: something was created, changed or removed.
const OCSF_CLASS: u32 = 3004;

/// The first line of the table.
pub const CSV_HEAD: &str = "idx,event_id,type,recorded_at,occurred_at,actor_type,actor_id,target_type,target_id,outcome,\
    outcome_code,command_id,request_id,ip,user_agent,payload,data";

/// A readable event of the log.
#[derive(Debug)]
pub struct Entry {
    /// Its index in the log, from 0.
    pub idx: u64,
    /// Its actor, action and times.
    pub header: Header,
    /// The state of the payload: `shown`, `withheld` or `erased`.
    payload: &'static str,
    content: Option<(Value, Context)>,
    /// Its statement about a message that the log lacks, if it is a mark of the log.
    pub(crate) mark: Option<ParkingEvent>,
    /// The event itself, if it is one of the account.
    pub(crate) account: Option<AccountEvent>,
}

impl Entry {
    /// Decodes an event, and compares its payload with its header.
    pub fn read(idx: u64, header: &[u8], payload: &Payload) -> Result<Self, CodecError> {
        let sealed = |payload: &[u8]| SealedEvent { header: header.to_vec().into(), payload: payload.to_vec().into() };
        Ok(match payload {
            Payload::Here(bytes) => {
                let opened = sealed(bytes).open()?;
                let content = Some((opened.event.to_json(), opened.context));
                let (mark, account) = match opened.event {
                    Event::Parking(event) => (Some(event).filter(ParkingEvent::is_mark), None),
                    Event::Account(event) => (None, Some(event)),
                    _ => (None, None),
                };
                Self { idx, header: opened.header, payload: "shown", content, mark, account }
            }
            Payload::Withheld => Self::bare(idx, sealed(&[]).read_header()?, "withheld"),
            Payload::Erased => Self::bare(idx, sealed(&[]).read_header()?, "erased"),
        })
    }

    fn bare(idx: u64, header: Header, payload: &'static str) -> Self {
        Self { idx, header, payload, content: None, mark: None, account: None }
    }

    fn data(&self) -> Option<Sorted<'_>> {
        self.content.as_ref().map(|(data, _)| Sorted(data))
    }

    fn context(&self) -> Option<&Context> {
        self.content.as_ref().map(|(_, context)| context)
    }

    /// The line of `events.jsonl`, without its newline.
    pub fn jsonl(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            idx: u64,
            #[serde(flatten)]
            header: &'a Header,
            payload: &'static str,
            data: Option<Sorted<'a>>,
            context: Option<&'a Context>,
        }
        let Self { idx, header, payload, .. } = self;
        text(&Line { idx: *idx, header, payload, data: self.data(), context: self.context() })
    }

    /// The line of `events.csv`, without its newline.
    pub fn csv(&self) -> String {
        let Self { idx, header, payload, .. } = self;
        let target = header.targets.first();
        let context = self.context();
        let cells = [
            idx.to_string(),
            header.event_id.to_string(),
            header.event_type.clone(),
            header.recorded_at.to_string(),
            header.occurred_at.to_string(),
            header.actor.actor_type.name().to_owned(),
            header.actor.id.clone(),
            target.map(|target| target.target_type.clone()).unwrap_or_default(),
            target.map(|target| target.id.clone()).unwrap_or_default(),
            header.outcome.status.name().to_owned(),
            header.outcome.code.clone().unwrap_or_default(),
            header.command_id.to_string(),
            header.request_id.clone().unwrap_or_default(),
            context.and_then(|context| context.ip.clone()).unwrap_or_default(),
            context.and_then(|context| context.user_agent.clone()).unwrap_or_default(),
            (*payload).to_owned(),
            self.data().map(|data| text(&data)).unwrap_or_default(),
        ];
        cells.map(|cell| csv_cell(&cell)).join(",")
    }

    /// The line of `events.ocsf.jsonl`, without its newline.
    pub fn ocsf(&self) -> String {
        let Self { idx, header, .. } = self;
        let (activity, activity_name) = match header.event_type.rsplit('.').next().unwrap_or_default() {
            "created" | "added" | "issued" | "registered" => (1, "Create"),
            "removed" | "revoked" | "archived" | "retired" | "deleted" => (4, "Delete"),
            word if word.ends_with("changed") || word.ends_with("ed") => (3, "Update"),
            _ => (99, "Other"),
        };
        let target = header.targets.first();
        let (status, status_name) = match header.outcome.status {
            OutcomeStatus::Success => (1, "Success"),
            OutcomeStatus::Denied | OutcomeStatus::Failed => (2, "Failure"),
        };
        let mut line = json!({
            "class_uid": OCSF_CLASS,
            "class_name": "Entity Management",
            "category_uid": 3,
            "category_name": "Identity & Access Management",
            "activity_id": activity,
            "activity_name": activity_name,
            "type_uid": OCSF_CLASS * 100 + activity,
            "severity_id": 1,
            "status_id": status,
            "status": status_name,
            "status_code": header.outcome.code,
            "time": header.occurred_at.unix_ms(),
            "metadata": {
                "version": OCSF_VERSION,
                "product": {"name": "Orgstream", "vendor_name": "Orgstream"},
                "uid": header.event_id,
                "event_code": header.event_type,
                "sequence": idx,
                "logged_time": header.recorded_at.unix_ms(),
                "correlation_uid": header.correlation_id,
                "tenant_uid": header.org_id,
            },
            "actor": {"user": {
                "uid": header.actor.id,
                "type_id": if header.actor.actor_type == ActorType::Member { 1 } else { 3 },
                "type": header.actor.actor_type.name(),
            }},
            "entity": {
                "uid": target.map(|target| target.id.as_str()),
                "type": target.map(|target| target.target_type.as_str()),
                "data": self.content.as_ref().map(|(data, _)| data),
            },
        });
        if let Some(ip) = self.context().and_then(|context| context.ip.as_ref())
            && let Some(fields) = line.as_object_mut()
        {
            fields.insert("src_endpoint".to_owned(), json!({"ip": ip}));
        }
        text(&Sorted(&line))
    }
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// One cell: quoted where necessary, and never one that a spreadsheet takes for a formula.
fn csv_cell(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    let mut cell = String::with_capacity(text.len() + 3);
    if is_formula {
        cell.push('\'');
    }
    if text.contains([',', '"', '\n', '\r']) || is_formula {
        let _ = write!(cell, "{}", text.replace('"', "\"\""));
        format!("\"{cell}\"")
    } else {
        text.to_owned()
    }
}

/// JSON with the fields of every object in the order of their names, whatever features the program was built with.
struct Sorted<'a>(&'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let fields: BTreeMap<_, _> = fields.iter().map(|(name, value)| (name, Sorted(value))).collect();
                serializer.collect_map(fields)
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Sorted)),
            other => other.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        assert_eq!(csv_cell("=1+1"), "\"'=1+1\"");
        assert_eq!(csv_cell("@SUM(A1)"), "\"'@SUM(A1)\"");
        assert_eq!(csv_cell("-2"), "\"'-2\"");
        assert_eq!(csv_cell("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert_eq!(csv_cell("\tx\ny"), "\"'\tx\ny\"");
        assert_eq!(csv_cell("plain"), "plain");
    }

    #[test]
    fn fields_are_sorted_at_every_depth() {
        let value = json!({"b": [{"d": 1, "c": 2}], "a": null});
        assert_eq!(text(&Sorted(&value)), r#"{"a":null,"b":[{"c":2,"d":1}]}"#);
    }
}
