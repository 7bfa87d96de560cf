//! The values of records by which they are listed: one row for each field at the top of a record that has one value. Read by
//! `records` alone.
//!
//! Every such field has a row, whether its kind declares it or not: a row is a function of the organization's own events, and
//! a field that is declared later lists the records that were written before.

use orgstream_events::{KindName, MAX_LISTED_FIELDS, RecordId, is_listed_name};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{DbError, convert::column, read_model::ReadModel, records::Content, sort_key::SortKey};

pub(crate) const TABLE: ReadModel = ReadModel::by_bytes(
    "record_fields",
    "rm.record_fields",
    "key",
    &["key", "record_id", "kind", "field", "value", "created_seq", "seq"],
    &[("record_id", |id| RecordId::from_uuid(id).to_string())],
)
.without(&["key", "value"]);

struct Row<'a> {
    key: Vec<u8>,
    record: Uuid,
    kind: &'a KindName,
    field: &'a str,
    value: Vec<u8>,
    created_seq: Option<i64>,
    seq: i64,
}

/// Writes the fields of records with new content. Those that a record has no more are left; see `records`.
pub(crate) async fn write(connection: &mut PgConnection, org: Uuid, contents: &[Content<'_>]) -> Result<(), DbError> {
    let rows: Vec<Row<'_>> = contents.iter().flat_map(rows).collect();
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO rm.record_fields (org_id, key, record_id, kind, field, value, created_seq, seq)
        SELECT $1, item.key, item.record_id, item.kind, item.field, item.value,
            coalesce(item.created_seq, (
                SELECT created_seq FROM rm.records WHERE org_id = $1 AND id BETWEEN item.record_id AND item.record_id
                ORDER BY id LIMIT 1
            )), item.seq
        FROM unnest($2::bytea[], $3::uuid[], $4::text[], $5::text[], $6::bytea[], $7::bigint[], $8::bigint[])
            AS item (key, record_id, kind, field, value, created_seq, seq)
        ON CONFLICT (org_id, rm_version, key) DO UPDATE SET
            kind = excluded.kind,
            value = excluded.value,
            created_seq = excluded.created_seq,
            seq = excluded.seq",
        org,
        column(&rows, |row| row.key.as_slice()) as _,
        &column(&rows, |row| row.record),
        column(&rows, |row| row.kind.as_str()) as _,
        column(&rows, |row| row.field) as _,
        column(&rows, |row| row.value.as_slice()) as _,
        column(&rows, |row| row.created_seq) as _,
        &column(&rows, |row| row.seq),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The rows of one record: of its first fields by name, which are all that a kind's records may have if it lists by any.
fn rows<'a>(content: &Content<'a>) -> Vec<Row<'a>> {
    let Content { id, kind, data, created_seq, seq, .. } = *content;
    let Value::Object(fields) = data else { return Vec::new() };
    fields
        .iter()
        // A name that no kind can declare is in no index: its owner chooses how long it is.
        .filter(|(field, _)| is_listed_name(field))
        .take(MAX_LISTED_FIELDS)
        .filter_map(|(field, value)| {
            let SortKey(value) = SortKey::of(value)?;
            let key = key_of(id, field);
            Some(Row { key, record: id.uuid(), kind, field, value, created_seq, seq })
        })
        .collect()
}

/// The key of a part of a record: its id, then the name of the part.
pub(crate) fn key_of(id: RecordId, part: &str) -> Vec<u8> {
    [&id.uuid().as_bytes()[..], part.as_bytes()].concat()
}
