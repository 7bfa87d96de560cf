//! The content of a bundle: names of files, and the two formats that are Orgstream's own.
//!
//! Tiles and entry bundles have their paths from C2SP tlog-tiles, so a bundle is also the static part of a log. Beside
//! each entry bundle there is one of payloads: for each event a letter, four bytes of length and the bytes.

use orgstream_events::{Fingerprint, OrgId, Position, Timestamp, is_inward};
use orgstream_transparency::{LogKey, Tile};
use serde::{Deserialize, Serialize};

/// The first word of a manifest.
pub const FORMAT: &str = "orgstream-audit-bundle/1";
/// The list of the bundle's files.
pub const MANIFEST: &str = "manifest.json";
/// The folder of signed heads, each named by its size.
pub const CHECKPOINTS: &str = "checkpoints";
/// The folder of notes by which the log's keys handed over, one to the next.
pub const HANDOVERS: &str = "handovers";
/// The events for human readers, one JSON object a line.
pub const JSONL: &str = "events.jsonl";
/// The same as a table.
pub const CSV: &str = "events.csv";
/// The same in the Open Cybersecurity Schema Framework.
pub const OCSF: &str = "events.ocsf.jsonl";
/// The policy that the log's operator suggests.
pub const POLICY: &str = "policy.txt";

/// The bundle's description of itself. It is not signed: it lists the files, so that a damaged one is found by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The org of the log.
    pub org: OrgId,
    /// The log's name: `<host>/<org id>`.
    pub origin: String,
    /// The number of events under the signed head.
    pub size: u64,
    /// When the bundle was written.
    pub created_at: Timestamp,
    /// The program that wrote it.
    pub tool: String,
    /// The messages that the log had skipped and not applied when the bundle was written. They have no number and no
    /// proof; the operator's statement is the only source for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Without>,
    /// Every file but this one.
    pub files: Vec<ListedFile>,
}

/// A message that could not be applied to the log, or one that waits behind such a one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Without {
    /// Its position in the organization's stream.
    pub position: Position,
    /// Its aggregate.
    pub aggregate: String,
    /// `failed` or `waiting`.
    pub state: String,
    /// The failure; empty when waiting.
    pub reason: String,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Its path below the bundle's folder, with slashes.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Fingerprint,
}

/// Returns the key that signs the log `origin` of `org`, given a pinned key: the same one, by its own name or by its
/// host's.
pub fn log_key(pin: &LogKey, origin: &str, org: OrgId) -> Option<LogKey> {
    pin.of_log(origin, &org.to_string())
}

/// The path of the payloads of a tile's events.
pub fn payloads_path(tile: &Tile) -> String {
    tile.entries_path().replacen("entries", "payloads", 1)
}

/// The content of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Its stored bytes.
    Here(Vec<u8>),
    /// Withheld: it has fields that are not for readers of the log.
    Withheld,
    /// Erased for ever. The header stays, and with it every proof.
    Erased,
}

impl Payload {
    /// Returns the reason why a missing payload is not explained by the log; None when it is, or when the payload is
    /// present.
    ///
    /// A mark in a bundle is not signed: the maker of the bundle could mark any payload to hide it. Types whose
    /// payloads are withheld are known beforehand, and an event's type is in its header. No event records that a
    /// payload was erased, so none can have been.
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

/// Encodes an entry bundle as in C2SP tlog-tiles: for each header two bytes of length and its bytes. None when a header
/// is too long for that.
pub fn encode_entries<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for header in headers {
        bytes.extend_from_slice(&u16::try_from(header.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(header);
    }
    Some(bytes)
}

/// Decodes the headers of a bundle; None unless it is `count` of them and nothing else.
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

/// Encodes the payloads of a tile's events.
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

/// Decodes them; None unless it is `count` of them and nothing else.
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
