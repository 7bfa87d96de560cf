//! The signed heads of an org's audit log, for readers: each is a note with the signatures collected so far.

use std::fmt::Write as _;

use orgstream_events::{Timestamp, cause};
use orgstream_transparency::{Hash, SignedNote, TreeHead};
use time::OffsetDateTime;

use super::TrustedKeys;
use crate::{
    DbError, Listing, Page, Placed, TenantTx,
    convert::{fingerprint, from_bigint, to_bigint},
};

/// A checkpoint that the log has signed.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditCheckpoint {
    /// Tree size and root.
    pub head: TreeHead,
    /// When it was made, according to this system.
    pub made_at: Timestamp,
    /// The signed text, with every signature.
    pub note: SignedNote,
}

impl Placed for AuditCheckpoint {
    type Place = u64;

    fn place(&self) -> u64 {
        self.head.size
    }
}

struct Row {
    size: i64,
    root: Vec<u8>,
    origin: String,
    made_at: OffsetDateTime,
    lines: Vec<String>,
}

impl TryFrom<Row> for AuditCheckpoint {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        let head = TreeHead { size: from_bigint(row.size), root: Hash(fingerprint("a root", row.root)?.0) };
        let mut note = format!("{}\n{}\n{}\n\n", row.origin, head.size, head.root);
        for line in row.lines {
            let _ = writeln!(note, "{line}");
        }
        let unreadable = |error| DbError::Undecodable { what: format!("the checkpoint {note:?}"), cause: cause(error) };
        let signed = SignedNote::parse(note.as_bytes()).map_err(unreadable)?;
        Ok(Self { head, made_at: row.made_at.into(), note: signed })
    }
}

/// Signed checkpoints of the bound org ($1) that satisfy a condition; the log's own signature is the first.
macro_rules! signed {
    ($condition:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT made.size, made.root, made.origin, made.made_at,
                ARRAY(
                    SELECT signed.line FROM audit.signatures AS signed
                    WHERE signed.org_id = $1 AND signed.size = made.size ORDER BY signed.made_at, signed.name
                ) AS "lines!"
            FROM audit.checkpoints AS made
            WHERE made.org_id = $1
                AND EXISTS (
                    SELECT FROM audit.signatures AS signed
                    WHERE signed.org_id = $1 AND signed.size = made.size AND signed.name = made.origin
                )
                AND "#
                + $condition,
            $($argument),*
        )
    };
}

/// Converts the row to a head, and verifies its signature: an unsigned head is not to be relied on.
async fn verified(tx: &mut TenantTx, row: Option<Row>) -> Result<Option<AuditCheckpoint>, DbError> {
    let Some(row) = row else { return Ok(None) };
    let head = AuditCheckpoint::try_from(row)?;
    Ok(Some(TrustedKeys::of(tx).await?.only_signed(head)?))
}

/// Returns the newest, if the log has any. An error if it is not signed by the log.
pub async fn newest_checkpoint(tx: &mut TenantTx) -> Result<Option<AuditCheckpoint>, DbError> {
    let org = tx.org().uuid();
    let row = signed!("true ORDER BY made.size DESC LIMIT 1", org);
    let row = row.fetch_optional(tx.connection()).await?;
    verified(tx, row).await
}

/// Returns the one of this size. An error if it is not signed by the log.
pub async fn checkpoint_at(tx: &mut TenantTx, size: u64) -> Result<Option<AuditCheckpoint>, DbError> {
    let org = tx.org().uuid();
    let row = signed!("made.size = $2", org, to_bigint(size));
    let row = row.fetch_optional(tx.connection()).await?;
    verified(tx, row).await
}

/// Returns the best evidence for the event at `idx`: of the checkpoints that contain it the one with the most
/// signatures, and the newest of these. Only the last 64 are considered.
pub async fn checkpoint_with(tx: &mut TenantTx, idx: u64) -> Result<Option<AuditCheckpoint>, DbError> {
    let org = tx.org().uuid();
    let rows = signed!("made.size > $2 ORDER BY made.size DESC LIMIT 64", org, to_bigint(idx));
    let rows = rows.fetch_all(tx.connection()).await?;
    let best = rows.into_iter().max_by_key(|row| (row.lines.len(), row.size));
    verified(tx, best).await
}

/// Returns all of them, the newest first, as they are stored: the caller verifies them.
pub async fn checkpoints(tx: &mut TenantTx, page: &Page<u64>, limit: u16) -> Result<Listing<AuditCheckpoint>, DbError> {
    let (size, to_older) = page.start();
    let org = tx.org().uuid();
    let rows = i64::from(limit) + 1;
    let rows = if to_older {
        signed!("made.size < $2 ORDER BY made.size DESC LIMIT $3", org, size, rows).fetch_all(tx.connection()).await
    } else {
        signed!("made.size > $2 ORDER BY made.size LIMIT $3", org, size, rows).fetch_all(tx.connection()).await
    }?;
    Listing::new(rows, page, limit)
}

/// Requests a checkpoint of the log's current state from the signing process, which is notified when `tx` has finished.
pub async fn ask_for_checkpoint(mut tx: TenantTx) -> Result<(), DbError> {
    let org = tx.org().uuid();
    sqlx::query!("SELECT pg_notify('audit_sign', $1)", org.to_string()).fetch_one(tx.connection()).await?;
    tx.finish().await
}

/// The signing process's published policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPolicy {
    /// The log's key, by its host's name.
    pub vkey: String,
    /// The lines about witnesses, of a C2SP tlog-policy.
    pub witnesses: String,
}

/// Returns the notes by which one key of the audit logs handed over to the next.
pub async fn handovers(tx: &mut TenantTx) -> Result<Vec<String>, DbError> {
    let notes = sqlx::query_scalar("SELECT note FROM ops.log_handovers ORDER BY said_at, note");
    Ok(notes.fetch_all(tx.connection()).await?)
}

/// Returns the newest key and the configured witnesses, if anything was ever signed.
pub async fn policy(tx: &mut TenantTx) -> Result<Option<LogPolicy>, DbError> {
    let policy =
        sqlx::query_as!(LogPolicy, "SELECT vkey, witnesses FROM ops.log_policies ORDER BY said_at DESC LIMIT 1");
    Ok(policy.fetch_optional(tx.connection()).await?)
}

/// Returns every key that ever signed the audit logs, as published by the signing process.
pub async fn keys(tx: &mut TenantTx) -> Result<Vec<String>, DbError> {
    let keys = sqlx::query_scalar!("SELECT vkey FROM ops.log_policies ORDER BY said_at");
    Ok(keys.fetch_all(tx.connection()).await?)
}
