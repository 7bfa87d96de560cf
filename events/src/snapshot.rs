//! One part of an aggregate's snapshot, as it is stored: what a process made of a history, signed as commits are.
//!
//! A snapshot is bound to its aggregate by its subject, and to one history by the last message that it covers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{CodecError, CommitKeys, Fingerprint, SnapshotSubject, codec::from_bytes};

const VERSION: u8 = 1;

/// One message of a snapshot, which is divided where it is larger than a message may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPart {
    v: u8,
    /// The shape of the content: a program that makes another one of the same events has no use for it.
    pub shape: u32,
    /// The sequence of the last message that it covers.
    pub seq: u64,
    /// The hash of that message's bytes, which include its signature.
    pub message: Fingerprint,
    /// The number of parts.
    pub parts: u16,
    /// The hash of the content of all parts together: parts of two snapshots do not mix.
    pub whole: Fingerprint,
    /// This part's piece of the content.
    pub content: Bytes,
}

impl SnapshotPart {
    /// Divides `content` into parts of at most `size` bytes, one at least.
    pub fn divide(shape: u32, seq: u64, message: Fingerprint, content: &Bytes, size: usize) -> Vec<Self> {
        let size = size.max(1);
        let count = content.len().div_ceil(size).max(1);
        let parts = u16::try_from(count).unwrap_or(u16::MAX);
        let whole = Fingerprint::of(&[content]);
        let piece = |part: usize| content.slice(part * size..content.len().min((part + 1) * size));
        (0..count).map(|part| Self { v: VERSION, shape, seq, message, parts, whole, content: piece(part) }).collect()
    }

    /// Returns the signed bytes to store on `subject`.
    pub fn sign(&self, keys: &CommitKeys, subject: &SnapshotSubject<'_>) -> Result<Bytes, CodecError> {
        Ok(keys.sign(&subject.to_string(), None, &rmp_serde::to_vec_named(self)?)?.into())
    }

    /// Returns the signed bytes of a snapshot of no shape and without content, in the place of any part.
    pub fn nothing(keys: &CommitKeys, subject: &str) -> Result<Bytes, CodecError> {
        let nothing = Fingerprint::of(&[]);
        let part =
            Self { v: VERSION, shape: 0, seq: 0, message: nothing, parts: 1, whole: nothing, content: Bytes::new() };
        Ok(keys.sign(subject, None, &rmp_serde::to_vec_named(&part)?)?.into())
    }

    /// Returns the part whose stored bytes were signed for `subject` by a process of this installation.
    pub fn open(keys: &CommitKeys, subject: &SnapshotSubject<'_>, bytes: &[u8]) -> Result<Self, CodecError> {
        let part: Self = from_bytes("snapshot", keys.verify(&subject.to_string(), None, bytes)?)?;
        if part.v != VERSION {
            return Err(CodecError::Unknown { what: "snapshot version", value: part.v.to_string() });
        }
        Ok(part)
    }

    /// Whether both are parts of one snapshot.
    pub fn is_of_one_with(&self, other: &Self) -> bool {
        (self.shape, self.seq, self.message, self.parts, self.whole)
            == (other.shape, other.seq, other.message, other.parts, other.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AggregateId, EventSubject, OrgId, RecordId, Shard};

    fn of(record: u8) -> EventSubject {
        let aggregate = AggregateId::Record(RecordId::fresh(1, [record; 10]));
        EventSubject { shard: Shard(3), org: OrgId::fresh(1, [1; 10]), aggregate }
    }

    #[test]
    fn parts_read_back_where_they_were_signed_for_and_nowhere_else() {
        let keys: CommitKeys = format!("a:{}", "01".repeat(32)).parse().unwrap();
        let content = Bytes::from_static(b"0123456789");
        let message = Fingerprint::of(&[b"message"]);
        let parts = SnapshotPart::divide(7, 12, message, &content, 4);
        assert_eq!(parts.iter().map(|part| part.content.len()).collect::<Vec<_>>(), [4, 4, 2]);
        assert!(parts.iter().all(|part| part.is_of_one_with(&parts[0]) && part.parts == 3));
        let (one, two) = (of(1), of(2));
        let place = SnapshotSubject { of: &one, part: 1 };
        let bytes = parts[1].sign(&keys, &place).unwrap();
        assert_eq!(SnapshotPart::open(&keys, &place, &bytes).unwrap(), parts[1]);
        for elsewhere in [SnapshotSubject { of: &one, part: 0 }, SnapshotSubject { of: &two, part: 1 }] {
            let error = SnapshotPart::open(&keys, &elsewhere, &bytes).unwrap_err();
            assert!(matches!(error, CodecError::NotAuthentic { .. }), "{error}");
        }
        let empty = SnapshotPart::divide(7, 12, message, &Bytes::new(), 4);
        assert_eq!((empty.len(), empty[0].parts), (1, 1));
        assert!(!empty[0].is_of_one_with(&parts[0]));
    }

    #[test]
    fn a_commit_is_no_snapshot() {
        let keys: CommitKeys = format!("a:{}", "01".repeat(32)).parse().unwrap();
        let of = of(1);
        let place = SnapshotSubject { of: &of, part: 0 };
        let part = SnapshotPart::divide(1, 1, Fingerprint::of(&[b""]), &Bytes::from_static(b"state"), 10).remove(0);
        let bytes = part.sign(&keys, &place).unwrap();
        assert!(keys.verify(&of.to_string(), None, &bytes).is_err(), "it was signed for another subject");
        let commit = keys.sign(&place.to_string(), None, b"content").unwrap();
        assert!(SnapshotPart::open(&keys, &place, &commit).is_err());
    }
}
