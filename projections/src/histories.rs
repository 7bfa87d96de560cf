//! The messages that identify each stream of the log, and the streams found to have lost history. No tenant data.

use orgstream_events::{Fingerprint, Timestamp};
use time::OffsetDateTime;

use crate::{
    Database, DbError,
    convert::{column, fingerprint, from_bigint, to_bigint},
};

/// The era of a stream without any operator's decision.
const FIRST_ERA: i32 = 1;

/// The stored state of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHistory {
    /// The stream's name.
    pub stream: String,
    /// Its last known message.
    pub seq: u64,
    /// The hash of that message's bytes.
    pub digest: Fingerprint,
    /// The number of operators' decisions about the stream, counted from 1.
    pub era: i32,
    /// How and when a loss of history was detected.
    pub lost: Option<(String, Timestamp)>,
}

impl StreamHistory {
    /// The state of a stream that has none stored.
    pub fn new(stream: String, seq: u64, digest: Fingerprint) -> Self {
        Self { stream, seq, digest, era: FIRST_ERA, lost: None }
    }
}

/// A step of a history: from the stored message to a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryStep {
    /// The sequence confirmed to still exist; none when nothing was stored.
    pub from: Option<u64>,
    /// The state to store.
    pub to: StreamHistory,
}

struct Row {
    stream: String,
    seq: i64,
    digest: Vec<u8>,
    era: i32,
    lost: Option<String>,
    lost_at: Option<OffsetDateTime>,
}

impl Database {
    /// Returns the stored state of all streams.
    pub async fn histories(&self) -> Result<Vec<StreamHistory>, DbError> {
        let rows =
            sqlx::query_as!(Row, "SELECT stream, seq, digest, era, lost, lost_at FROM ops.histories ORDER BY stream");
        let rows = rows.fetch_all(self.ops_pool()).await?.into_iter().map(|row| {
            Ok(StreamHistory {
                stream: row.stream,
                seq: from_bigint(row.seq),
                digest: fingerprint("a digest", row.digest)?,
                era: row.era,
                lost: row.lost.zip(row.lost_at.map(Into::into)),
            })
        });
        rows.collect()
    }

    /// Stores later messages, each only if the state that the step begins with is still stored: another process may
    /// have advanced it, found the stream lost, or recorded a decision about it.
    pub async fn go_on_with(&self, steps: &[HistoryStep]) -> Result<(), DbError> {
        let (new, known): (Vec<_>, Vec<_>) = steps.iter().cloned().partition(|step| step.from.is_none());
        if !known.is_empty() {
            sqlx::query!(
                "UPDATE ops.histories AS history SET seq = step.seq, digest = step.digest, updated_at = now()
                FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::integer[])
                    AS step (stream, began, seq, digest, era)
                WHERE history.stream = step.stream AND history.seq = step.began AND history.era = step.era
                    AND history.lost IS NULL",
                &column(&known, |step| step.to.stream.clone()),
                &column(&known, |step| to_bigint(step.from.unwrap_or_default())),
                &column(&known, |step| to_bigint(step.to.seq)),
                &column(&known, |step| step.to.digest.0.to_vec()),
                &column(&known, |step| step.to.era),
            )
            .execute(self.ops_pool())
            .await?;
        }
        if !new.is_empty() {
            sqlx::query!(
                "INSERT INTO ops.histories (stream, seq, digest)
                SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[]) ON CONFLICT DO NOTHING",
                &column(&new, |step| step.to.stream.clone()),
                &column(&new, |step| to_bigint(step.to.seq)),
                &column(&new, |step| step.to.digest.0.to_vec()),
            )
            .execute(self.ops_pool())
            .await?;
        }
        Ok(())
    }

    /// Records the stream as lost, with its last known message. An earlier record stays; if an operator has decided
    /// since, nothing is recorded.
    pub async fn lose_history(&self, history: &StreamHistory, what: &str) -> Result<(), DbError> {
        sqlx::query!(
            "INSERT INTO ops.histories AS history (stream, seq, digest, era, lost, lost_at)
            VALUES ($1, $2, $3, $4, $5, clock_timestamp())
            ON CONFLICT (stream) DO UPDATE SET
                digest = CASE WHEN history.seq < excluded.seq THEN excluded.digest ELSE history.digest END,
                seq = greatest(history.seq, excluded.seq),
                lost = excluded.lost,
                lost_at = excluded.lost_at,
                updated_at = now()
            WHERE history.lost IS NULL AND history.era = excluded.era",
            history.stream,
            to_bigint(history.seq),
            history.digest.0.as_slice(),
            history.era,
            what,
        )
        .execute(self.ops_pool())
        .await?;
        Ok(())
    }

    /// Records an operator's decision: from here on the stream's current state is accepted, with this message as the
    /// last known one. False when it was not lost.
    pub async fn settle_history(&self, stream: &str, seq: u64, digest: &Fingerprint) -> Result<bool, DbError> {
        let settled = sqlx::query!(
            "UPDATE ops.histories SET seq = $2, digest = $3, era = era + 1, lost = NULL, lost_at = NULL, updated_at = now()
            WHERE stream = $1 AND lost IS NOT NULL",
            stream,
            to_bigint(seq),
            digest.0.as_slice(),
        )
        .execute(self.ops_pool())
        .await?;
        Ok(settled.rows_affected() == 1)
    }
}
