//! The search pipeline: what is found of each record, and how a query finds it.
//!
//! Terms are made by [`tokens`] alone, for records and for queries. Each term of a record is a row of `rm.postings`, so that a
//! query reads only ranges of an index whose keys begin with the organization; all figures of the ranking are of the
//! organization's own records.
//!
//! An organization whose index was placed elsewhere has no rows here: its changes go to a search target ([`target`]), in the same
//! terms.
//!
//! Which fields are searched is in the event: a row is a function of the events and nothing else. Of the platform what it
//! published is found, and not its records, which are drafts.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::{
    AggregateId, CatalogItemEvent, CatalogItemPublished, Event, KindName, PLATFORM_ORG, Pipeline, RecordAppended,
    RecordEvent, RecordId, RecordLogEvent, SearchedField,
};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::{
    Applied, ApplyTx, BoundOrg, DbError,
    convert::{column, to_bigint},
    read_model::ReadModel,
    search::document::Document,
};

pub mod document;
mod find;
mod postgres;
pub mod query;
pub mod snippet;
pub mod target;
pub mod tokens;

pub use find::{
    Asked, FEW_HITS, Found, Hit, Kinds, MAX_HITS, MAX_KINDS, MAX_MATCHES, MAX_NEIGHBOURS, Match, Matched, Piece,
    Ranked, distance_of, find, hits,
};
pub use postgres::PostgresTarget;
use target::{Change, FoundRecord};

/// The most rows that one statement writes.
const POSTINGS: usize = 20_000;
/// What separates the parts of a posting's key. No name and no term has it.
const SEPARATOR: u8 = 0;

pub(crate) const DOCUMENTS: ReadModel = ReadModel::by_id(
    "search_documents",
    "rm.search_documents",
    "id",
    &["id", "kind", "title", "length", "truncated", "fields", "facets", "terms", "seq"],
    &[("id", |id| RecordId::from_uuid(id).to_string())],
)
.without(&["fields", "terms"])
.of(Pipeline::Search);

pub(crate) const POSTING_TABLE: ReadModel =
    ReadModel::by_bytes("postings", "rm.postings", "key", &["key", "weight", "length"], &[])
        .without(&["key"])
        .of(Pipeline::Search);

pub(crate) const STATISTICS: ReadModel =
    ReadModel::by_text("search_statistics", "rm.search_statistics", "kind", &["kind", "documents", "length"])
        .of(Pipeline::Search);

/// A state of a record, with its position: nothing is found of it once it is archived.
type State<'a> = (u64, Option<(&'a KindName, &'a [SearchedField], &'a Value)>);

/// The last state of a record in a batch, and whether it may have had another one that was found.
struct Last<'a> {
    state: State<'a>,
    had_another: bool,
}

/// Applies `commits`, in stream order, to the index of words.
pub(crate) async fn apply(batch: &mut ApplyTx, org: BoundOrg, commits: &[Applied]) -> Result<(), DbError> {
    let mut states: BTreeMap<RecordId, Last<'_>> = BTreeMap::new();
    let mut known: BTreeSet<RecordId> = BTreeSet::new();
    for Applied { seq, commit } in commits {
        for event in &commit.events {
            let (id, state, is_new) = match (&event.event, &event.header.aggregate.aggregate) {
                // The platform's own records are drafts of what it publishes.
                (Event::Record(record), AggregateId::Record(id)) if org.org() != PLATFORM_ORG => {
                    (id, of_record(record), matches!(record, RecordEvent::Created(_)))
                }
                (Event::RecordLog(RecordLogEvent::Appended(appended)), AggregateId::RecordLog(_))
                    if org.org() != PLATFORM_ORG =>
                {
                    let RecordAppended { record, kind, searched, data, .. } = appended;
                    (record, Some((kind, searched.as_slice(), data)), true)
                }
                (Event::CatalogItem(item), AggregateId::CatalogItem(id)) => match item {
                    CatalogItemEvent::Published(CatalogItemPublished {
                        kind, data, searched, item_version, ..
                    }) => (id, Some((kind, searched.as_slice(), data)), *item_version == 1),
                    CatalogItemEvent::Withdrawn(_) => (id, None, false),
                },
                _ => continue,
            };
            let before = states.contains_key(id);
            if !before && !is_new {
                known.insert(*id);
            }
            states.insert(*id, Last { state: (*seq, state), had_another: before || !is_new });
        }
    }
    if states.is_empty() {
        return Ok(());
    }
    let changes = states.into_iter().map(|(id, last)| (last.change(id), last.had_another));
    if let Some(outgoing) = batch.outgoing(org)? {
        // What was never found needs no mark that it is gone.
        outgoing
            .add(changes.filter(|(change, had_another)| *had_another || change.found.is_some()).map(|(one, _)| one));
        return Ok(());
    }
    let changes: Vec<Change> = changes.map(|(change, _)| change).collect();
    write(batch.connection_of(org, Pipeline::Search)?, org.org().uuid(), &known, &changes).await
}

/// Writes changes. Of a record that is not `known`, nothing may be there yet.
async fn write(
    connection: &mut PgConnection,
    org: Uuid,
    known: &BTreeSet<RecordId>,
    changes: &[Change],
) -> Result<(), DbError> {
    let mut growth: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (kind, length) in remove(connection, org, known).await? {
        let (documents, words) = growth.entry(kind).or_default();
        (*documents, *words) = (*documents - 1, *words - length);
    }
    let found: Vec<Row<'_>> = changes.iter().filter_map(|change| Some((change, change.found.as_ref()?))).collect();
    for (_, FoundRecord { kind, document, .. }) in &found {
        let (documents, words) = growth.entry(kind.as_str().to_owned()).or_default();
        (*documents, *words) = (*documents + 1, *words + i64::from(document.length));
    }
    write_documents(connection, org, &found).await?;
    write_postings(connection, org, &found).await?;
    write_growth(connection, org, growth).await
}

impl Last<'_> {
    fn change(&self, id: RecordId) -> Change {
        let (seq, state) = self.state;
        let found = state.and_then(|(kind, fields, data)| {
            let document = Document::of(fields, data)?;
            Some(FoundRecord { kind: kind.clone(), fields: fields.to_vec(), document })
        });
        Change { id, seq, found }
    }
}

/// Returns what is found of a record after this event.
fn of_record(record: &RecordEvent) -> Option<(&KindName, &[SearchedField], &Value)> {
    match record {
        RecordEvent::Created(created) => Some((&created.kind, &created.searched, &created.data)),
        RecordEvent::Updated(updated) => Some((&updated.kind, &updated.searched, &updated.data)),
        RecordEvent::Archived(_) => None,
    }
}

/// A record that is found.
type Row<'a> = (&'a Change, &'a FoundRecord);

/// Returns the beginning of the keys of a term's postings, or of those of all terms that begin with it.
fn key_of(kind: &str, term: &str) -> Vec<u8> {
    [kind.as_bytes(), &[SEPARATOR], term.as_bytes()].concat()
}

/// Removes records from the index. Returns the kind and the length of each that was in it.
async fn remove(
    connection: &mut PgConnection,
    org: Uuid,
    records: &BTreeSet<RecordId>,
) -> Result<Vec<(String, i64)>, DbError> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = records.iter().map(|id| id.uuid()).collect();
    let rows = sqlx::query!(
        r#"SELECT of_kind AS "kind!", of_length AS "length!" FROM app.drop_search_documents($1, $2)"#,
        org,
        &ids,
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.kind, row.length)).collect())
}

async fn write_documents(connection: &mut PgConnection, org: Uuid, rows: &[Row<'_>]) -> Result<(), DbError> {
    if rows.is_empty() {
        return Ok(());
    }
    let terms = |(_, row): &Row<'_>| row.document.terms.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
    sqlx::query!(
        "INSERT INTO rm.search_documents (org_id, id, kind, title, length, truncated, fields, facets, terms, seq)
        SELECT $1, item.* FROM unnest($2::uuid[], $3::text[], $4::text[], $5::integer[], $6::boolean[], $7::jsonb[], $8::jsonb[],
            $9::text[], $10::bigint[]) AS item
        ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
            kind = excluded.kind,
            title = excluded.title,
            length = excluded.length,
            truncated = excluded.truncated,
            fields = excluded.fields,
            facets = excluded.facets,
            terms = excluded.terms,
            seq = excluded.seq",
        org,
        &column(rows, |(change, _)| change.id.uuid()),
        column(rows, |(_, row)| row.kind.as_str()) as _,
        column(rows, |(_, row)| row.document.title.as_deref()) as _,
        &column(rows, |(_, row)| row.document.length),
        &column(rows, |(_, row)| row.document.is_truncated),
        column(rows, |(_, row)| Json(row.fields.as_slice())) as _,
        column(rows, |(_, row)| Json(&row.document.facets)) as _,
        &column(rows, terms),
        &column(rows, |(change, _)| to_bigint(change.seq)),
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_postings(connection: &mut PgConnection, org: Uuid, rows: &[Row<'_>]) -> Result<(), DbError> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let (mut weights, mut lengths) = (Vec::new(), Vec::new());
    for (Change { id, .. }, FoundRecord { kind, document, .. }) in rows {
        for (term, weight) in &document.terms {
            keys.push([&key_of(kind.as_str(), term)[..], &[SEPARATOR], id.uuid().as_bytes()].concat());
            weights.push(*weight);
            lengths.push(document.length);
            if keys.len() == POSTINGS {
                insert_postings(&mut *connection, org, &keys, &weights, &lengths).await?;
                (keys, weights, lengths) = Default::default();
            }
        }
    }
    if keys.is_empty() { Ok(()) } else { insert_postings(connection, org, &keys, &weights, &lengths).await }
}

async fn insert_postings(
    connection: &mut PgConnection,
    org: Uuid,
    keys: &[Vec<u8>],
    weights: &[i16],
    lengths: &[i32],
) -> Result<(), DbError> {
    sqlx::query!(
        "INSERT INTO rm.postings (org_id, key, weight, length)
        SELECT $1, item.* FROM unnest($2::bytea[], $3::smallint[], $4::integer[]) AS item
        ON CONFLICT (org_id, rm_version, key) DO UPDATE SET weight = excluded.weight, length = excluded.length",
        org,
        keys,
        weights,
        lengths,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds to the figures of each kind. A kind without records has none, whatever it had before.
async fn write_growth(
    connection: &mut PgConnection,
    org: Uuid,
    growth: BTreeMap<String, (i64, i64)>,
) -> Result<(), DbError> {
    let grown: Vec<_> = growth.into_iter().filter(|(_, by)| *by != (0, 0)).collect();
    if grown.is_empty() {
        return Ok(());
    }
    let kinds = column(&grown, |(kind, _)| kind.as_str());
    sqlx::query!(
        "INSERT INTO rm.search_statistics AS known (org_id, kind, documents, length)
        SELECT $1, item.* FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS item
        ON CONFLICT (org_id, rm_version, kind) DO UPDATE SET
            documents = known.documents + excluded.documents, length = known.length + excluded.length",
        org,
        &kinds as _,
        &column(&grown, |(_, (documents, _))| *documents),
        &column(&grown, |(_, (_, length))| *length),
    )
    .execute(&mut *connection)
    .await?;
    if grown.iter().any(|(_, (documents, _))| *documents < 0) {
        sqlx::query!(
            "DELETE FROM rm.search_statistics WHERE org_id = $1 AND kind = ANY ($2) AND documents <= 0",
            org,
            &kinds as _,
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}
