//! Proofs from stored tiles: determine the needed tiles, fetch them all at once, compute.

use std::{collections::BTreeSet, iter, ops::Range};

use crate::{Hash, ProofError, Tile, Tiles, frontier::join, subtree_root, tile::TILE_HEIGHT};

/// The parts of a proof: the roots over these ranges of leaves, in the proof's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    size: u64,
    ranges: Vec<Range<u64>>,
}

/// A tile that a plan needs is not among those that were fetched, or has too few hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is needed and was not fetched")]
pub struct MissingTile(pub Tile);

/// A perfect subtree: 2^`height` leaves from `start` on.
#[derive(Debug, Clone, Copy)]
struct Subtree {
    start: u64,
    height: u32,
}

impl Plan {
    /// The plan for the root of the first `size` leaves: one hash.
    pub fn root(size: u64) -> Self {
        Self { size, ranges: iter::once(0..size).collect() }
    }

    /// The plan for the proof that leaf `index` is in a tree of `size` (RFC 6962, section 2.1.1).
    pub fn inclusion(index: u64, size: u64) -> Result<Self, ProofError> {
        if index >= size {
            return Err(ProofError::OutsideTree { index, size });
        }
        let mut ranges = Vec::new();
        let mut within = 0..size;
        while within.end - within.start > 1 {
            let middle = split(&within);
            if index < middle {
                ranges.push(middle..within.end);
                within.end = middle;
            } else {
                ranges.push(within.start..middle);
                within.start = middle;
            }
        }
        ranges.reverse();
        Ok(Self { size, ranges })
    }

    /// The plan for the proof that the first `old` leaves of a tree of `new` are an earlier state of it (RFC 6962,
    /// section 2.1.2). Without hashes when `old` is 0 or `new`.
    pub fn consistency(old: u64, new: u64) -> Result<Self, ProofError> {
        if old > new {
            return Err(ProofError::Shrunk { old, new });
        }
        let mut ranges = Vec::new();
        let mut within = 0..new;
        while old > 0 && within.end != old {
            let middle = split(&within);
            if old <= middle {
                ranges.push(middle..within.end);
                within.end = middle;
            } else {
                ranges.push(within.start..middle);
                within.start = middle;
            }
        }
        // The root of the whole old tree is omitted: the verifier has it.
        if within.start > 0 {
            ranges.push(within);
        }
        ranges.reverse();
        Ok(Self { size: new, ranges })
    }

    /// The tiles to fetch: at most two for each level of tiles, lower levels first.
    pub fn tiles(&self) -> BTreeSet<Tile> {
        self.ranges.iter().flat_map(subtrees).map(|subtree| subtree.tile(self.size)).collect()
    }

    /// Computes the hashes of the proof. The tiles are authenticated by the root alone: a caller that does not trust
    /// their storage verifies the proof before returning it.
    pub fn prove(&self, tiles: &Tiles) -> Result<Vec<Hash>, MissingTile> {
        self.ranges
            .iter()
            .map(|range| {
                let roots = subtrees(range).map(|subtree| subtree.root(self.size, tiles));
                let roots: Vec<_> = roots.collect::<Result<_, _>>()?;
                Ok(join(roots.into_iter()))
            })
            .collect()
    }
}

impl Subtree {
    /// The level of tiles that this is in, and the index of its first hash in that level.
    fn place(self) -> (u8, u64) {
        let level = self.height / TILE_HEIGHT;
        (level as u8, self.start >> (level * TILE_HEIGHT))
    }

    fn tile(self, size: u64) -> Tile {
        let (level, hash) = self.place();
        Tile::with(level, hash, size)
    }

    fn root(self, size: u64, tiles: &Tiles) -> Result<Hash, MissingTile> {
        let tile = self.tile(size);
        let (_, hash) = self.place();
        let first = (hash - (tile.index() << TILE_HEIGHT)) as usize;
        let end = first + (1 << (self.height % TILE_HEIGHT));
        let hashes = tiles.get(&tile).and_then(|hashes| hashes.get(first..end));
        hashes.map(subtree_root).ok_or(MissingTile(tile))
    }
}

/// The position where a tree is divided: the left part has the largest power of two that leaves something to the right.
fn split(range: &Range<u64>) -> u64 {
    range.start + (1 << (range.end - range.start - 1).ilog2())
}

/// The perfect subtrees of a range that begins where a subtree of its size may, the largest first.
fn subtrees(range: &Range<u64>) -> impl Iterator<Item = Subtree> + use<> {
    let Range { mut start, end } = range.clone();
    iter::from_fn(move || {
        let height = end.checked_sub(start)?.checked_ilog2()?;
        let subtree = Subtree { start, height };
        start += 1 << height;
        Some(subtree)
    })
}
