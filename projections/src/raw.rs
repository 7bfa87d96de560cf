//! For the benchmarks alone: the raw limit that projecting is measured against, which is the same rows by plain INSERT,
//! without events, order or checkpoint; the time when a row became visible, as the server knows it; and a table that
//! causes trouble for one org.
//!
//! The audit trigger and row-level security apply as usual.

use orgstream_events::{Event, Pipeline};
use orgstream_transparency::leaf_hash;
use sqlx::{AssertSqlSafe, Connection, PgConnection, types::Json};

use crate::{
    Applied, BoundOrg, Database, DbError, TenantTx,
    audit::LogEnd,
    checkpoints,
    convert::{column, from_bigint, to_bigint},
};

impl Database {
    /// Inserts one record row and one audit row for every `record.created` of `commits`, the latter numbered from
    /// `first_idx`, in one transaction. Returns the number of those events.
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
        let leaves = column(&created, |(_, event, _)| leaf_hash(&event.sealed.header));
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
            column(&leaves, |leaf| leaf.0.as_slice()) as _,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(created.len() as u64)
    }

    /// Appends `count` meaningless events to an org's audit log, with headers of an ordinary length, and its frontier.
    pub async fn invent_audit_log(&self, org: BoundOrg, count: u64) -> Result<(), DbError> {
        const CHUNK: u64 = 20_000;
        let mut left = count;
        while left > 0 {
            let rows = left.min(CHUNK);
            let mut transaction = self.begin_raw(org).await?;
            let head: Option<(i64, Option<Vec<u8>>)> =
                sqlx::query_as("SELECT next_idx, frontier FROM audit.heads WHERE org_id = $1")
                    .bind(org.org().uuid())
                    .fetch_optional(&mut *transaction)
                    .await?;
            let (size, frontier) = head.map_or((None, None), |(size, frontier)| (Some(size), frontier));
            let end = LogEnd::stored(size, frontier)?;
            let header = |idx: u64| [&idx.to_be_bytes()[..], &[0; 600]].concat();
            let leaves: Vec<_> = (end.size()..end.size() + rows).map(|idx| leaf_hash(&header(idx))).collect();
            let after = end.after(&leaves);
            sqlx::query(
                "INSERT INTO audit.events (org_id, idx, event_id, command_id, seq, ordinal, recorded_at, occurred_at,
                    action, actor_type, actor_id, target_type, target_id, header, payload, leaf)
                SELECT $1, $2 + place - 1, gen_random_uuid(), gen_random_uuid(), $2 + place, 0, now(), now(),
                    'record.created', 'system', '', '', '', int8send($2 + place - 1) || $4, '', leaf
                FROM unnest($3::bytea[]) WITH ORDINALITY AS row (leaf, place)",
            )
            .bind(org.org().uuid())
            .bind(to_bigint(end.size()))
            .bind(column(&leaves, |leaf| leaf.0.to_vec()))
            .bind(vec![0_u8; 600])
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "INSERT INTO audit.heads (org_id, next_idx, frontier) VALUES ($1, $2, $3)
                ON CONFLICT (org_id) DO UPDATE SET next_idx = $2, frontier = $3",
            )
            .bind(org.org().uuid())
            .bind(to_bigint(after.size()))
            .bind(after.to_bytes())
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            left -= rows;
        }
        Ok(())
    }
}

/// When an event became visible, for `orgstream bench fairness`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its index in the org's audit log.
    pub idx: u64,
    /// The stream sequence.
    pub seq: u64,
    /// When its audit row was committed, in microseconds since 1970.
    pub audit_us: i64,
    /// When the row of the record that it created was committed; none when there is no such row.
    pub read_model_us: Option<i64>,
}

/// Returns what became visible of the bound org after the commit at `after`, in audit log order, by the server's own
/// commit timestamps. They must be enabled (`track_commit_timestamp`).
///
/// A rebuild commits every row again, in another version: the earliest counts, because no version is ahead of the
/// active one.
pub async fn seen(tx: &mut TenantTx, after: u64) -> Result<Vec<Seen>, DbError> {
    let mut earliest: Vec<Seen> = Vec::new();
    for checkpoint in checkpoints::all(tx).await? {
        if checkpoint.pipeline != Pipeline::ReadModels {
            continue;
        }
        tx.look_at(checkpoint.pipeline, checkpoint.version).await?;
        let of_version = seen_of_version(tx, after).await?;
        if earliest.is_empty() {
            earliest = of_version;
            continue;
        }
        // The same events at the same moment, so the same rows.
        for (known, other) in earliest.iter_mut().zip(of_version) {
            known.read_model_us = [known.read_model_us, other.read_model_us].into_iter().flatten().min();
        }
    }
    Ok(earliest)
}

async fn seen_of_version(tx: &mut TenantTx, after: u64) -> Result<Vec<Seen>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        r#"SELECT event.idx, event.seq,
            (extract(epoch FROM pg_xact_commit_timestamp(event.xmin)) * 1000000)::bigint AS "audit_us!",
            (extract(epoch FROM pg_xact_commit_timestamp(record.xmin)) * 1000000)::bigint AS "read_model_us"
        FROM audit.events AS event
        LEFT JOIN rm.records AS record ON record.org_id = event.org_id AND record.created_seq = event.seq * 1024
        WHERE event.org_id = $1 AND event.seq > $2 ORDER BY event.idx"#,
        org,
        to_bigint(after),
    );
    let seen = rows.fetch_all(tx.connection()).await?.into_iter().map(|row| Seen {
        idx: from_bigint(row.idx),
        seq: from_bigint(row.seq),
        audit_us: row.audit_us,
        read_model_us: row.read_model_us,
    });
    Ok(seen.collect())
}

/// The trouble caused for every record that an org inserts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hindrance {
    /// It takes this many milliseconds.
    Slow(u32),
    /// One with this `number` in its content is rejected.
    Refused(u64),
}

/// Causes trouble for an org's records, until [`unhinder`]. For a database that only the benchmark uses.
pub async fn hinder(owner_url: &str, org: BoundOrg, hindrance: Hindrance) -> Result<(), DbError> {
    let org = org.org().uuid();
    let (condition, body) = match hindrance {
        Hindrance::Slow(ms) => (String::new(), format!("PERFORM pg_sleep({ms} / 1000.0); RETURN NEW")),
        Hindrance::Refused(number) => {
            (format!("AND NEW.data ->> 'number' = '{number}'"), "RAISE 'refused for the benchmark'".to_owned())
        }
    };
    let script = format!(
        "CREATE OR REPLACE FUNCTION rm.hinder() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$;
        CREATE TRIGGER hinder BEFORE INSERT ON rm.records FOR EACH ROW WHEN (NEW.org_id = '{org}' {condition})
        EXECUTE FUNCTION rm.hinder()"
    );
    run(owner_url, script).await
}

/// Ends the trouble.
pub async fn unhinder(owner_url: &str) -> Result<(), DbError> {
    run(owner_url, "DROP FUNCTION IF EXISTS rm.hinder() CASCADE".to_owned()).await
}

async fn run(owner_url: &str, script: String) -> Result<(), DbError> {
    let mut connection = PgConnection::connect(owner_url).await?;
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Asks the records what a view of the kind `evaluation` has: runs, scores and cost by model and day. Returns the number of rows.
pub async fn grouped(tx: &mut TenantTx) -> Result<u64, DbError> {
    let groups = sqlx::query(
        "SELECT date_trunc('day', (data ->> 'finished_at')::timestamptz, 'UTC'), data -> 'model', count(*),
            avg((data ->> 'score')::numeric)::text, max((data ->> 'score')::numeric)::text,
            sum((data ->> 'cost_usd')::numeric)::text
        FROM rm.records
        WHERE org_id = $1 AND kind = 'evaluation' AND status = 'active' AND data ->> 'status' = 'completed'
        GROUP BY 1, 2",
    );
    Ok(groups.bind(tx.org().uuid()).fetch_all(tx.connection()).await?.len() as u64)
}
