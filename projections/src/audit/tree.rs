//! The Merkle tree over an org's audit log: its frontier, which every append moves, and its tiles, which are stored
//! once they are full and computed until then.

use std::collections::BTreeSet;

use orgstream_events::cause;
use orgstream_transparency::{Frontier, Hash, Plan, TILE_WIDTH, Tile, Tiles, leaf_hash};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    DbError, TenantTx,
    convert::{column, fingerprint, from_bigint, to_bigint},
};

/// Leaves per read for a log without a frontier.
const CHUNK: i64 = 4_096;

/// The end of a log: its number of events, and the frontier over them. It is shorter than the log only if a program
/// version without frontiers has appended.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogEnd {
    size: u64,
    frontier: Frontier,
}

impl LogEnd {
    /// Converts the stored row; a log without a row is empty.
    pub(crate) fn stored(size: Option<i64>, frontier: Option<Vec<u8>>) -> Result<Self, DbError> {
        let size = size.map_or(0, from_bigint);
        let frontier = frontier.map_or(Ok(Frontier::default()), |bytes| Frontier::from_bytes(&bytes));
        match frontier {
            Ok(frontier) if frontier.size() <= size => Ok(Self { size, frontier }),
            Ok(frontier) => Err(unreadable(format!("{} leaves of {size} events", frontier.size()))),
            Err(error) => Err(undecodable("the end of an audit log".to_owned(), error)),
        }
    }

    /// The number of events.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The frontier, for storage.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.frontier.to_bytes()
    }

    /// The root over all events.
    pub(crate) fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Returns the end after these leaves.
    pub(crate) fn after(&self, leaves: &[Hash]) -> Self {
        let mut frontier = self.frontier.clone();
        frontier.extend(leaves.iter().copied());
        Self { size: self.size + leaves.len() as u64, frontier }
    }

    /// Advances the frontier to the end of the log, from the stored leaves. Does nothing except the first time.
    pub(crate) async fn catch_up(&mut self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        while self.frontier.size() < self.size {
            let leaves = stored_leaves(connection, org, self.frontier.size(), CHUNK).await?;
            if leaves.is_empty() {
                return Err(unreadable(format!("{} leaves of {} events", self.frontier.size(), self.size)));
            }
            let missing = self.size - self.frontier.size();
            self.frontier.extend(leaves.into_iter().take(usize::try_from(missing).unwrap_or(usize::MAX)));
        }
        Ok(())
    }
}

fn unreadable(value: String) -> DbError {
    DbError::Unreadable { what: "the end of an audit log", value }
}

fn undecodable(what: String, error: impl std::error::Error + Send + Sync + 'static) -> DbError {
    DbError::Undecodable { what, cause: cause(error) }
}

fn hash(bytes: Vec<u8>) -> Result<Hash, DbError> {
    Ok(Hash(fingerprint("a hash of the audit log", bytes)?.0))
}

/// Returns up to `limit` leaves from `start` on, as they were stored.
async fn stored_leaves(connection: &mut PgConnection, org: Uuid, start: u64, limit: i64) -> Result<Vec<Hash>, DbError> {
    let rows = sqlx::query_scalar!(
        "SELECT leaf FROM audit.events WHERE org_id = $1 AND idx >= $2 AND idx < $2 + $3 ORDER BY idx",
        org,
        to_bigint(start),
        limit,
    );
    rows.fetch_all(connection).await?.into_iter().map(hash).collect()
}

/// Returns leaves as recomputed from the events' bytes, and the indexes where the stored leaf differs.
pub(super) async fn recomputed_leaves(
    connection: &mut PgConnection,
    org: Uuid,
    start: u64,
    limit: i64,
) -> Result<Result<Vec<Hash>, u64>, DbError> {
    let rows = sqlx::query!(
        "SELECT idx, header, leaf FROM audit.events WHERE org_id = $1 AND idx >= $2 AND idx < $2 + $3 ORDER BY idx",
        org,
        to_bigint(start),
        limit,
    );
    let mut leaves = Vec::new();
    for row in rows.fetch_all(connection).await? {
        let leaf = leaf_hash(&row.header);
        if leaf.0 != *row.leaf {
            return Ok(Err(from_bigint(row.idx)));
        }
        leaves.push(leaf);
    }
    Ok(Ok(leaves))
}

/// Returns the roots of up to `limit` full tiles of a level, from `first` on.
pub(super) async fn tile_roots(
    connection: &mut PgConnection,
    org: Uuid,
    level: u8,
    first: u64,
    limit: i64,
) -> Result<Vec<Hash>, DbError> {
    let rows = sqlx::query_scalar!(
        "SELECT root FROM audit.tiles WHERE org_id = $1 AND level = $2 AND index >= $3 AND index < $3 + $4 ORDER BY index",
        org,
        i16::from(level),
        to_bigint(first),
        limit,
    );
    rows.fetch_all(connection).await?.into_iter().map(hash).collect()
}

/// Returns the hashes of these tiles, without those that the log does not have. Full ones are read in one statement; of
/// the others there is at most one in each level.
pub(super) async fn tiles(connection: &mut PgConnection, org: Uuid, wanted: &BTreeSet<Tile>) -> Result<Tiles, DbError> {
    let asked: Vec<&Tile> = wanted.iter().collect();
    let rows = sqlx::query!(
        r#"SELECT tile.level, tile.index, tile.hashes
        FROM unnest($2::smallint[], $3::bigint[]) AS wanted (level, index)
        JOIN audit.tiles AS tile ON tile.org_id = $1 AND tile.level = wanted.level AND tile.index = wanted.index"#,
        org,
        &column(&asked, |tile| i16::from(tile.level())),
        &column(&asked, |tile| to_bigint(tile.index())),
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut tiles = Tiles::new();
    for row in rows {
        let is_it = |tile: &&&Tile| (i16::from(tile.level()), to_bigint(tile.index())) == (row.level, row.index);
        if let Some(tile) = asked.iter().find(is_it) {
            let hashes = tile.read(&row.hashes);
            let hashes = hashes.map_err(|error| undecodable(format!("the tile {tile} of an audit log"), error))?;
            tiles.insert(**tile, hashes);
        }
    }
    for tile in wanted {
        if !tiles.contains_key(tile) {
            let (first, width) = (tile.index() * u64::from(TILE_WIDTH), i64::from(tile.width()));
            let hashes = match tile.level().checked_sub(1) {
                None => stored_leaves(connection, org, first, width).await?,
                Some(below) => tile_roots(connection, org, below, first, width).await?,
            };
            if hashes.len() == usize::from(tile.width()) {
                tiles.insert(*tile, hashes);
            }
        }
    }
    Ok(tiles)
}

pub(super) async fn prove_with(connection: &mut PgConnection, org: Uuid, plan: &Plan) -> Result<Vec<Hash>, DbError> {
    let tiles = tiles(connection, org, &plan.tiles()).await?;
    plan.prove(&tiles).map_err(|missing| undecodable("the tree of an audit log".to_owned(), missing))
}

/// Returns the hashes of a proof in the org's tree.
pub async fn prove(tx: &mut TenantTx, plan: &Plan) -> Result<Vec<Hash>, DbError> {
    let org = tx.org().uuid();
    prove_with(tx.connection(), org, plan).await
}

/// Returns one tile; None while the log is too short for it.
pub async fn tile(tx: &mut TenantTx, tile: Tile) -> Result<Option<Vec<Hash>>, DbError> {
    let org = tx.org().uuid();
    let found = tiles(tx.connection(), org, &BTreeSet::from([tile])).await?;
    Ok(found.into_values().next())
}
