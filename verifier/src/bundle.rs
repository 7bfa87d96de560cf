//! What a bundle consists of: names of files, and the two formats that are not somebody else's.
//!
//! Tiles and bundles of entries lie where C2SP tlog-tiles has them, so a bundle is also the static part of a log. Beside each
//! bundle of entries there is one of payloads: for each event a letter, four bytes of length and the bytes.

use orgstream_events::{Fingerprint, OrgId, Position, Timestamp, is_inward};
use orgstream_transparency::{LogKey, Tile};
use serde::{Deserialize, Serialize};

/// The first word of a manifest.
pub const FORMAT: &str = "orgstream-audit-bundle/1";
/// What is in the bundle.
pub const MANIFEST: &str = "manifest.json";
/// The folder of signed heads, each named by its size.
pub const CHECKPOINTS: &str = "checkpoints";
/// The folder of notes by which the log's keys handed over, one to the next.
pub const HANDOVERS: &str = "handovers";
/// The events for people, one JSON object a line.
pub const JSONL: &str = "events.jsonl";
/// The same as a table.
pub const CSV: &str = "events.csv";
/// The same in the Open Cybersecurity Schema Framework.
pub const OCSF: &str = "events.ocsf.jsonl";
/// Whom the log's operator would have you believe.
pub const POLICY: &str = "policy.txt";

/// What a bundle says of itself. Nobody signs it: it names the files, so that a damaged one is found by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// Whose log.
    pub org: OrgId,
    /// The log's name: `<host>/<org id>`.
    pub origin: String,
    /// How many events the signed head has.
    pub size: u64,
    /// When the bundle was written.
    pub created_at: Timestamp,
    /// What wrote it.
    pub tool: String,
    /// The messages that the log had passed and not taken in when the bundle was written. They have no number and no proof;
    /// what they are is the operator's word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Without>,
    /// Every file but this one.
    pub files: Vec<ListedFile>,
}

/// A message that could not be taken into the log, or one that waits behind such a one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Without {
    /// Where it is in the organization's stream.
    pub position: Position,
    /// What it is about.
    pub aggregate: String,
    /// `failed` or `waiting`.
    pub state: String,
    /// What went wrong; empty when waiting.
    pub reason: String,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Below the bundle's folder, with slashes.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Fingerprint,
}

/// The key that signs the log `origin` of `org`, given the key that somebody pinned: the same one, by its own name or by its
/// host's.
pub fn log_key(pin: &LogKey, origin: &str, org: OrgId) -> Option<LogKey> {
    pin.of_log(origin, &org.to_string())
}

/// Where the payloads of a tile's events are.
pub fn payloads_path(tile: &Tile) -> String {
    tile.entries_path().replacen("entries", "payloads", 1)
}

/// The content of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Its stored bytes.
    Here(Vec<u8>),
    /// Kept back: it has fields that are not for whoever reads the log.
    Withheld,
    /// Gone for ever. The header stays, and with it every proof.
    Erased,
}

impl Payload {
    /// Why the log gives no reason for the payload to be missing; None when it does, or when it is there.
    ///
    /// A mark in a bundle is nobody's signed word: whoever makes the bundle could mark what they would rather not show. Types
    /// whose payloads are kept back are known beforehand, and an event's type is in its header. No event says that a payload
    /// was erased, so none can have been.
    pub fn unexplained(&self, event_type: &str) -> Option<&'static str> {
        match self {
            Self::Here(_) => None,
            Self::Withheld if is_inward(event_type) => None,
            Self::Withheld => {
                Some("its payload is withheld, and events of its type have nothing that is kept back from an auditor")
            }
            Self::Erased => Some("its payload is marked as erased, and no event of the log says that it was"),
        }
    }
}

/// A bundle of entries as C2SP tlog-tiles has it: for each header two bytes of length and its bytes. None when a header is
/// longer than that can say.
pub fn encode_entries<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for header in headers {
        bytes.extend_from_slice(&u16::try_from(header.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(header);
    }
    Some(bytes)
}

/// The headers of a bundle; None unless it is `count` of them and nothing else.
pub fn decode_entries(mut bytes: &[u8], count: usize) -> Option<Vec<&[u8]>> {
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, rest) = bytes.split_first_chunk()?;
        let (header, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        headers.push(header);
        bytes = rest;
    }
    bytes.is_empty().then_some(headers)
}

/// The payloads of a tile's events.
pub fn encode_payloads<'a>(payloads: impl IntoIterator<Item = &'a Payload>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for payload in payloads {
        let (letter, content) = match payload {
            Payload::Here(content) => (b'P', content.as_slice()),
            Payload::Withheld => (b'W', &[][..]),
            Payload::Erased => (b'E', &[][..]),
        };
        bytes.push(letter);
        // A payload is part of a message of 1 MB at most.
        bytes.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(content);
    }
    bytes
}

/// Reads them; None unless it is `count` of them and nothing else.
pub fn decode_payloads(mut bytes: &[u8], count: usize) -> Option<Vec<Payload>> {
    let mut payloads = Vec::with_capacity(count);
    for _ in 0..count {
        let (letter, rest) = bytes.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (content, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        payloads.push(match (letter, content) {
            (b'P', content) => Payload::Here(content.to_vec()),
            (b'W', []) => Payload::Withheld,
            (b'E', []) => Payload::Erased,
            _ => return None,
        });
        bytes = rest;
    }
    bytes.is_empty().then_some(payloads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_missing_for_a_reason_that_the_log_gives_or_for_none() {
        assert_eq!(Payload::Here(Vec::new()).unexplained("record.created"), None);
        for (event_type, _) in orgstream_events::INWARD_FIELDS {
            assert_eq!(Payload::Withheld.unexplained(event_type), None);
            assert!(Payload::Erased.unexplained(event_type).is_some());
        }
        for known in orgstream_events::KNOWN_EVENTS.iter().flat_map(|known| known.iter()) {
            let explained = Payload::Withheld.unexplained(known.0).is_none();
            assert_eq!(explained, is_inward(known.0), "{}", known.0);
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let entries = encode_entries([&b"one"[..], b"", b"three"]).unwrap();
        assert_eq!(decode_entries(&entries, 3).unwrap(), [&b"one"[..], b"", b"three"]);
        assert!(decode_entries(&entries, 2).is_none() && decode_entries(&entries, 4).is_none());
        assert!(encode_entries([vec![0; 65_536].as_slice()]).is_none());
        let payloads = [Payload::Here(b"x".to_vec()), Payload::Withheld, Payload::Erased];
        let bytes = encode_payloads(&payloads);
        assert_eq!(decode_payloads(&bytes, 3).unwrap(), payloads);
        for end in 0..bytes.len() {
            assert!(decode_payloads(&bytes[..end], 3).is_none());
        }
    }
}
