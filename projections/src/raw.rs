//! The raw limit that projecting is measured against: the same rows by plain INSERT, without events, order or checkpoint.
//!
//! For `orgstream bench project` alone. The audit trigger and row-level security apply to it as to everybody.

use orgstream_events::Event;
use sqlx::types::Json;

use crate::{
    Applied, BoundOrg, Database, DbError,
    audit::leaf,
    convert::{column, to_bigint},
};

impl Database {
    /// Inserts one record row and one audit row for every `record.created` of `commits`, the latter numbered from
    /// `first_idx`, in one transaction. Returns how many events that were.
    pub async fn insert_raw(&self, org: BoundOrg, first_idx: u64, commits: &[Applied]) -> Result<u64, DbError> {
        let mut created = Vec::with_capacity(commits.len());
        for Applied { seq, commit } in commits {
            for event in &commit.events {
                if let Event::Record(orgstream_events::RecordEvent::Created(record)) = &event.event {
                    created.push((to_bigint(*seq), event, record));
                }
            }
        }
        let id = org.org().uuid();
        let mut transaction = self.begin_raw(org).await?;
        sqlx::query!(
            "INSERT INTO rm.records (org_id, id, kind, kind_version, data, status, created_by_type, created_by_id,
                version, created_at, created_seq, updated_at, seq)
            SELECT $1, row.id, row.kind, 1, row.data, 'active', row.actor_type, row.actor_id, 1, row.at, row.seq, row.at,
                row.seq
            FROM unnest($2::uuid[], $3::text[], $4::jsonb[], $5::text[], $6::text[], $7::timestamptz[], $8::bigint[])
                AS row (id, kind, data, actor_type, actor_id, at, seq)",
            id,
            // Any unique id will do: the event's own.
            &column(&created, |(_, event, _)| event.header.event_id.uuid()),
            column(&created, |(.., record)| record.kind.as_str()) as _,
            column(&created, |(.., record)| Json(&record.data)) as _,
            column(&created, |(_, event, _)| event.header.actor.actor_type.name()) as _,
            column(&created, |(_, event, _)| event.header.actor.id.as_str()) as _,
            &column(&created, |(_, event, _)| event.header.recorded_at.to_datetime()),
            &column(&created, |(seq, ..)| *seq),
        )
        .execute(&mut *transaction)
        .await?;
        let leaves = column(&created, |(_, event, _)| leaf(&event.sealed.header));
        sqlx::query!(
            "INSERT INTO audit.events (org_id, idx, event_id, command_id, seq, ordinal, recorded_at, occurred_at, action,
                actor_type, actor_id, target_type, target_id, header, payload, leaf)
            SELECT $1, $2 + row.place - 1, row.event_id, row.command_id, row.seq, 0, row.at, row.at, 'record.created',
                row.actor_type, row.actor_id, 'record', row.actor_id, row.header, row.payload, row.leaf
            FROM unnest($3::uuid[], $4::uuid[], $5::bigint[], $6::timestamptz[], $7::text[], $8::text[], $9::bytea[],
                $10::bytea[], $11::bytea[])
                WITH ORDINALITY AS row (event_id, command_id, seq, at, actor_type, actor_id, header, payload, leaf, place)",
            id,
            to_bigint(first_idx),
            &column(&created, |(_, event, _)| event.header.event_id.uuid()),
            &column(&created, |(_, event, _)| event.header.command_id.uuid()),
            &column(&created, |(seq, ..)| *seq),
            &column(&created, |(_, event, _)| event.header.recorded_at.to_datetime()),
            column(&created, |(_, event, _)| event.header.actor.actor_type.name()) as _,
            column(&created, |(_, event, _)| event.header.actor.id.as_str()) as _,
            column(&created, |(_, event, _)| &*event.sealed.header) as _,
            column(&created, |(_, event, _)| &*event.sealed.payload) as _,
            column(&leaves, <[u8; 32]>::as_slice) as _,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(created.len() as u64)
    }
}
