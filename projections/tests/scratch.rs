//! scratch
use orgstream_events::*;
use orgstream_projections::*;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::time::Instant;
use uuid::Uuid;

fn port() -> String {
    std::fs::read_to_string("/tmp/projpg/port").unwrap().trim().to_owned()
}
async fn fresh(name: &str) -> (Database, String) {
    let mut c = PgConnection::connect(&format!("postgres://postgres@127.0.0.1:{}/postgres", port())).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))).execute(&mut c).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut c).await.unwrap();
    let owner = format!("postgres://postgres@127.0.0.1:{}/{name}", port());
    migrate(&owner, Some("pw")).await.unwrap();
    let url = format!("postgres://127.0.0.1:{}/{name}", port());
    (
        Database::connect(&DatabaseOptions { url, password: Some("pw".into()), rw_connections: 4, ro_connections: 4 })
            .await
            .unwrap(),
        owner,
    )
}
fn draft(org: OrgId, aggregate: AggregateId, version_before: u64, n: u64, events: Vec<Event>) -> CommitDraft {
    CommitDraft {
        org,
        aggregate,
        version_before,
        command_id: CommandId::fresh(
            1_700_000_000_000 + i64::try_from(n).unwrap(),
            [(n % 251) as u8, (n / 251 % 251) as u8, (n / 63001) as u8, 1, 2, 3, 4, 5, 6, 7],
        ),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::Member, id: "mem_01h455vb4pex5vsknk084sn02q".into(), auth: None },
        occurred_at: Timestamp::from_unix_ms(1_700_000_000_000 + n as i64),
        recorded_at: Timestamp::from_unix_ms(1_700_000_000_000 + n as i64),
        causation_id: None,
        correlation_id: None,
        request_id: Some("req-12345678".into()),
        context: Context::default(),
        events,
    }
}
fn applied(d: CommitDraft, seq: u64) -> Applied {
    let subject = EventSubject { shard: Shard(3), org: d.org, aggregate: d.aggregate.clone() };
    let mut s = seq as u8;
    Applied {
        seq,
        commit: d
            .seal(|| {
                s = s.wrapping_add(1);
                Salt([s; 32])
            })
            .unwrap()
            .open(&subject)
            .unwrap()
            .into(),
    }
}
fn org(n: u8) -> OrgId {
    OrgId::fresh(1_700_000_000_000, [n; 10])
}
fn bound(o: OrgId) -> BoundOrg {
    BoundOrg::proven_by_credential(o)
}
fn create(o: OrgId, n: u64) -> Applied {
    let d0 = draft(o, AggregateId::Organization(o), 0, n, vec![]);
    let id = RecordId::derive(d0.command_id);
    applied(
        draft(
            o,
            AggregateId::Record(id),
            0,
            n,
            vec![Event::Record(RecordEvent::Created(RecordCreated {
                kind: "evaluation".parse().unwrap(),
                kind_version: 1,
                data: serde_json::json!({"title": format!("record {n}"), "score": n, "tags": ["a","b"], "text": "x".repeat(80)}),
            }))],
        ),
        n,
    )
}
fn update(o: OrgId, n: u64, of: u64) -> Applied {
    let d0 = draft(o, AggregateId::Organization(o), 0, of, vec![]);
    let id = RecordId::derive(d0.command_id);
    applied(
        draft(
            o,
            AggregateId::Record(id),
            1,
            n,
            vec![Event::Record(RecordEvent::Updated(RecordUpdated {
                kind: "evaluation".parse().unwrap(),
                kind_version: 1,
                data: serde_json::json!({"title": format!("record {n}"), "score": n, "tags": ["a","b"], "text": "y".repeat(80)}),
            }))],
        ),
        n,
    )
}

#[tokio::test]
async fn catalogue() {
    let (db, owner) = fresh("cat").await;
    assert_eq!(db.preflight().await.unwrap(), vec![]);
    let su = Database::connect(&DatabaseOptions { url: owner, password: None, rw_connections: 1, ro_connections: 1 })
        .await
        .unwrap();
    for f in su.preflight().await.unwrap() {
        println!("{f}");
    }
}

#[tokio::test]
async fn parallel_migrations() {
    let mut set = vec![];
    for i in 0..6 {
        set.push(tokio::spawn(async move {
            let (db, _) = fresh(&format!("par{i}")).await;
            assert_eq!(db.preflight().await.unwrap(), vec![]);
        }));
    }
    for s in set {
        s.await.unwrap();
    }
}

#[tokio::test]
async fn bench() {
    let (db, owner) = fresh("bench").await;
    let shard = Shard(3);
    let lease = db.acquire_lease(shard, Uuid::max(), std::time::Duration::from_secs(600)).await.unwrap().unwrap();
    let per: u64 = std::env::var("PER").ok().and_then(|v| v.parse().ok()).unwrap_or(100);
    let total: u64 = 20_000;
    for which in ["read_models", "audit", "both", "updates"] {
        let o = org(which.len() as u8 + if which == "both" { 100 } else { 0 });
        let commits: Vec<Applied> = (1..=total).map(|n| create(o, n)).collect();
        let updates: Vec<Applied> = (1..=total).map(|n| update(o, total + n, n)).collect();
        let run = |commits: Vec<Applied>, pipes: Vec<Pipeline>| {
            let db = db.clone();
            async move {
                let start = Instant::now();
                for chunk in commits.chunks(per as usize) {
                    let (from, to) = (chunk[0].seq - 1, chunk.last().unwrap().seq);
                    for p in &pipes {
                        let mut tx = db.begin_slices().await.unwrap();
                        assert_eq!(
                            tx.open(bound(o), *p, shard, lease.epoch, if from == 0 { None } else { Some(from) }, to)
                                .await
                                .unwrap(),
                            SliceStart::Open { parked: false }
                        );
                        apply(&mut tx, bound(o), chunk).await.unwrap();
                        tx.commit().await.unwrap();
                    }
                }
                commits.len() as f64 / start.elapsed().as_secs_f64()
            }
        };
        match which {
            "read_models" => println!("read_models creates: {:.0}/s", run(commits, vec![Pipeline::ReadModels]).await),
            "audit" => println!("audit: {:.0}/s", run(commits, vec![Pipeline::Audit]).await),
            "both" => println!("both: {:.0}/s", run(commits, vec![Pipeline::ReadModels, Pipeline::Audit]).await),
            _ => {
                run(commits, vec![Pipeline::ReadModels]).await;
                println!("record updates: {:.0}/s", run(updates, vec![Pipeline::ReadModels]).await)
            }
        }
    }
    // raw: the same rows by plain INSERT ... unnest, app_rw, forced RLS, same per-transaction size, bound.
    let mut own = PgConnection::connect(&owner).await.unwrap();
    sqlx::raw_sql("CREATE TABLE rm.raw (LIKE rm.records INCLUDING ALL); ALTER TABLE rm.raw OWNER TO app_owner; ALTER TABLE rm.raw ENABLE ROW LEVEL SECURITY; ALTER TABLE rm.raw FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON rm.raw TO app_rw USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
        CREATE POLICY floor ON rm.raw AS RESTRICTIVE TO PUBLIC USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org())); GRANT ALL ON rm.raw TO app_rw;
        CREATE TABLE audit.raw (LIKE audit.events INCLUDING ALL); ALTER TABLE audit.raw OWNER TO app_owner; ALTER TABLE audit.raw ENABLE ROW LEVEL SECURITY; ALTER TABLE audit.raw FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON audit.raw TO app_rw USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
        CREATE POLICY floor ON audit.raw AS RESTRICTIVE TO PUBLIC USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org())); GRANT ALL ON audit.raw TO app_rw;").execute(&mut own).await.unwrap();
    let mut c = PgConnection::connect(&owner.replace("postgres@", "app_rw:pw@")).await.unwrap();
    sqlx::raw_sql("SET synchronous_commit = off").execute(&mut c).await.unwrap();
    let o = org(200);
    let commits: Vec<Applied> = (1..=total).map(|n| create(o, n)).collect();
    let start = Instant::now();
    for chunk in commits.chunks(per as usize) {
        let mut tx = c.begin().await.unwrap();
        sqlx::query("SELECT set_config('app.org_id', $1, true)")
            .bind(o.uuid().to_string())
            .execute(&mut *tx)
            .await
            .unwrap();
        let n = chunk.len();
        let RecordEvent::Created(_) = (match &chunk[0].commit.events[0].event {
            Event::Record(r) => r,
            _ => panic!(),
        }) else {
            panic!()
        };
        let data: Vec<serde_json::Value> = chunk
            .iter()
            .map(|c| match &c.commit.events[0].event {
                Event::Record(RecordEvent::Created(r)) => r.data.clone(),
                _ => panic!(),
            })
            .collect();
        let ids: Vec<Uuid> = chunk
            .iter()
            .map(|c| match c.commit.events[0].header.aggregate.aggregate {
                AggregateId::Record(r) => r.uuid(),
                _ => panic!(),
            })
            .collect();
        let at: Vec<_> = chunk.iter().map(|c| c.commit.events[0].header.recorded_at.to_datetime()).collect();
        let seqs: Vec<i64> = chunk.iter().map(|c| c.seq as i64).collect();
        sqlx::query("INSERT INTO rm.raw (org_id, id, kind, kind_version, data, status, created_by_type, created_by_id, version, created_at, created_seq, updated_at, seq) SELECT $1, * FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::jsonb[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::timestamptz[], $11::bigint[], $12::timestamptz[], $13::bigint[])")
            .bind(o.uuid()).bind(&ids).bind(vec!["evaluation"; n]).bind(vec![1i64; n]).bind(&data).bind(vec!["active"; n]).bind(vec!["member"; n]).bind(vec!["mem_01h455vb4pex5vsknk084sn02q"; n]).bind(vec![1i64; n]).bind(&at).bind(&seqs).bind(&at).bind(&seqs)
            .execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    }
    println!("raw records: {:.0}/s", total as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    for chunk in commits.chunks(per as usize) {
        let mut tx = c.begin().await.unwrap();
        sqlx::query("SELECT set_config('app.org_id', $1, true)")
            .bind(o.uuid().to_string())
            .execute(&mut *tx)
            .await
            .unwrap();
        let n = chunk.len();
        let e: Vec<_> = chunk.iter().map(|c| &c.commit.events[0]).collect();
        let at: Vec<_> = e.iter().map(|e| e.header.recorded_at.to_datetime()).collect();
        let seqs: Vec<i64> = chunk.iter().map(|c| c.seq as i64).collect();
        sqlx::query("INSERT INTO audit.raw (org_id, idx, event_id, command_id, seq, ordinal, recorded_at, occurred_at, action, actor_type, actor_id, target_type, target_id, header, payload, leaf) SELECT $1, * FROM unnest($2::bigint[], $3::uuid[], $4::uuid[], $5::bigint[], $6::int[], $7::timestamptz[], $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bytea[], $15::bytea[], $16::bytea[])")
            .bind(o.uuid()).bind(&seqs).bind(e.iter().map(|e| e.header.event_id.uuid()).collect::<Vec<_>>()).bind(e.iter().map(|e| e.header.command_id.uuid()).collect::<Vec<_>>()).bind(&seqs).bind(vec![0i32; n]).bind(&at).bind(&at)
            .bind(e.iter().map(|e| e.header.event_type.as_str()).collect::<Vec<_>>()).bind(vec!["member"; n]).bind(e.iter().map(|e| e.header.actor.id.as_str()).collect::<Vec<_>>()).bind(vec!["record"; n]).bind(e.iter().map(|e| e.header.targets[0].id.as_str()).collect::<Vec<_>>())
            .bind(e.iter().map(|e| &*e.sealed.header).collect::<Vec<&[u8]>>()).bind(e.iter().map(|e| &*e.sealed.payload).collect::<Vec<&[u8]>>()).bind(vec![[7u8; 32]; n].iter().map(|l| l.as_slice()).collect::<Vec<_>>())
            .execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    }
    println!("raw audit: {:.0}/s", total as f64 / start.elapsed().as_secs_f64());
    println!("header bytes {}", commits[0].commit.events[0].sealed.header.len());
    // reads
    let mut tx = db.read(bound(org(11))).await.unwrap();
    let start = Instant::now();
    for _ in 0..200 {
        let l = records::list(&mut tx, None, false, &Page::First, 25).await.unwrap();
        assert_eq!(l.rows.len(), 25);
        assert!(l.more);
    }
    println!("list: {:?} each", start.elapsed() / 200);
    let l = records::list(&mut tx, None, false, &Page::First, 25).await.unwrap();
    let start = Instant::now();
    for _ in 0..200 {
        records::get(&mut tx, l.rows[3].id).await.unwrap().unwrap();
    }
    println!("get: {:?} each", start.elapsed() / 200);
    tx.finish().await.unwrap();
    let start = Instant::now();
    for _ in 0..200 {
        let mut tx = db.read(bound(org(11))).await.unwrap();
        records::get(&mut tx, l.rows[3].id).await.unwrap().unwrap();
        tx.finish().await.unwrap();
    }
    println!("read+get+finish: {:?} each", start.elapsed() / 200);
    let mut tx = db.read(bound(org(5))).await.unwrap();
    let start = Instant::now();
    for _ in 0..200 {
        let l = audit::list(
            &mut tx,
            &audit::AuditFilter { action: Some("record.nothing".into()), ..Default::default() },
            &Page::First,
            25,
        )
        .await
        .unwrap();
        assert!(l.rows.is_empty());
    }
    println!("audit list rare action: {:?} each", start.elapsed() / 200);
    let start = Instant::now();
    for _ in 0..20 {
        let l = audit::list(
            &mut tx,
            &audit::AuditFilter { until: Some(Timestamp::from_unix_ms(1_700_000_000_100)), ..Default::default() },
            &Page::First,
            25,
        )
        .await
        .unwrap();
        assert_eq!(l.rows.len(), 25);
    }
    println!("audit list old: {:?} each", start.elapsed() / 20);
    let start = Instant::now();
    for _ in 0..20 {
        audit::list(
            &mut tx,
            &audit::AuditFilter { target_id: Some("nope".into()), ..Default::default() },
            &Page::First,
            25,
        )
        .await
        .unwrap();
    }
    println!("audit list target: {:?} each", start.elapsed() / 20);
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(audit::from_seq(&mut tx, 19_000, 25).await.unwrap()[0].seq, 19_000);
    }
    println!("audit from_seq: {:?} each", start.elapsed() / 20);
}
