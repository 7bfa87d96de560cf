//! The records that records refer to, as the events name them: one row for each place.

use orgstream_events::{KindName, RecordId, RecordReference};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    DbError, Listing, Page, Placed, TenantTx,
    convert::{column, from_bigint, parsed, to_bigint},
    read_model::ReadModel,
    record_fields::key_of,
    records::Content,
};

/// A reference of one record to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The record that refers.
    pub from: RecordId,
    /// Its kind.
    pub from_kind: KindName,
    /// The JSON pointer to the reference, from the record's data.
    pub pointer: String,
    /// The record that is referred to.
    pub to: RecordId,
    /// Its kind.
    pub to_kind: KindName,
    /// Whether it is the platform's.
    pub is_global: bool,
    /// The place of the creation of the record that refers.
    pub created_seq: u64,
}

/// The position of a reference in the listing of those to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferencePlace {
    /// The place of the creation of the record that refers.
    pub created_seq: u64,
    /// The JSON pointer.
    pub pointer: String,
}

impl Placed for Reference {
    type Place = ReferencePlace;

    fn place(&self) -> ReferencePlace {
        ReferencePlace { created_seq: self.created_seq, pointer: self.pointer.clone() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_bytes(
    "record_references",
    "rm.record_references",
    "key",
    &["key", "record_id", "kind", "pointer", "to_id", "to_kind", "to_global", "created_seq", "seq"],
    &[("record_id", |id| RecordId::from_uuid(id).to_string()), ("to_id", |id| RecordId::from_uuid(id).to_string())],
)
.without(&["key"]);

/// Writes the references of records with new content. Those that a record has no more are left; see `records`.
pub(crate) async fn write(connection: &mut PgConnection, org: Uuid, contents: &[Content<'_>]) -> Result<(), DbError> {
    let rows: Vec<(&Content<'_>, &RecordReference)> = contents
        .iter()
        .flat_map(|content| content.references.iter().map(move |reference| (content, reference)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let keys: Vec<Vec<u8>> = column(&rows, |(content, reference)| key_of(content.id, &reference.pointer));
    sqlx::query!(
        "INSERT INTO rm.record_references (org_id, key, record_id, kind, pointer, to_id, to_kind, to_global, created_seq, seq)
        SELECT $1, item.key, item.record_id, item.kind, item.pointer, item.to_id, item.to_kind, item.to_global,
            coalesce(item.created_seq, (
                SELECT created_seq FROM rm.records WHERE org_id = $1 AND id BETWEEN item.record_id AND item.record_id
                ORDER BY id LIMIT 1
            )), item.seq
        FROM unnest($2::bytea[], $3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::boolean[], $9::bigint[],
            $10::bigint[])
            AS item (key, record_id, kind, pointer, to_id, to_kind, to_global, created_seq, seq)
        ON CONFLICT (org_id, rm_version, key) DO UPDATE SET
            kind = excluded.kind,
            to_id = excluded.to_id,
            to_kind = excluded.to_kind,
            to_global = excluded.to_global,
            created_seq = excluded.created_seq,
            seq = excluded.seq",
        org,
        column(&keys, Vec::as_slice) as _,
        &column(&rows, |(content, _)| content.id.uuid()),
        column(&rows, |(content, _)| content.kind.as_str()) as _,
        column(&rows, |(_, reference)| reference.pointer.as_str()) as _,
        &column(&rows, |(_, reference)| reference.id.uuid()),
        column(&rows, |(_, reference)| reference.kind.as_str()) as _,
        &column(&rows, |(_, reference)| reference.global),
        column(&rows, |(content, _)| content.created_seq) as _,
        &column(&rows, |(content, _)| content.seq),
    )
    .execute(connection)
    .await?;
    Ok(())
}

struct Row {
    record_id: Uuid,
    kind: String,
    pointer: String,
    to_id: Uuid,
    to_kind: String,
    to_global: bool,
    created_seq: i64,
}

impl TryFrom<Row> for Reference {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            from: RecordId::from_uuid(row.record_id),
            from_kind: parsed("a kind name", row.kind)?,
            pointer: row.pointer,
            to: RecordId::from_uuid(row.to_id),
            to_kind: parsed("a kind name", row.to_kind)?,
            is_global: row.to_global,
            created_seq: from_bigint(row.created_seq),
        })
    }
}

/// Returns the references of one record, by their pointers. There are few.
pub async fn of(tx: &mut TenantTx, id: RecordId) -> Result<Vec<Reference>, DbError> {
    let (org, low) = (tx.org().uuid(), key_of(id, ""));
    // No name in UTF-8 has this byte.
    let high = [low.as_slice(), &[u8::MAX]].concat();
    let rows = sqlx::query_as!(
        Row,
        "SELECT record_id, kind, pointer, to_id, to_kind, to_global, created_seq
        FROM rm.record_references WHERE org_id = $1 AND key >= $2 AND key < $3 ORDER BY key",
        org,
        &low,
        &high,
    );
    rows.fetch_all(tx.connection()).await?.into_iter().map(Reference::try_from).collect()
}

/// Returns the references to one record, the newest records first.
pub async fn to(
    tx: &mut TenantTx,
    id: RecordId,
    page: &Page<ReferencePlace>,
    limit: u16,
) -> Result<Listing<Reference>, DbError> {
    let org = tx.org().uuid();
    let (seq, pointer, to_older) = match page {
        // No sequence reaches this one.
        Page::First => (i64::MAX, "", true),
        Page::After(place) => (to_bigint(place.created_seq), place.pointer.as_str(), true),
        Page::Before(place) => (to_bigint(place.created_seq), place.pointer.as_str(), false),
    };
    let rows = i64::from(limit) + 1;
    let found = if to_older {
        sqlx::query_as!(
            Row,
            "SELECT record_id, kind, pointer, to_id, to_kind, to_global, created_seq FROM rm.record_references
            WHERE org_id = $1 AND to_id = $2 AND (created_seq, pointer) < ($3, $4)
            ORDER BY created_seq DESC, pointer DESC LIMIT $5",
            org,
            id.uuid(),
            seq,
            pointer,
            rows,
        )
        .fetch_all(tx.connection())
        .await?
    } else {
        sqlx::query_as!(
            Row,
            "SELECT record_id, kind, pointer, to_id, to_kind, to_global, created_seq FROM rm.record_references
            WHERE org_id = $1 AND to_id = $2 AND (created_seq, pointer) > ($3, $4)
            ORDER BY created_seq, pointer LIMIT $5",
            org,
            id.uuid(),
            seq,
            pointer,
            rows,
        )
        .fetch_all(tx.connection())
        .await?
    };
    Listing::new(found, page, limit)
}
