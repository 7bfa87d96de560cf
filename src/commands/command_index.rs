//! The places of an aggregate's commands in the log, by which a repeated one is known however old it is.
//!
//! A command takes 16 bytes, and its answer is read from its commit. The index has a part of the command's id only; the
//! commit has all of it and says whether it is the one.

use std::sync::Arc;

use orgstream_events::CommandId;

/// The commands that are not sorted yet, which are searched one by one.
const UNSORTED: usize = 64;
/// The bytes of an entry in a snapshot.
const ENTRY: usize = 16;

/// A part of a command's id, and the sequence of its commit.
type Entry = (u64, u64);

/// The index. A copy shares what is sorted.
#[derive(Debug, Clone, Default)]
pub(super) struct CommandIndex {
    newest: Vec<Entry>,
    /// Each is sorted, and longer than the next.
    sorted: Vec<Arc<[Entry]>>,
}

impl CommandIndex {
    /// Adds a command whose commit is at `seq`.
    pub(super) fn insert(&mut self, command: CommandId, seq: u64) {
        self.newest.push((part_of(command), seq));
        if self.newest.len() >= UNSORTED {
            let newest = std::mem::take(&mut self.newest);
            self.sort_in(newest);
        }
    }

    /// Returns the sequences at which the command may be, the newest first. Almost always none or one.
    pub(super) fn find(&self, command: CommandId) -> Vec<u64> {
        self.find_part(part_of(command))
    }

    /// Like `find`, by the part of the id that the index has: its last eight bytes.
    pub(super) fn find_part(&self, part: u64) -> Vec<u64> {
        let of_part = |entries: &[Entry]| {
            let first = entries.partition_point(|(other, _)| *other < part);
            entries.iter().skip(first).take_while(|(other, _)| *other == part).map(|(_, seq)| *seq).collect::<Vec<_>>()
        };
        let newest = self.newest.iter().filter(|(other, _)| *other == part).map(|(_, seq)| *seq);
        let mut found: Vec<u64> = newest.chain(self.sorted.iter().flat_map(|entries| of_part(entries))).collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        found
    }

    /// Returns the stored form.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let entries = self.sorted.iter().flat_map(|entries| entries.iter()).chain(&self.newest);
        entries.flat_map(|(part, seq)| part.to_be_bytes().into_iter().chain(seq.to_be_bytes())).collect()
    }

    /// Reads the stored form; none if it is not one.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(ENTRY) {
            return None;
        }
        let entry = |bytes: &[u8]| {
            let (part, seq) = bytes.split_first_chunk::<8>()?;
            Some((u64::from_be_bytes(*part), u64::from_be_bytes(seq.try_into().ok()?)))
        };
        let mut index = Self::default();
        index.sort_in(bytes.chunks(ENTRY).map(entry).collect::<Option<_>>()?);
        Some(index)
    }

    /// Sorts entries together with as many that are not more, so that an entry is sorted again only a few times.
    fn sort_in(&mut self, mut entries: Vec<Entry>) {
        while let Some(last) = self.sorted.pop_if(|last| last.len() <= entries.len()) {
            entries.extend_from_slice(&last);
        }
        if !entries.is_empty() {
            entries.sort_unstable();
            self.sorted.push(entries.into());
        }
    }
}

/// The last bytes of an id: 62 bits of a hash, and the variant. A sender who wants several commands with the same ones, each of
/// which costs a read more, pays 2^31 hashes for two and far more for many.
fn part_of(command: CommandId) -> u64 {
    command.uuid().as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use orgstream_events::OrgId;

    use super::*;

    fn command(number: u64) -> CommandId {
        CommandId::from_idempotency_key(OrgId::fresh(1, [1; 10]), &number.to_string())
    }

    #[test]
    fn every_command_is_found_however_many_there_are() {
        let mut index = CommandIndex::default();
        for number in 0..10_000 {
            index.insert(command(number), number + 1);
        }
        let stored = index.to_bytes();
        assert_eq!(stored.len(), 10_000 * ENTRY);
        for index in [index.clone(), CommandIndex::from_bytes(&stored).unwrap()] {
            for number in 0..10_000 {
                assert!(index.find(command(number)).contains(&(number + 1)), "{number}");
            }
            assert!((10_000..11_000).all(|number| index.find(command(number)).is_empty()));
            assert!(index.sorted.len() <= 10, "{} runs", index.sorted.len());
        }
    }

    #[test]
    fn a_copy_stays_as_it_was_and_two_commands_of_one_part_are_both_found() {
        let mut index = CommandIndex::default();
        index.insert(command(1), 5);
        let before = index.clone();
        for seq in 6..200 {
            index.insert(command(1), seq);
        }
        assert_eq!(before.find(command(1)), [5]);
        assert_eq!(index.find(command(1)), (5..200).rev().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_index_is_not_read() {
        assert!(CommandIndex::from_bytes(&[0; 13]).is_none());
        assert!(CommandIndex::from_bytes(&[]).unwrap().find(command(1)).is_empty());
    }
}
