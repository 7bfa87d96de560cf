//! The stored tree, divided into tiles of up to 256 hashes as in C2SP tlog-tiles.
//!
//! Level 0 contains the leaves; a hash in a level above is the root of one full tile of the level below. Levels between
//! are computed. A tile that is full never changes again.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{FormatError, Frontier, Hash};

/// The number of hashes in a full tile.
pub const TILE_WIDTH: u16 = 256;

/// The number of levels of the tree in one level of tiles.
pub(crate) const TILE_HEIGHT: u32 = TILE_WIDTH.ilog2();

/// The highest level of tiles under [`MAX_TREE_SIZE`](crate::MAX_TREE_SIZE).
const MAX_LEVEL: u8 = (u64::BITS / TILE_HEIGHT) as u8 - 1;

/// The hashes of tiles that were fetched.
pub type Tiles = BTreeMap<Tile, Vec<Hash>>;

/// The name of a tile. As text it is the path, `tile/<level>/<index>` and `.p/<width>` while it is not full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tile {
    level: u8,
    index: u64,
    width: u16,
}

impl Tile {
    /// The tile that contains hash number `hash` of a level, in a tree of `size`. `level` is at most 7.
    pub(crate) fn with(level: u8, hash: u64, size: u64) -> Self {
        let index = hash >> TILE_HEIGHT;
        let left = (size >> (TILE_HEIGHT * u32::from(level))).saturating_sub(index << TILE_HEIGHT);
        Self { level, index, width: left.min(TILE_WIDTH.into()) as u16 }
    }

    /// The tiles that have to be written when a tree has grown from `old` to `new` leaves, lower levels first, so that
    /// each hash of a tile above is the [root](subtree_root) of a tile that exists already.
    pub fn grown(old: u64, new: u64) -> impl Iterator<Item = Self> {
        (0..=MAX_LEVEL).flat_map(move |level| {
            let shift = TILE_HEIGHT * u32::from(level);
            let (had, has) = (old >> shift, new >> shift);
            let first = had >> TILE_HEIGHT;
            let end = if has > had { has.div_ceil(TILE_WIDTH.into()) } else { first };
            (first..end).map(move |index| Self::with(level, index << TILE_HEIGHT, new))
        })
    }

    /// The path of the entry bundle that belongs to a tile of leaves: `tile/entries/<index>[.p/<width>]`.
    pub fn entries_path(&self) -> String {
        format!("tile/entries/{}", self.place())
    }

    /// The level: 0 for leaves, up to 7.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The index in the level, from 0: the first hash is number `index * 256` of the level.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The number of its hashes: 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Index and width in the form of both paths.
    fn place(&self) -> String {
        let mut groups = vec![format!("{:03}", self.index % 1_000)];
        let mut rest = self.index / 1_000;
        while rest > 0 {
            groups.push(format!("x{:03}", rest % 1_000));
            rest /= 1_000;
        }
        groups.reverse();
        let width = if self.width < TILE_WIDTH { format!(".p/{}", self.width) } else { String::new() };
        groups.join("/") + &width
    }

    /// Parses the hashes of a stored tile. A later state of the tile, with more hashes, is accepted as well: they are
    /// only added at the end.
    pub fn read(&self, bytes: &[u8]) -> Result<Vec<Hash>, FormatError> {
        let (hashes, rest) = bytes.as_chunks();
        let own = hashes.get(..self.width.into());
        let own = own.filter(|_| rest.is_empty() && hashes.len() <= TILE_WIDTH.into());
        let expected = "at least as many hashes as its path says, and at most 256";
        Ok(own.ok_or(FormatError::Malformed { what: "a tile", expected })?.iter().copied().map(Hash).collect())
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/{}", self.level, self.place())
    }
}

impl FromStr for Tile {
    type Err = FormatError;

    fn from_str(path: &str) -> Result<Self, FormatError> {
        let parts = || {
            let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
            let (index, width) = rest.split_once(".p/").unwrap_or((rest, "256"));
            let index = index.replace(['x', '/'], "");
            Some(Self { level: level.parse().ok()?, index: index.parse().ok()?, width: width.parse().ok()? })
        };
        // Other spellings of the same numbers are not paths of a tile.
        let tile = parts().filter(|tile| tile.level <= MAX_LEVEL && tile.width > 0 && tile.to_string() == path);
        tile.ok_or(FormatError::Malformed { what: "a tile's path", expected: "tile/<level>/<index>[.p/<width>]" })
    }
}

/// The root over a row of leaves or of equal subtrees. Over a full tile it is the tile's hash in the level above.
pub fn subtree_root(hashes: &[Hash]) -> Hash {
    hashes.iter().copied().collect::<Frontier>().root()
}
