//! Notes of an organization: one row each, kept after they are withdrawn.

use std::collections::BTreeMap;

use orgstream_events::{NoteEvent, NoteId, Timestamp};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{column, from_bigint},
    page::newest_first,
    read_model::ReadModel,
};

/// The current state of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its id.
    pub id: NoteId,
    /// Its text.
    pub text: String,
    /// The aggregate's version.
    pub version: u64,
    /// When it was written.
    pub created_at: Timestamp,
}

impl Placed for Note {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "notes",
    "rm.notes",
    "id",
    &["id", "body", "status", "version", "created_at", "updated_at", "seq"],
    &[("id", |id| NoteId::from_uuid(id).to_string())],
);

/// A batch's changes to the rows.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<NoteId, (&'a str, RowVersion)>,
    withdrawn: BTreeMap<NoteId, RowVersion>,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, id: NoteId, event: &'a NoteEvent, row_version: RowVersion) {
        match event {
            NoteEvent::Written(written) => {
                self.inserts.insert(id, (&written.text, row_version));
            }
            NoteEvent::Withdrawn(_) => {
                self.withdrawn.insert(id, row_version);
            }
        }
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let born: Vec<_> = self.inserts.into_iter().collect();
        if !born.is_empty() {
            sqlx::query!(
                "INSERT INTO rm.notes (org_id, id, body, status, version, created_at, updated_at, seq)
                SELECT $1, born.id, born.body, 'written', born.version, born.at, born.at, born.seq
                FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[], $6::bigint[])
                    AS born (id, body, version, at, seq)
                ON CONFLICT (org_id, rm_version, id) DO NOTHING",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&born, |(_, (text, _))| *text) as _,
                &column(&born, |(_, (_, row_version))| row_version.version),
                &column(&born, |(_, (_, row_version))| row_version.at),
                &column(&born, |(_, (_, row_version))| row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
        }
        let withdrawn: Vec<_> = self.withdrawn.into_iter().collect();
        if !withdrawn.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.notes (org_id, id, body, status, version, created_at, updated_at, seq)
                SELECT $1, old.id, old.body, 'withdrawn', change.version, old.created_at, change.at, change.seq
                FROM unnest($2::uuid[], $3::bigint[], $4::timestamptz[], $5::bigint[]) AS change (id, version, at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.notes WHERE org_id = $1 AND id BETWEEN change.id AND change.id ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    status = excluded.status,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&withdrawn, |(id, _)| id.uuid()),
                &column(&withdrawn, |(_, row_version)| row_version.version),
                &column(&withdrawn, |(_, row_version)| row_version.at),
                &column(&withdrawn, |(_, row_version)| row_version.seq),
            )
            .execute(connection)
            .await?;
            all_there("rm.notes", withdrawn.len(), updated.rows_affected())?;
        }
        Ok(())
    }
}

struct Row {
    id: Uuid,
    body: String,
    version: i64,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for Note {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: NoteId::from_uuid(row.id),
            text: row.body,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
        })
    }
}

/// Returns the notes that were not withdrawn.
pub async fn list(tx: &mut TenantTx, page: &Page<Place>, limit: u16) -> Result<Listing<Note>, DbError> {
    let rows = newest_first!(
        Row,
        "SELECT id, body, version, created_at FROM rm.notes WHERE org_id = $1 AND status = 'written'",
        tx,
        page,
        limit
    )?;
    Listing::new(rows, page, limit)
}
