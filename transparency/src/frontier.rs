//! The right edge of a growing tree: the state needed to append to it and to compute its root.
//!
//! A tree of n leaves is a row of perfect subtrees, one for each bit of n that is set, the largest first. Their roots
//! are the frontier. At most 63 hashes represent any number of leaves, so it fits in a row of a database.

use crate::{FormatError, Hash, MAX_TREE_SIZE, TreeHead, hash::node_hash};

/// The roots of the perfect subtrees that a tree consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// The largest subtree first; as many as `size` has bits that are set.
    roots: Vec<Hash>,
}

impl Frontier {
    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root over all leaves.
    pub fn root(&self) -> Hash {
        join(self.roots.iter().copied())
    }

    /// Size and root.
    pub fn head(&self) -> TreeHead {
        TreeHead { size: self.size, root: self.root() }
    }

    /// Adds one leaf at the end.
    pub fn append(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Every subtree that ends here and has the size of the new one is merged with it, as a carry in an addition.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node_hash(left, hash);
            }
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// Returns the stored form: the size in 8 bytes, big-endian, then the hashes. At most 2,024 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let hashes = self.roots.iter().flat_map(|root| root.0);
        self.size.to_be_bytes().into_iter().chain(hashes).collect()
    }

    /// Parses what [`to_bytes`](Self::to_bytes) wrote, and refuses everything that has not exactly as many hashes as
    /// its size requires. Whether they are correct can be checked only against a known [`head`](Self::head).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (size, hashes) = bytes.split_first_chunk().ok_or(FormatError::Missing("the frontier's size"))?;
        let size = u64::from_be_bytes(*size);
        if size > MAX_TREE_SIZE {
            return Err(FormatError::Malformed { what: "the frontier's size", expected: "a number up to 2^63 - 1" });
        }
        let (roots, rest) = hashes.as_chunks();
        if !rest.is_empty() || roots.len() != size.count_ones() as usize {
            let expected = "one hash for each subtree of its size";
            return Err(FormatError::Malformed { what: "the frontier", expected });
        }
        Ok(Self { size, roots: roots.iter().copied().map(Hash).collect() })
    }
}

impl Extend<Hash> for Frontier {
    fn extend<I: IntoIterator<Item = Hash>>(&mut self, leaves: I) {
        leaves.into_iter().for_each(|leaf| self.append(leaf));
    }
}

impl FromIterator<Hash> for Frontier {
    fn from_iter<I: IntoIterator<Item = Hash>>(leaves: I) -> Self {
        let mut frontier = Self::default();
        frontier.extend(leaves);
        frontier
    }
}

/// The root over a row of perfect subtrees, the largest first.
pub(crate) fn join(roots: impl DoubleEndedIterator<Item = Hash>) -> Hash {
    roots.rev().reduce(|right, left| node_hash(left, right)).unwrap_or(Hash::OF_NOTHING)
}
