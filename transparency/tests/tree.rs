//! The tree: compared with a separate, naive implementation of the definitions of RFC 6962, for every size up to 200.
#![cfg(test)]

use std::{cell::RefCell, collections::BTreeMap};

use orgstream_transparency::{
    FormatError, Frontier, Hash, MAX_TREE_SIZE, Plan, ProofError, TILE_WIDTH, Tile, Tiles, TreeHead, leaf_hash,
    subtree_root, verify_consistency, verify_inclusion,
};
use proptest::prelude::*;

/// Past a quarter of a tile and all shapes of small trees; [`LARGE`] is for the edges of tiles.
const SIZES: u64 = 200;
const LARGE: [u64; 9] = [255, 256, 257, 511, 512, 513, 65_535, 65_536, 66_000];

/// The tree by its definition. A subtree is hashed once.
struct Naive {
    leaves: Vec<Hash>,
    roots: RefCell<BTreeMap<(u64, u64), Hash>>,
}

impl Naive {
    fn new(size: u64) -> Self {
        let leaves = (0..size).map(|index| leaf_hash(index.to_string().as_bytes())).collect();
        Self { leaves, roots: RefCell::default() }
    }

    fn leaf(&self, index: u64) -> Hash {
        self.leaves[index as usize]
    }

    /// MTH(D[start:end]).
    fn root(&self, start: u64, end: u64) -> Hash {
        match end - start {
            0 => return Hash::OF_NOTHING,
            1 => return self.leaf(start),
            _ => {}
        }
        if let Some(root) = self.roots.borrow().get(&(start, end)) {
            return *root;
        }
        let middle = start + half(end - start);
        let root = subtree_root(&[self.root(start, middle), self.root(middle, end)]);
        self.roots.borrow_mut().insert((start, end), root);
        root
    }

    fn head(&self, size: u64) -> TreeHead {
        TreeHead { size, root: self.root(0, size) }
    }

    /// PATH(m, D[start:end]).
    fn path(&self, index: u64, start: u64, end: u64) -> Vec<Hash> {
        if end - start == 1 {
            return Vec::new();
        }
        let middle = start + half(end - start);
        let (mut path, sibling) = if index < middle {
            (self.path(index, start, middle), self.root(middle, end))
        } else {
            (self.path(index, middle, end), self.root(start, middle))
        };
        path.push(sibling);
        path
    }

    /// SUBPROOF(m, D[start:end], known).
    fn subproof(&self, old: u64, start: u64, end: u64, known: bool) -> Vec<Hash> {
        if old == end {
            return if known { Vec::new() } else { vec![self.root(start, end)] };
        }
        let middle = start + half(end - start);
        let (mut proof, sibling) = if old <= middle {
            (self.subproof(old, start, middle, known), self.root(middle, end))
        } else {
            (self.subproof(old, middle, end, false), self.root(start, middle))
        };
        proof.push(sibling);
        proof
    }

    /// Every tile of a tree of this size, by the definition of tlog-tiles.
    fn tiles(&self, size: u64) -> Tiles {
        let mut tiles = Tiles::new();
        for level in 0_u32.. {
            let span = 256_u64.pow(level);
            let hashes: Vec<_> = (0..size / span).map(|nth| self.root(nth * span, (nth + 1) * span)).collect();
            if hashes.is_empty() {
                break;
            }
            for (index, hashes) in hashes.chunks(256).enumerate() {
                tiles.insert(tile(level, index as u64, hashes.len()), hashes.to_vec());
            }
        }
        tiles
    }
}

/// The largest power of two below `size`.
fn half(size: u64) -> u64 {
    size.next_power_of_two() / 2
}

fn tile(level: u32, index: u64, width: usize) -> Tile {
    let partial = if width < 256 { format!(".p/{width}") } else { String::new() };
    assert!(index < 1_000);
    format!("tile/{level}/{index:03}{partial}").parse().unwrap()
}

/// Computes the proof, from only the tiles that the plan requires.
fn prove(plan: &Plan, tiles: &Tiles) -> Vec<Hash> {
    let needed = plan.tiles();
    let fetched = tiles.iter().filter(|(tile, _)| needed.contains(tile)).map(|(tile, hashes)| (*tile, hashes.clone()));
    plan.prove(&fetched.collect()).unwrap()
}

fn flip(hash: Hash, bit: usize) -> Hash {
    let mut bytes = hash.0;
    bytes[bit / 8] ^= 1 << (bit % 8);
    Hash(bytes)
}

/// Every way to change one part of a proof; bits of `every` are flipped one by one.
fn tampered(proof: &[Hash], every: usize) -> Vec<Vec<Hash>> {
    let mut all = vec![[proof, &[Hash::OF_NOTHING]].concat(), [&[Hash::OF_NOTHING], proof].concat()];
    for place in 0..proof.len() {
        for bit in (0..256).step_by(every) {
            let mut changed = proof.to_vec();
            changed[place] = flip(changed[place], bit);
            all.push(changed);
        }
        let mut without = proof.to_vec();
        without.remove(place);
        all.push(without);
        if place > 0 {
            let mut swapped = proof.to_vec();
            swapped.swap(place - 1, place);
            all.push(swapped);
        }
    }
    all
}

#[test]
fn the_roots_are_those_of_other_implementations() {
    let mut frontier = Frontier::default();
    assert_eq!(frontier.head(), TreeHead::EMPTY);
    for line in include_str!("data/roots.txt").lines().skip(1) {
        let [size, data, root] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let data = if data == "-" { "" } else { data };
        frontier.append(leaf_hash(&unhex(data)));
        let root = Hash(unhex(root).try_into().unwrap());
        assert_eq!(frontier.head(), TreeHead { size: size.parse().unwrap(), root });
    }
    assert_eq!(frontier.size(), 8);
}

#[test]
fn the_proof_of_consistency_is_that_of_another_implementation() {
    let lines = include_str!("data/roots.txt").lines().skip(1);
    let leaves = lines.map(|line| leaf_hash(&unhex(line.split(' ').nth(1).unwrap().trim_start_matches('-'))));
    let tiles = [(tile(0, 0, 8), leaves.collect())].into();
    let expected = [
        "ApjRIpBtz8EIkstTpzmS/FufST6kybrbJ7eRtBJ6f+c=",
        "B1Bqhf2d0vEg62lPhgEeW7RmLlxBWmKRcDPUqWJEh+c=",
        "+sVCA+fMaWzw38tCySodnbr3CtnmIfS9jZhmLwDjwSU=",
        "a0eq8p7jwq+a+Im8H7klTavTEXfxYjLdaqsDXKOb9uQ=",
    ];
    let expected: Vec<Hash> = expected.map(|hash| hash.parse().unwrap()).into();
    assert_eq!(Plan::consistency(3, 8).unwrap().prove(&tiles).unwrap(), expected);
}

fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

#[test]
fn a_frontier_has_the_root_of_its_leaves_and_survives_storage() {
    let naive = Naive::new(SIZES);
    let mut frontier = Frontier::default();
    for size in 0..=SIZES {
        assert_eq!(frontier.head(), naive.head(size));
        assert_eq!(Frontier::from_bytes(&frontier.to_bytes()), Ok(frontier.clone()));
        // One at a time or many at once is the same.
        let mut rest = frontier.clone();
        rest.extend((size..SIZES).map(|index| naive.leaf(index)));
        assert_eq!(rest.head(), naive.head(SIZES));
        if size < SIZES {
            frontier.append(naive.leaf(size));
        }
    }
}

#[test]
fn a_stored_frontier_that_does_not_fit_its_size_is_refused() {
    let frontier: Frontier = (0..7).map(|index: u8| leaf_hash(&[index])).collect();
    let bytes = frontier.to_bytes();
    assert_eq!(bytes.len(), 8 + 3 * 32);
    for length in 0..bytes.len() {
        Frontier::from_bytes(&bytes[..length]).unwrap_err();
    }
    Frontier::from_bytes(&[bytes.as_slice(), &[0; 32]].concat()).unwrap_err();
    let of_size = |size: u64| [size.to_be_bytes().as_slice(), &bytes[8..]].concat();
    Frontier::from_bytes(&of_size(8)).unwrap_err();
    // As many subtrees: only the head differs, by its size.
    assert_ne!(Frontier::from_bytes(&of_size(11)).unwrap().head(), frontier.head());
    let largest = [MAX_TREE_SIZE.to_be_bytes().as_slice(), &[7; 63 * 32]].concat();
    assert_eq!(Frontier::from_bytes(&largest).unwrap().to_bytes(), largest);
    let larger = [(MAX_TREE_SIZE + 1).to_be_bytes().as_slice(), &[7; 32]].concat();
    let error = Frontier::from_bytes(&larger).unwrap_err();
    assert_eq!(error.to_string(), "the frontier's size is not a number up to 2^63 - 1");
}

#[test]
fn every_inclusion_is_proven_and_nothing_else() {
    let naive = Naive::new(SIZES);
    for size in 1..=SIZES {
        let (tiles, head) = (naive.tiles(size), naive.head(size));
        for index in 0..size {
            let proof = prove(&Plan::inclusion(index, size).unwrap(), &tiles);
            assert_eq!(proof, naive.path(index, 0, size), "{index} of {size}");
            let leaf = naive.leaf(index);
            assert_eq!(verify_inclusion(leaf, index, head, &proof), Ok(()));
            for other in (0..size + 2).filter(|other| *other != index) {
                verify_inclusion(leaf, other, head, &proof).unwrap_err();
            }
            verify_inclusion(flip(leaf, 255), index, head, &proof).unwrap_err();
            verify_inclusion(leaf, index, TreeHead { root: flip(head.root, 0), ..head }, &proof).unwrap_err();
            for other in [size - 1, size + 1, size * 2].into_iter().filter(|other| *other <= SIZES) {
                verify_inclusion(leaf, index, naive.head(other), &proof).unwrap_err();
            }
            // Every bit in small trees, some of every hash in the others.
            for proof in tampered(&proof, if size <= 17 { 1 } else { 131 }) {
                verify_inclusion(leaf, index, head, &proof).unwrap_err();
            }
        }
    }
}

#[test]
fn every_consistency_is_proven_and_nothing_else() {
    let naive = Naive::new(SIZES);
    for size in 1..=SIZES {
        let (tiles, new) = (naive.tiles(size), naive.head(size));
        for old_size in 0..=size {
            let old = naive.head(old_size);
            let proof = prove(&Plan::consistency(old_size, size).unwrap(), &tiles);
            let expected = if old_size == 0 { Vec::new() } else { naive.subproof(old_size, 0, size, true) };
            assert_eq!(proof, expected, "{old_size} to {size}");
            assert_eq!(verify_consistency(old, new, &proof), Ok(()));
            verify_consistency(TreeHead { root: flip(old.root, 7), ..old }, new, &proof).unwrap_err();
            for other in [old_size.wrapping_sub(1), old_size + 1].into_iter().filter(|other| *other <= SIZES) {
                verify_consistency(TreeHead { size: other, ..old }, new, &proof).unwrap_err();
            }
            for proof in tampered(&proof, if size <= 17 { 1 } else { 131 }) {
                verify_consistency(old, new, &proof).unwrap_err();
            }
            // Any tree follows the empty one. Every other is compared with its earlier state.
            if old_size > 0 {
                verify_consistency(old, TreeHead { root: flip(new.root, 7), ..new }, &proof).unwrap_err();
            }
        }
    }
}

#[test]
fn proofs_across_the_edges_of_tiles_take_few_tiles() {
    let naive = Naive::new(LARGE[8]);
    for size in LARGE {
        let (tiles, head) = (naive.tiles(size), naive.head(size));
        let root = Plan::root(size);
        assert_eq!(prove(&root, &tiles), [head.root]);
        for near in LARGE.into_iter().filter(|near| *near <= size) {
            for index in [0, near / 3, near / 2, near - 1] {
                let plan = Plan::inclusion(index, size).unwrap();
                assert!(plan.tiles().len() <= 6, "{:?}", plan.tiles());
                assert_eq!(verify_inclusion(naive.leaf(index), index, head, &prove(&plan, &tiles)), Ok(()));
            }
            let plan = Plan::consistency(near, size).unwrap();
            assert!(plan.tiles().len() <= 6, "{:?}", plan.tiles());
            assert_eq!(verify_consistency(naive.head(near), head, &prove(&plan, &tiles)), Ok(()));
        }
    }
}

#[test]
fn a_missing_tile_is_named() {
    let plan = Plan::inclusion(300, 513).unwrap();
    let error = plan.prove(&Tiles::new()).unwrap_err();
    assert_eq!(error.to_string(), "tile/0/001 is needed and was not fetched");
    let short = plan.tiles().into_iter().map(|tile| (tile, vec![Hash::OF_NOTHING; 3])).collect();
    plan.prove(&short).unwrap_err();
}

#[test]
fn a_tree_can_be_stored_as_it_grows() {
    let naive = Naive::new(LARGE[8]);
    let (mut stored, mut old) = (Tiles::new(), 0);
    for size in [1, 3, 255, 256, 300, 1_000, 65_535, 65_536, 65_536, LARGE[8]] {
        for tile in Tile::grown(old, size) {
            let first = tile.index() * u64::from(TILE_WIDTH);
            let hashes = (first..first + u64::from(tile.width())).map(|hash| match tile.level().checked_sub(1) {
                None => naive.leaf(hash),
                Some(below) => subtree_root(&stored[&self::tile(below.into(), hash, 256)]),
            });
            let hashes = hashes.collect();
            stored.insert(tile, hashes);
        }
        let missing: Vec<_> = naive.tiles(size).into_iter().filter(|(tile, _)| !stored.contains_key(tile)).collect();
        assert_eq!(missing, [], "at {size}");
        assert!(naive.tiles(size).iter().all(|(tile, hashes)| stored[tile] == *hashes));
        old = size;
    }
    assert_eq!(Tile::grown(70_000, 70_000).count(), 0);
    // The example of the specification.
    let paths: Vec<_> = Tile::grown(0, 70_000).map(|tile| tile.to_string()).collect();
    assert_eq!(paths.len(), 273 + 1 + 1 + 1 + 1);
    assert_eq!(paths[272..], ["tile/0/272", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]);
}

#[test]
fn paths_of_tiles_are_read_in_one_form_only() {
    for path in ["tile/0/000", "tile/7/x001/x234/067", "tile/3/999.p/255", "tile/0/x001/000.p/1"] {
        assert_eq!(path.parse::<Tile>().unwrap().to_string(), path);
    }
    let tile: Tile = "tile/2/x001/x234/067.p/5".parse().unwrap();
    assert_eq!((tile.level(), tile.index(), tile.width()), (2, 1_234_067, 5));
    let wrong = "tile/0/0 tile/0/00 tile/00/000 tile/8/000 tile/0/x000/001 tile/0/001/002 tile/0/x001 tile/0/000.p/0 \
        tile/0/000.p/256 tile/0/000.p/01 tile/0/000/ /tile/0/000 tile/entries/000 tile/0/-01 tile/0/+01 tile/0/ \
        tile/0/x999/x999/x999/x999/x999/x999/999";
    for path in wrong.split(' ') {
        path.parse::<Tile>().unwrap_err();
    }
}

#[test]
fn a_later_tile_stands_in_for_its_beginning() {
    let bytes: Vec<u8> = (0..=255).flat_map(|byte| [byte; 32]).collect();
    let (partial, full): (Tile, Tile) = ("tile/0/000.p/2".parse().unwrap(), "tile/0/000".parse().unwrap());
    assert_eq!(partial.read(&bytes[..64]).unwrap(), [Hash([0; 32]), Hash([1; 32])]);
    assert_eq!(partial.read(&bytes[..96]).unwrap(), [Hash([0; 32]), Hash([1; 32])]);
    assert_eq!(partial.read(&bytes).unwrap(), [Hash([0; 32]), Hash([1; 32])]);
    assert_eq!(full.read(&bytes).unwrap().len(), 256);
    for wrong in [&bytes[..63], &bytes[..65], &[bytes.as_slice(), &[0; 32]].concat(), &[]] {
        assert!(matches!(partial.read(wrong), Err(FormatError::Malformed { what: "a tile", .. })));
    }
    full.read(&bytes[..8_160]).unwrap_err();
}

#[test]
fn what_cannot_be_proven_is_said() {
    assert_eq!(Plan::inclusion(5, 5), Err(ProofError::OutsideTree { index: 5, size: 5 }));
    assert_eq!(Plan::consistency(6, 5), Err(ProofError::Shrunk { old: 6, new: 5 }));
    let (three, five) = (Naive::new(5).head(3), Naive::new(5).head(5));
    assert_eq!(verify_consistency(five, three, &[]), Err(ProofError::Shrunk { old: 5, new: 3 }));
    assert_eq!(verify_consistency(three, five, &[]), Err(ProofError::TooShort));
    assert_eq!(verify_consistency(TreeHead::EMPTY, five, &[Hash::OF_NOTHING]), Err(ProofError::TooLong));
    let forked = TreeHead { root: three.root, ..five };
    assert_eq!(verify_consistency(five, forked, &[]), Err(ProofError::WrongOldRoot));
    let error = verify_inclusion(three.root, 7, three, &[]).unwrap_err();
    assert_eq!(error.to_string(), "there is no leaf 7 in a tree of 3");
}

proptest! {
    #[test]
    fn hostile_proofs_get_an_answer(
        (index, old, new) in (any::<u64>(), any::<u64>(), any::<u64>()),
        proof in proptest::collection::vec(any::<[u8; 32]>().prop_map(Hash), 0..70),
    ) {
        let (old, new) = (TreeHead { size: old, ..TreeHead::EMPTY }, TreeHead { size: new, ..TreeHead::EMPTY });
        prop_assert!(verify_inclusion(Hash::OF_NOTHING, index, new, &proof).is_err());
        prop_assert!(verify_consistency(old, new, &proof).is_err());
    }

    #[test]
    fn plans_of_huge_trees_are_small(index in any::<u64>(), size in any::<u64>()) {
        for plan in [Plan::inclusion(index, size), Plan::consistency(index, size)].into_iter().flatten() {
            prop_assert!(plan.tiles().len() <= 16);
            prop_assert!(plan.tiles().iter().all(|tile| tile.to_string().parse() == Ok(*tile)));
        }
        prop_assert!(Plan::root(size).tiles().len() <= 8);
    }
}
