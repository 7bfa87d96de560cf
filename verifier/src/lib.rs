//! The audit log of one org, exported into a folder, and its proofs for an auditor who does not trust its operator.
//!
//! A bundle has the events' bytes, the tree over them, every signed head, and renderings for people and for other
//! programs. The writer and the verifier of a bundle share the formats here and nothing else. Verification only reads
//! files: no network, no database, no account, no clock, and not a byte is written.

pub mod account;
mod bundle;
mod cli;
mod files;
mod lacked;
pub mod output;
mod render;
mod report;
mod verify;

pub use bundle::{
    CHECKPOINTS, CSV, FORMAT, HANDOVERS, JSONL, ListedFile, MANIFEST, Manifest, OCSF, POLICY, Payload, Without,
    decode_entries, decode_payloads, encode_entries, encode_payloads, log_key, payloads_path,
};
pub use cli::{AccountArgs, ReceiptArgs, VerifyArgs};
pub use render::{CSV_HEAD, Entry};
pub use report::{Finding, Outcome, Report};
pub use verify::{KnownHead, Request, verify, verify_account};
