//! Verification of proofs (RFC 9162, sections 2.1.3.2 and 2.1.4.2). Total: for any input, the result is success, or the
//! part that is wrong.

use crate::{Hash, TreeHead, hash::node_hash};

/// The reason why a proof is invalid, or cannot exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The tree does not have this leaf.
    #[error("there is no leaf {index} in a tree of {size}")]
    OutsideTree {
        /// The leaf, counted from 0.
        index: u64,
        /// The size of the tree.
        size: u64,
    },
    /// Trees only grow.
    #[error("a tree of {new} cannot follow one of {old}")]
    Shrunk {
        /// The size stated as earlier.
        old: u64,
        /// The size stated as later.
        new: u64,
    },
    /// More hashes than nodes on the path to the root.
    #[error("the proof has too many hashes")]
    TooLong,
    /// Fewer hashes than nodes on the path to the root.
    #[error("the proof has too few hashes")]
    TooShort,
    /// The hashes lead to another root than the tree's.
    #[error("the proof does not lead to the root of the tree")]
    WrongRoot,
    /// The hashes lead to another root than the earlier tree's: history was rewritten, or the proof is for another tree.
    #[error("the proof does not lead to the root of the earlier tree")]
    WrongOldRoot,
}

/// Verifies that `leaf` is leaf number `index` (from 0) of the tree. `proof` goes from the leaf's sibling up to the
/// root's child.
pub fn verify_inclusion(leaf: Hash, index: u64, tree: TreeHead, proof: &[Hash]) -> Result<(), ProofError> {
    if index >= tree.size {
        return Err(ProofError::OutsideTree { index, size: tree.size });
    }
    let mut way = Way { node: index, last: tree.size - 1 };
    let mut root = leaf;
    for &sibling in proof {
        root = if way.up()? { node_hash(sibling, root) } else { node_hash(root, sibling) };
    }
    way.arrived()?;
    if root == tree.root { Ok(()) } else { Err(ProofError::WrongRoot) }
}

/// Verifies that the leaves of `old` are the first leaves of `new`. Equal trees, and a tree after the empty one, need
/// no proof, so then it has to be empty.
pub fn verify_consistency(old: TreeHead, new: TreeHead, proof: &[Hash]) -> Result<(), ProofError> {
    if old.size > new.size {
        return Err(ProofError::Shrunk { old: old.size, new: new.size });
    }
    if old.size == 0 || old.size == new.size {
        let expected = if old.size == 0 { Hash::OF_NOTHING } else { new.root };
        return match proof {
            [_, ..] => Err(ProofError::TooLong),
            [] if old.root != expected => Err(ProofError::WrongOldRoot),
            [] if new.size == 0 && new.root != expected => Err(ProofError::WrongRoot),
            [] => Ok(()),
        };
    }
    // The proof begins with the largest subtree that ends where the old tree ends; if that is the old tree, it is
    // omitted.
    let (first, rest) = match proof.split_first() {
        _ if old.size.is_power_of_two() => (old.root, proof),
        Some((first, rest)) => (*first, rest),
        None => return Err(ProofError::TooShort),
    };
    let height = (old.size - 1).trailing_ones();
    let mut way = Way { node: (old.size - 1) >> height, last: (new.size - 1) >> height };
    let (mut old_root, mut new_root) = (first, first);
    for &sibling in rest {
        if way.up()? {
            old_root = node_hash(sibling, old_root);
            new_root = node_hash(sibling, new_root);
        } else {
            new_root = node_hash(new_root, sibling);
        }
    }
    way.arrived()?;
    if old_root != old.root {
        return Err(ProofError::WrongOldRoot);
    }
    if new_root == new.root { Ok(()) } else { Err(ProofError::WrongRoot) }
}

/// The path from a node to the root: its number among the nodes of its level, and the number of the last of them.
struct Way {
    node: u64,
    last: u64,
}

impl Way {
    /// Goes up to the next node that has two children, and returns whether the sibling is on the left.
    fn up(&mut self) -> Result<bool, ProofError> {
        if self.last == 0 {
            return Err(ProofError::TooLong);
        }
        let left = self.node & 1 == 1 || self.node == self.last;
        if left {
            // The last node of a level has no sibling when its number is even: it is the node above it as well. The
            // number is not 0 here, so the shift is valid.
            self.shift(self.node.trailing_zeros());
        }
        self.shift(1);
        Ok(left)
    }

    fn arrived(&self) -> Result<(), ProofError> {
        if self.last == 0 { Ok(()) } else { Err(ProofError::TooShort) }
    }

    fn shift(&mut self, levels: u32) {
        self.node >>= levels;
        self.last >>= levels;
    }
}
