//! The hashes of the tree (RFC 6962, section 2.1, with SHA-256): leaves, nodes, and the head that represents all.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

use crate::{
    FormatError,
    text::{from_base64, to_base64},
};

/// The largest tree: 2^63 - 1 leaves, the range of a signed integer of a database or another program.
pub const MAX_TREE_SIZE: u64 = i64::MAX as u64;

/// A leaf, a node or the root of a tree. As text it is base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The root of a tree without leaves: the hash of nothing.
    pub const OF_NOTHING: Self = Self([
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae,
        0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
    ]);
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base64(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bytes = from_base64("a hash", text)?;
        let bytes = bytes.try_into().map_err(|_| FormatError::Malformed { what: "a hash", expected: "32 bytes" })?;
        Ok(Self(bytes))
    }
}

/// A tree in 40 bytes: the number of leaves, and the root over them. A later tree can be proven to begin with the same
/// leaves to the holder of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeHead {
    /// The number of leaves.
    pub size: u64,
    /// The root hash.
    pub root: Hash,
}

impl TreeHead {
    /// The tree without leaves.
    pub const EMPTY: Self = Self { size: 0, root: Hash::OF_NOTHING };
}

/// The leaf of an event, `SHA-256(0x00 || header)`, over the header's stored bytes and never over a re-serialization.
pub fn leaf_hash(header: &[u8]) -> Hash {
    Hash(Sha256::new_with_prefix([0]).chain_update(header).finalize().into())
}

/// The node above two others.
pub(crate) fn node_hash(left: Hash, right: Hash) -> Hash {
    Hash(Sha256::new_with_prefix([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}
