//! Messages that a pipeline could not apply, and the later ones of the same aggregates that wait behind them.
//!
//! Unlike a read model this is not a function of the events: it records local failures, and their times.

use std::collections::BTreeSet;

use orgstream_events::{AggregateName, Pipeline, Timestamp};
use time::OffsetDateTime;

use crate::{
    ApplyTx, BoundOrg, DbError, TenantTx,
    apply::version_setting,
    convert::{column, from_bigint, parsed, to_bigint},
    read_model::ReadModel,
};

/// The set of parked messages depends on local failures as well, so a replay has none.
pub(crate) const TABLE: ReadModel = ReadModel::by_text(
    "parked",
    "ops.parked",
    "lpad(seq::text, 20, '0')",
    &["pipeline", "seq", "aggregate_type", "aggregate_id", "subject", "message", "state"],
)
.with_what_happened("AND pipeline = 'read_models'", &["reason", "attempts", "parked_at", "verified", "expected"]);

/// The same of the index of words.
pub(crate) const OF_SEARCH: ReadModel =
    TABLE.with_what_happened("AND pipeline = 'search'", TABLE.local).of(Pipeline::Search);

/// The reason why a message is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkedState {
    /// It could not be applied.
    Failed,
    /// An earlier message of its aggregate could not be applied.
    Waiting,
}

impl ParkedState {
    /// The name in the database and in APIs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Waiting => "waiting",
        }
    }
}

/// A message to be parked.
#[derive(Debug, Clone, Copy)]
pub struct Park<'a> {
    /// The stream sequence.
    pub seq: u64,
    /// Its subject; the last two tokens name the aggregate.
    pub subject: &'a str,
    /// The commit's bytes; for a message with an invalid signature, the message as received.
    pub message: &'a [u8],
    /// Whether the signature was valid.
    pub verified: bool,
    /// The last sequence of the subject that its publisher expected, as enforced by the log.
    pub expected: Option<u64>,
    /// Failed itself, or waiting.
    pub state: ParkedState,
    /// The failure, in one line; empty when waiting.
    pub reason: &'a str,
    /// The number of tries; added to the stored one.
    pub attempts: u32,
}

/// The stored state of a parked message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The stream sequence.
    pub seq: u64,
    /// Its subject.
    pub subject: String,
    /// Failed itself, or waiting.
    pub state: ParkedState,
    /// The failure.
    pub reason: String,
    /// The number of tries.
    pub attempts: u32,
    /// When it was first parked.
    pub parked_at: Timestamp,
}

impl Parked {
    /// `<type>.<id>`; see [`aggregate_of`].
    pub fn aggregate(&self) -> &str {
        aggregate_of(&self.subject)
    }
}

/// A parked message with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedMessage {
    /// Its stored state.
    pub parked: Parked,
    /// The commit's bytes; for a message with an invalid signature, the message as received.
    pub message: Vec<u8>,
    /// Whether the signature was valid.
    pub verified: bool,
    /// The last sequence of the subject that its publisher expected, as enforced by the log.
    pub expected: Option<u64>,
}

/// The aggregate of a subject as `<type>.<id>`, the text form of an `AggregateId`. It need not be one that this version
/// can read, and is empty where the subject names none.
pub fn aggregate_of(subject: &str) -> &str {
    subject.splitn(4, '.').nth(3).unwrap_or_default()
}

/// Parks messages in the open batch's pipeline. One that is parked already is updated.
pub async fn park(batch: &mut ApplyTx, org: BoundOrg, messages: &[Park<'_>]) -> Result<(), DbError> {
    let (connection, pipeline) = batch.connection(org)?;
    // PostgreSQL text cannot contain a NUL character, and the reason may quote unreadable input.
    let reasons = column(messages, |message| message.reason.replace('\0', " "));
    let names = column(messages, |message| AggregateName::of_subject(message.subject));
    sqlx::query!(
        "INSERT INTO ops.parked AS parked
            (org_id, pipeline, rm_version, seq, aggregate_type, aggregate_id, subject, message, state, reason, attempts,
            verified, expected)
        SELECT $1, $2, coalesce(nullif(current_setting($13, true), '')::integer, 1), message.*
        FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::text[], $9::text[],
            $10::integer[], $11::boolean[], $12::bigint[]) AS message
        ON CONFLICT (org_id, pipeline, rm_version, seq) DO UPDATE SET
            state = excluded.state,
            reason = excluded.reason,
            attempts = parked.attempts + excluded.attempts",
        org.org().uuid(),
        pipeline.name(),
        &column(messages, |message| to_bigint(message.seq)),
        column(&names, |name| name.aggregate.as_str()) as _,
        column(&names, |name| name.id.as_str()) as _,
        column(messages, |message| message.subject) as _,
        column(messages, |message| message.message) as _,
        column(messages, |message| message.state.name()) as _,
        &reasons,
        &column(messages, |message| i32::try_from(message.attempts).unwrap_or(i32::MAX)),
        &column(messages, |message| message.verified),
        &column(messages, |message| message.expected.map(to_bigint)) as _,
        version_setting(pipeline),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the aggregates (`<type>.<id>`) that have parked messages in the open batch's pipeline.
pub async fn aggregates(batch: &mut ApplyTx, org: BoundOrg) -> Result<BTreeSet<String>, DbError> {
    let (connection, pipeline) = batch.connection(org)?;
    let aggregates = sqlx::query_scalar!(
        r#"SELECT DISTINCT aggregate_type || CASE aggregate_id WHEN '' THEN '' ELSE '.' || aggregate_id END AS "aggregate!"
        FROM ops.parked WHERE org_id = $1 AND pipeline = $2"#,
        org.org().uuid(),
        pipeline.name(),
    );
    Ok(aggregates.fetch_all(connection).await?.into_iter().collect())
}

/// Returns the first `limit` parked messages of one aggregate in the open batch's pipeline, in stream order.
pub async fn of_aggregate(
    batch: &mut ApplyTx,
    org: BoundOrg,
    aggregate: &AggregateName,
    limit: u16,
) -> Result<Vec<ParkedMessage>, DbError> {
    let (connection, pipeline) = batch.connection(org)?;
    let rows = sqlx::query!(
        "SELECT pipeline, seq, subject, message, verified, expected, state, reason, attempts, parked_at FROM ops.parked
        WHERE org_id = $1 AND pipeline = $2 AND aggregate_type = $3 AND aggregate_id = $4 ORDER BY seq LIMIT $5",
        org.org().uuid(),
        pipeline.name(),
        aggregate.aggregate,
        aggregate.id,
        i64::from(limit),
    );
    rows.fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| {
            let parked = Row {
                pipeline: row.pipeline,
                seq: row.seq,
                subject: row.subject,
                state: row.state,
                reason: row.reason,
                attempts: row.attempts,
                parked_at: row.parked_at,
            };
            let (verified, expected) = (row.verified, row.expected.map(from_bigint));
            Ok(ParkedMessage { parked: parked.try_into()?, message: row.message, verified, expected })
        })
        .collect()
}

/// Removes messages from the open batch's pipeline: they were applied, or given up. Returns their number.
pub async fn remove(batch: &mut ApplyTx, org: BoundOrg, seqs: &[u64]) -> Result<u64, DbError> {
    let (connection, pipeline) = batch.connection(org)?;
    let removed = sqlx::query!(
        "DELETE FROM ops.parked WHERE org_id = $1 AND pipeline = $2 AND seq = ANY ($3)",
        org.org().uuid(),
        pipeline.name(),
        &column(seqs, |seq| to_bigint(*seq)),
    );
    Ok(removed.execute(connection).await?.rows_affected())
}

struct Row {
    pipeline: String,
    seq: i64,
    subject: String,
    state: String,
    reason: String,
    attempts: i32,
    parked_at: OffsetDateTime,
}

impl TryFrom<Row> for Parked {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            pipeline: parsed("a pipeline", row.pipeline)?,
            seq: from_bigint(row.seq),
            subject: row.subject,
            state: match row.state.as_str() {
                "failed" => ParkedState::Failed,
                "waiting" => ParkedState::Waiting,
                _ => return Err(DbError::Unreadable { what: "a parked state", value: row.state }),
            },
            reason: row.reason,
            attempts: u32::try_from(row.attempts).unwrap_or_default(),
            parked_at: row.parked_at.into(),
        })
    }
}

/// Returns the parked messages of all pipelines, ordered by pipeline and sequence, after the given position. Without
/// those of pipelines that only a newer version knows.
pub async fn list(tx: &mut TenantTx, after: Option<(Pipeline, u64)>, limit: u16) -> Result<Vec<Parked>, DbError> {
    let org = tx.org().uuid();
    let (pipeline, seq) = after.map_or(("", 0), |(pipeline, seq)| (pipeline.name(), seq));
    let rows = sqlx::query_as!(
        Row,
        "SELECT pipeline, seq, subject, state, reason, attempts, parked_at FROM ops.parked
        WHERE org_id = $1 AND (pipeline, seq) > ($2, $3) AND pipeline = ANY ($5) ORDER BY pipeline, seq LIMIT $4",
        org,
        pipeline,
        to_bigint(seq),
        i64::from(limit),
        Pipeline::NAMES as _,
    );
    rows.fetch_all(tx.connection()).await?.into_iter().map(Parked::try_from).collect()
}

/// Returns the stored bytes of one parked message, and whether its signature was valid.
pub async fn bytes(tx: &mut TenantTx, pipeline: Pipeline, seq: u64) -> Result<Option<(Vec<u8>, bool)>, DbError> {
    let stored =
        sqlx::query_as("SELECT message, verified FROM ops.parked WHERE org_id = $1 AND pipeline = $2 AND seq = $3");
    let stored = stored.bind(tx.org().uuid()).bind(pipeline.name()).bind(to_bigint(seq));
    Ok(stored.fetch_optional(tx.connection()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aggregate_of_a_subject_reads_like_an_aggregate_id() {
        assert_eq!(aggregate_of("ev.3.org_1.record.res_2"), "record.res_2");
        assert_eq!(aggregate_of("ev.3.org_1.record.a.b"), "record.a.b");
        assert_eq!(aggregate_of("ev.3.org_1"), "");
    }
}
