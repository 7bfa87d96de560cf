//! The stored tree against the pure one: for any sizes of batches, and any earlier state, the frontier, the tiles and
//! the proofs are those of the leaves; and only one head of each size is ever submitted for signing.

use orgstream_events::{OrgId, Pipeline, Shard};
use orgstream_projections::{
    BatchClass, BoundOrg, DbError, apply,
    audit::{self, SigningDatabase},
};
use orgstream_transparency::{
    Frontier, Hash, LogSigner, Plan, TILE_WIDTH, Tile, TreeHead, leaf_hash, subtree_root, verify_consistency,
    verify_inclusion,
};
use sqlx::{Connection, PgConnection, error::DatabaseError};
use uuid::Uuid;

use crate::{
    projections::{History, SLICE, lease},
    support::{TestDatabase, database},
};

/// Leaves of the org as they are stored.
async fn leaves(owner: &mut PgConnection, org: Uuid) -> Vec<Hash> {
    let headers: Vec<Vec<u8>> = sqlx::query_scalar("SELECT header FROM audit.events WHERE org_id = $1 ORDER BY idx")
        .bind(org)
        .fetch_all(owner)
        .await
        .unwrap();
    headers.iter().map(|header| leaf_hash(header)).collect()
}

async fn frontier(owner: &mut PgConnection, org: Uuid) -> Frontier {
    let bytes: Vec<u8> = sqlx::query_scalar("SELECT frontier FROM audit.heads WHERE org_id = $1")
        .bind(org)
        .fetch_one(owner)
        .await
        .unwrap();
    Frontier::from_bytes(&bytes).unwrap()
}

/// A log of `size` invented events, as left by a program version without frontiers.
async fn invent(owner: &mut PgConnection, org: OrgId, size: i64) {
    sqlx::query(
        "INSERT INTO audit.events (org_id, idx, event_id, command_id, seq, ordinal, recorded_at, occurred_at, action,
            actor_type, actor_id, target_type, target_id, header, payload, leaf)
        SELECT $1, idx, gen_random_uuid(), gen_random_uuid(), idx + 1, 0, now(), now(), 'record.created', 'system', '', '',
            '', int8send(idx), '', sha256('\\x00'::bytea || int8send(idx))
        FROM generate_series(0, $2 - 1) AS idx",
    )
    .bind(org.uuid())
    .bind(size)
    .execute(&mut *owner)
    .await
    .unwrap();
    sqlx::query("INSERT INTO audit.heads (org_id, next_idx) VALUES ($1, $2)")
        .bind(org.uuid())
        .bind(size)
        .execute(owner)
        .await
        .unwrap();
}

async fn signing(database: &TestDatabase) -> SigningDatabase {
    let db = SigningDatabase::connect(&database.options()).await.unwrap();
    assert_eq!(db.preflight().await.unwrap(), []);
    db
}

/// Stores the existing tiles, and records the head.
async fn note(db: &SigningDatabase, org: BoundOrg) -> TreeHead {
    let mut tx = loop {
        let mut tx = db.begin(org).await.unwrap();
        if !tx.store_tiles().await.unwrap() {
            break tx;
        }
        tx.commit().await.unwrap();
    };
    let head = tx.head().await.unwrap();
    tx.note_checkpoint(format!("tree.test/{}", org.org()), head).await.unwrap();
    tx.commit().await.unwrap();
    head
}

#[tokio::test]
async fn the_frontier_is_that_of_the_leaves_however_they_came() {
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let epoch = lease(&database.db).await;
    for (number, size) in [(1, 1), (2, 3), (3, 7), (4, 1_000)] {
        let history = History::eventful(number);
        history.apply(&database.db, Pipeline::Audit, epoch, size).await;
        let org = history.org.uuid();
        let expected: Frontier = leaves(&mut owner, org).await.into_iter().collect();
        assert!(expected.size() > 10);
        assert_eq!(frontier(&mut owner, org).await, expected, "slices of {size}");
    }
}

#[tokio::test]
async fn a_log_that_is_older_than_its_frontier_gets_one() {
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let epoch = lease(&database.db).await;
    let history = History::eventful(1);
    let org = history.org.uuid();
    let half = history.commits.len() / 2;
    let mut from = None;
    for slice in [&history.commits[..half], &history.commits[half..]] {
        // An older program's rows have none.
        sqlx::query("UPDATE audit.heads SET frontier = NULL").execute(&mut owner).await.unwrap();
        let to = slice.last().unwrap().seq;
        let mut tx = database.db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
        tx.open(history.bound(), Pipeline::Audit, Shard(3), epoch, from, to).await.unwrap();
        apply(&mut tx, history.bound(), slice).await.unwrap();
        tx.commit().await.unwrap();
        from = Some(to);
    }
    let expected: Frontier = leaves(&mut owner, org).await.into_iter().collect();
    assert_eq!(frontier(&mut owner, org).await, expected);
}

#[tokio::test]
async fn tiles_and_proofs_are_those_of_the_pure_tree() {
    // More than 256 tiles of leaves, so that there are three levels, and an edge at each.
    const SIZE: i64 = 256 * 256 + 2 * 256 + 77;
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let org = BoundOrg::named_by_operator(OrgId::fresh(1_700_000_000_000, [1; 10]));
    invent(&mut owner, org.org(), SIZE).await;
    let db = signing(&database).await;
    assert_eq!(db.orgs(1, 0).await.unwrap(), [org]);
    let head = note(&db, org).await;
    let leaves = leaves(&mut owner, org.org().uuid()).await;
    let pure: Frontier = leaves.iter().copied().collect();
    assert_eq!(head, pure.head());
    // Nothing grew, and nothing was signed.
    assert_eq!(db.orgs(1, 0).await.unwrap(), []);
    assert_eq!(db.orgs(1, 1).await.unwrap(), [org]);

    let mut tx = database.db.read(org).await.unwrap();
    let mut below = leaves.clone();
    for level in 0..3 {
        let tiles: Vec<Tile> = Tile::grown(0, head.size).filter(|tile| tile.level() == level).collect();
        assert!(!tiles.is_empty());
        for (tile, hashes) in tiles.iter().zip(below.chunks(TILE_WIDTH.into())) {
            let stored = audit::tile(&mut tx, *tile).await.unwrap();
            assert_eq!(stored.as_deref(), Some(hashes), "{tile}");
        }
        below = below.chunks_exact(TILE_WIDTH.into()).map(subtree_root).collect();
    }
    for index in [0, 1, 255, 256, 257, 65_535, 65_536, 65_600, head.size - 78, head.size - 1] {
        let plan = Plan::inclusion(index, head.size).unwrap();
        let proof = audit::prove(&mut tx, &plan).await.unwrap();
        verify_inclusion(leaves[usize::try_from(index).unwrap()], index, head, &proof).unwrap();
    }
    for old in [1, 2, 255, 256, 65_535, 65_536, 65_537, head.size - 1] {
        let earlier: Frontier = leaves[..usize::try_from(old).unwrap()].iter().copied().collect();
        let proof = audit::prove(&mut tx, &Plan::consistency(old, head.size).unwrap()).await.unwrap();
        verify_consistency(earlier.head(), head, &proof).unwrap();
    }
}

#[tokio::test]
async fn a_second_root_for_one_size_is_refused_whoever_signs() {
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let org = BoundOrg::named_by_operator(OrgId::fresh(1_700_000_000_000, [1; 10]));
    invent(&mut owner, org.org(), 300).await;
    let (one, other) = (signing(&database).await, signing(&database).await);
    let head = note(&one, org).await;
    // Another process with the same log gets the same head, and stores no second one.
    assert_eq!(note(&other, org).await, head);
    let forged = TreeHead { root: Hash([9; 32]), ..head };
    let mut tx = other.begin(org).await.unwrap();
    let refused = tx.note_checkpoint("tree.test/x".to_owned(), forged).await.unwrap_err();
    assert!(matches!(refused, DbError::Altered { .. }), "{refused}");
    // Both began before either was committed: the table's key decides.
    let next = BoundOrg::named_by_operator(OrgId::fresh(1_700_000_000_000, [2; 10]));
    invent(&mut owner, next.org(), 5).await;
    let (mut first, mut second) = (one.begin(next).await.unwrap(), other.begin(next).await.unwrap());
    let true_head = first.head().await.unwrap();
    second.head().await.unwrap();
    first.note_checkpoint("tree.test/y".to_owned(), true_head).await.unwrap();
    first.commit().await.unwrap();
    let forged = TreeHead { root: Hash([9; 32]), ..true_head };
    let refused = second.note_checkpoint("tree.test/y".to_owned(), forged).await.unwrap_err();
    assert!(matches!(refused, DbError::Conflict(_) | DbError::Unavailable(_)), "{refused}");

    // Readers see the stored signatures, the log's own first.
    let key = LogSigner::from_seed(format!("tree.test/{}", org.org()).parse().unwrap(), &[1; 32]);
    one.say_policy(&key.verifier().to_string(), "quorum none\n", &[]).await.unwrap();
    let mut tx = one.begin(org).await.unwrap();
    let signed = key.sign(head);
    tx.keep(head.size, &signed.signatures()[0]).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = database.db.read(org).await.unwrap();
    assert_eq!(audit::newest_checkpoint(&mut tx).await.unwrap().unwrap().note, signed);
    assert_eq!(one.orgs(1, 1).await.unwrap(), [next]);
}

#[tokio::test]
async fn a_head_that_is_signed_while_a_check_ends_is_compared() {
    let database = database().await;
    let history = History::eventful(1);
    history.apply(&database.db, Pipeline::Audit, lease(&database.db).await, 1_000).await;
    let mut checking = audit::LogChecking::default();
    let mut view = database.db.read(history.bound()).await.unwrap();
    while !checking.go_on(&mut view, 500).await.unwrap() {}
    drop(view);

    let db = signing(&database).await;
    let head = note(&db, history.bound()).await;
    let key = LogSigner::from_seed(format!("tree.test/{}", history.org).parse().unwrap(), &[1; 32]);
    db.say_policy(&key.verifier().to_string(), "quorum none\n", &[]).await.unwrap();
    let mut tx = db.begin(history.bound()).await.unwrap();
    tx.keep(head.size, &key.sign(head).signatures()[0]).await.unwrap();
    tx.commit().await.unwrap();

    let mut view = database.db.read(history.bound()).await.unwrap();
    assert!(checking.go_on(&mut view, 500).await.unwrap());
    let checked = checking.finish(&mut view).await.unwrap();
    assert_eq!((checked.differences, checked.heads), (Vec::new(), 1));
    assert_eq!(checked.newest.map(|newest| newest.head), Some(head));
}

#[tokio::test]
async fn the_signing_login_reads_no_payload_and_changes_nothing() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.app_url("app_sign")).await.unwrap();
    for statement in [
        "SELECT payload FROM audit.events",
        "SELECT * FROM rm.records",
        "UPDATE audit.events SET leaf = ''",
        "DELETE FROM audit.checkpoints",
        "UPDATE audit.checkpoints SET root = ''",
        "DELETE FROM audit.signatures",
        "UPDATE audit.heads SET next_idx = 0",
        "INSERT INTO audit.events (org_id) VALUES (NULL)",
        "SET ROLE app_owner",
        "SET ROLE app_rw",
    ] {
        let refused = sqlx::query(statement).execute(&mut connection).await.unwrap_err();
        let code = refused.as_database_error().and_then(DatabaseError::code);
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {refused}");
    }
}
