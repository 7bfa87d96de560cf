//! Events to rows: the tables of each pipeline, and those of the read models.
//!
//! A batch is folded in memory to the last state of every row it touches, then written with one or two statements per
//! table, whatever the number of events.
//!
//! Rows created in the batch are inserted whole. Rows that only change are read, overlaid and upserted in one
//! statement, and not with `UPDATE ... FROM`: a join lets the planner read all rows of the org for a few, and with a
//! cached plan, or statistics from before the org grew, it does (measured: 350 rows/s in place of 30,000). A lateral
//! subquery is executed row by row. It selects the first row of an ordered range with sorting disabled, so that the
//! primary key is the only usable index; the conflict's index cannot be used.

use std::sync::Arc;

use orgstream_events::{AggregateId, Event, Header, OpenedCommit, Pipeline, RecordLogEvent};
use time::OffsetDateTime;

use crate::{
    ApplyTx, BoundOrg, DbError, api_keys, audit, break_glass, catalog_choices, catalog_items, convert::to_bigint,
    domains, idempotency, invitations, kinds, members, organizations, plans, quota_uses, records, roles, search, slugs,
    sso_connections, usage_hours,
};

/// A commit with its position in the stream.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The stream sequence.
    pub seq: u64,
    /// The events; shared, because all pipelines apply them.
    pub commit: Arc<OpenedCommit>,
}

/// The columns that every row takes from the last event that changed it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowVersion {
    pub(crate) version: i64,
    pub(crate) at: OffsetDateTime,
    pub(crate) seq: i64,
    /// The place of the event; see [`place_of`].
    pub(crate) place: i64,
}

/// The places of one commit, which has no more events.
const PLACES: i64 = 1_024;

/// Returns the place of an event among all of the organization, by its sequence and its number in its commit.
pub(crate) fn place_of(seq: i64, ordinal: usize) -> i64 {
    seq.saturating_mul(PLACES).saturating_add(to_bigint(ordinal as u64))
}

impl RowVersion {
    fn new(header: &Header, seq: u64, ordinal: usize) -> Self {
        let (version, at, seq) =
            (to_bigint(header.aggregate.version), header.recorded_at.to_datetime(), to_bigint(seq));
        Self { version, at, seq, place: place_of(seq, ordinal) }
    }
}

/// Applies `commits` to the tables of the pipeline that the batch was opened for.
pub async fn apply(batch: &mut ApplyTx, org: BoundOrg, commits: &[Applied]) -> Result<(), DbError> {
    match batch.connection(org)?.1 {
        Pipeline::ReadModels => apply_read_models(batch, org, commits).await,
        Pipeline::Audit => audit::apply(batch, org, commits).await,
        Pipeline::Search => search::apply(batch, org, commits).await,
    }
}

/// The setting of a transaction that binds it to a version of the pipeline's rows, if they have versions. It ends in
/// `_version`, and the function that reads it is of the same name.
pub(crate) const fn version_setting(pipeline: Pipeline) -> Option<&'static str> {
    match pipeline {
        Pipeline::ReadModels => Some("app.rm_version"),
        Pipeline::Audit => None,
        Pipeline::Search => Some("app.search_version"),
    }
}

/// Applies `commits`, in stream order, to the tables behind the queries.
pub async fn apply_read_models(batch: &mut ApplyTx, org: BoundOrg, commits: &[Applied]) -> Result<(), DbError> {
    let folding = batch.folding().clone();
    let connection = batch.connection_of(org, Pipeline::ReadModels)?;
    let org = org.org().uuid();
    let mut organizations = organizations::Changeset::default();
    let mut slugs = slugs::Changeset::default();
    let mut members = members::Changeset::default();
    let mut invitations = invitations::Changeset::default();
    let mut roles = roles::Changeset::default();
    let mut domains = domains::Changeset::default();
    let mut sso_connections = sso_connections::Changeset::default();
    let mut api_keys = api_keys::Changeset::default();
    let mut kinds = kinds::Changeset::default();
    let mut records = records::Changeset::default();
    let mut catalog_items = catalog_items::Changeset::default();
    let mut catalog_choices = catalog_choices::Changeset::default();
    let mut glasses = break_glass::Changeset::default();
    let mut plans = plans::Changeset::default();
    let mut usage_hours = usage_hours::Changeset::default();
    let mut quota_uses = quota_uses::Changeset::default();
    for Applied { seq, commit } in commits {
        for (ordinal, event) in commit.events.iter().enumerate() {
            let header = &event.header;
            let row_version = RowVersion::new(header, *seq, ordinal);
            match (&event.event, &header.aggregate.aggregate) {
                (Event::Record(event), AggregateId::Record(id)) => {
                    records.apply(*id, event, &header.actor, row_version);
                }
                (Event::RecordLog(RecordLogEvent::Appended(event)), AggregateId::RecordLog(_)) => {
                    records.append(event, &header.actor, row_version);
                }
                (Event::Organization(event), AggregateId::Organization(_)) => {
                    organizations.apply(event, row_version);
                    slugs.apply(event);
                }
                (Event::Member(event), AggregateId::Member(_)) => members.apply(event, row_version),
                (Event::Invitation(event), AggregateId::Invitation(id)) => {
                    invitations.apply(*id, event, commit.command_id, &header.actor, row_version);
                }
                (Event::Role(event), AggregateId::Role(_)) => roles.apply(event, row_version),
                (Event::Domain(event), AggregateId::Domain(id)) => domains.apply(*id, event, row_version),
                (Event::SsoConnection(event), AggregateId::SsoConnection(_)) => {
                    sso_connections.apply(event, row_version);
                }
                (Event::ApiKey(event), AggregateId::ApiKey(id)) => {
                    api_keys.apply(*id, event, &header.actor, row_version);
                }
                (Event::Kind(event), AggregateId::Kind(name)) => kinds.apply(name, event, row_version),
                (Event::CatalogItem(event), AggregateId::CatalogItem(id)) => {
                    catalog_items.apply(*id, event, row_version);
                }
                (Event::CatalogChoice(event), AggregateId::CatalogChoice(_)) => {
                    catalog_choices.apply(event, row_version);
                }
                (Event::Access(event), AggregateId::Access(_)) => glasses.apply(event, &header.actor, row_version),
                (Event::Plan(event), AggregateId::Plan(name)) => plans.apply(name, event, row_version),
                (Event::Account(event), AggregateId::Account(_)) => usage_hours.apply(event, row_version),
                (Event::Quota(event), AggregateId::Quota(_)) => quota_uses.apply(event, row_version),
                // No rows: the records have their unique values, the worker carries out decisions about parked events, and
                // invoices and receipts of deletions are read from the log.
                (Event::UniqueValue(_), AggregateId::UniqueValue(_))
                | (Event::Invoice(_), AggregateId::Invoice(_))
                | (Event::Deletion(_), AggregateId::Deletion(_))
                | (Event::Parking(_), AggregateId::Parking(_)) => {}
                (
                    Event::Organization(_)
                    | Event::Member(_)
                    | Event::Invitation(_)
                    | Event::Role(_)
                    | Event::Domain(_)
                    | Event::SsoConnection(_)
                    | Event::ApiKey(_)
                    | Event::Kind(_)
                    | Event::Record(_)
                    | Event::RecordLog(_)
                    | Event::UniqueValue(_)
                    | Event::CatalogItem(_)
                    | Event::CatalogChoice(_)
                    | Event::Plan(_)
                    | Event::Account(_)
                    | Event::Quota(_)
                    | Event::Invoice(_)
                    | Event::Deletion(_)
                    | Event::Parking(_)
                    | Event::Access(_),
                    aggregate,
                ) => {
                    let what = "an aggregate that has such an event";
                    return Err(DbError::Unreadable { what, value: format!("{} of {aggregate}", header.event_type) });
                }
            }
        }
    }
    organizations.write(connection, org).await?;
    slugs.write(connection, org).await?;
    members.write(connection, org).await?;
    invitations.write(connection, org).await?;
    roles.write(connection, org).await?;
    domains.write(connection, org).await?;
    sso_connections.write(connection, org).await?;
    api_keys.write(connection, org).await?;
    kinds.write(connection, org).await?;
    let folds = records.write(connection, org, &folding, &mut quota_uses).await?;
    catalog_items.write(connection, org).await?;
    catalog_choices.write(connection, org).await?;
    glasses.write(connection, org).await?;
    plans.write(connection, org).await?;
    usage_hours.write(connection, org).await?;
    quota_uses.write(connection, org).await?;
    idempotency::write(connection, org, commits).await?;
    batch.folds_views(folds);
    Ok(())
}

/// Fails unless a change has found every row that it applies to.
pub(crate) fn all_there(table: &'static str, expected: usize, changed: u64) -> Result<(), DbError> {
    let expected = expected as u64;
    if changed == expected { Ok(()) } else { Err(DbError::RowsMissing { table, expected, changed }) }
}
