//! Commands with an idempotency key: each one's effect, and the hash of its body.
//!
//! An aggregate recognizes a repeated command by its own history; this table detects the same key on another aggregate.

use orgstream_events::{AggregateId, CommandId, Fingerprint, OpenedCommand};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Applied, DbError, TenantTx,
    convert::{column, fingerprint, from_bigint, to_bigint},
    read_model::ReadModel,
};

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "idempotency",
    "ops.idempotency",
    "command_id",
    &["command_id", "fingerprint", "seq", "aggregate_type", "aggregate_id"],
    &[("command_id", |id| CommandId::from_uuid(id).to_string())],
)
.without(&["fingerprint"]);

/// A command that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoneCommand {
    /// The command's id, which its org and key determine.
    pub command_id: CommandId,
    /// The hash of its body.
    pub fingerprint: Fingerprint,
    /// The stream sequence of its commit.
    pub seq: u64,
    /// Its aggregate.
    pub aggregate: AggregateId,
}

/// Stores the commands; one that made several commits is stored with the first of them.
pub(crate) async fn write(connection: &mut PgConnection, org: Uuid, commits: &[Applied]) -> Result<(), DbError> {
    let keyed: Vec<_> = commits
        .iter()
        .flat_map(|Applied { seq, commit }| commit.commands().map(move |command| (command, *seq)))
        .filter_map(|(OpenedCommand { command_id, fingerprint, events }, seq)| {
            Some((command_id, fingerprint?, seq, &events.first()?.header.aggregate.aggregate))
        })
        .collect();
    if keyed.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO ops.idempotency (org_id, command_id, fingerprint, seq, aggregate_type, aggregate_id)
        SELECT $1, done.* FROM unnest($2::uuid[], $3::bytea[], $4::bigint[], $5::text[], $6::text[]) AS done
        ON CONFLICT (org_id, rm_version, command_id) DO NOTHING",
        org,
        &column(&keyed, |(command, ..)| command.uuid()),
        column(&keyed, |(_, fingerprint, ..)| fingerprint.0.as_slice()) as _,
        &column(&keyed, |(_, _, seq, _)| to_bigint(*seq)),
        column(&keyed, |(.., aggregate)| aggregate.aggregate_type().name()) as _,
        &column(&keyed, |(.., aggregate)| aggregate.id()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns those of `commands` that were carried out.
pub async fn find(tx: &mut TenantTx, commands: &[CommandId]) -> Result<Vec<DoneCommand>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        "SELECT command_id, fingerprint, seq, aggregate_type, aggregate_id
        FROM ops.idempotency WHERE org_id = $1 AND command_id = ANY ($2)",
        org,
        &column(commands, |command| command.uuid()),
    );
    rows.fetch_all(tx.connection())
        .await?
        .into_iter()
        .map(|row| {
            Ok(DoneCommand {
                command_id: CommandId::from_uuid(row.command_id),
                fingerprint: fingerprint("a fingerprint", row.fingerprint)?,
                seq: from_bigint(row.seq),
                aggregate: AggregateId::parse(&row.aggregate_type, &row.aggregate_id)
                    .map_err(|_| DbError::Unreadable { what: "an aggregate", value: row.aggregate_id })?,
            })
        })
        .collect()
}
