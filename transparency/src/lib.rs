//! A log that an auditor can verify without trusting its operator.
//!
//! The leaves of a Merkle tree (RFC 6962) are the hashes of an org's events. Its operator signs the tree's head from time
//! to time, a checkpoint; witnesses run by third parties sign it too, after verifying that it continues what they signed
//! before. From then on no event can be changed, dropped or inserted without contradicting signatures that the operator
//! cannot make. All formats are those of C2SP (signed-note, tlog-checkpoint, tlog-cosignature, tlog-tiles, tlog-proof,
//! tlog-witness), so other programs can check Orgstream's logs.
//!
//! This crate is pure: no I/O, no clock, no randomness, no storage. The server that keeps the log, the witness and the
//! offline verifier all use it. For any input it returns a result, in bounded time.
//!
//! * The log: [`leaf_hash`], [`Frontier`] to append, [`Tile`]s to store, [`Plan`] to prove, [`LogSigner`] to sign.
//! * The witness: [`AddCheckpoint::decide`], then [`Accepted::cosign`].
//! * The auditor: [`Policy`] and [`verify_event`] for one event, [`verify_consistency`] for two heads of a log.
//!
//! ```
//! use orgstream_transparency::*;
//!
//! // A log of three events, its head signed by the log ...
//! let log = LogSigner::from_seed("audit.example.com/org_1".parse()?, &[1; 32]);
//! let leaves = [&b"first"[..], b"second", b"third"].map(leaf_hash);
//! let frontier: Frontier = leaves.into_iter().collect();
//! let mut checkpoint = log.sign(frontier.head());
//!
//! // ... and by a witness that has seen nothing of it before.
//! let witness = WitnessSigner::from_seed("witness.example.org/w1".parse()?, &[2; 32]);
//! let request = AddCheckpoint::new(0, Vec::new(), checkpoint.clone())?;
//! let accepted = request.decide(&[log.verifier().clone()], None)?;
//! let answer = accepted.cosign(&witness, 1_700_000_000);
//! checkpoint.add_cosignatures(&[answer], &[witness.verifier().clone()]);
//!
//! // Evidence for the second event, from the tiles that it needs.
//! let plan = Plan::inclusion(1, 3)?;
//! let tiles = plan.tiles().into_iter().map(|tile| (tile, leaves.to_vec())).collect();
//! let evidence = Evidence { extra: None, index: 1, proof: plan.prove(&tiles)?, checkpoint };
//!
//! // The file, the event and the two keys are all that an auditor needs.
//! let policy = Policy::new(log.verifier().clone(), vec![witness.verifier().clone()], 1)?;
//! let proven = verify_event(b"second", evidence.to_string().as_bytes(), &policy)?;
//! assert_eq!(proven.seen.checkpoint.head().size, 3);
//! assert!(verify_event(b"sec0nd", evidence.to_string().as_bytes(), &policy).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod evidence;
mod frontier;
mod handover;
mod hash;
mod keys;
mod note;
mod plan;
mod policy;
mod policy_file;
mod receipt;
mod text;
mod tile;
mod verify;
mod witness;

pub use checkpoint::Checkpoint;
pub use evidence::{Evidence, EvidenceError, MAX_EVIDENCE_BYTES, Proven, verify_event};
pub use frontier::Frontier;
pub use handover::{HandOver, HandOverError};
pub use hash::{Hash, MAX_TREE_SIZE, TreeHead, leaf_hash};
pub use keys::{
    BadSignature, Log, LogKey, LogSigner, Role, SignerKey, VerifierKey, Witness, WitnessKey, WitnessSigner,
};
pub use note::{KeyName, MAX_NAME_BYTES, MAX_NOTE_BYTES, MAX_SIGNATURES, SignatureLine, SignedNote};
pub use plan::{MissingTile, Plan};
pub use policy::{Distrust, MAX_WITNESSES, Policy, PolicyError, Witnessed};
pub use policy_file::{KnownWitness, PolicyCheckError, PolicyFile, PolicyFileError};
pub use receipt::{Receipt, ReceiptError};
pub use text::FormatError;
pub use tile::{TILE_WIDTH, Tile, Tiles, subtree_root};
pub use verify::{ProofError, verify_consistency, verify_inclusion};
pub use witness::{Accepted, AddCheckpoint, MAX_ADD_CHECKPOINT_BYTES, Refusal, SIZE_CONTENT_TYPE, parse_size};
