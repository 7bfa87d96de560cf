//! The operations of the signing process, by a login of its own: reading the log, storing tiles, heads and signatures.
//!
//! Nothing is signed here and no key is present. The order matters: tiles, then the head as a committed row, then,
//! outside, the signature. A head is recomputed from the events' bytes, compared with the frontier that the appends
//! left, and proven to continue the head before it; if any of that fails, there is no row and so no signature.

use orgstream_events::{OrgId, cause};
use orgstream_transparency::{
    FormatError, Hash, Plan, ProofError, SignatureLine, TILE_WIDTH, Tile, TreeHead, subtree_root, verify_consistency,
};
use sqlx::{Postgres, Transaction, postgres::PgListener};
use uuid::Uuid;

use super::tree::{self, LogEnd};
use crate::{
    BoundOrg, DatabaseOptions, DbError, Finding, catalogue,
    convert::{fingerprint, from_bigint, to_bigint},
    database::{begin_with, pool},
    migrate,
    pool::Pool,
};

const ROLE: &str = "app_sign";
/// The notification channel for requested checkpoints.
const CHANNEL: &str = "audit_sign";
/// Tiles of leaves that are stored in one transaction: 16,384 events.
const TILES: u64 = 64;

/// The signing process's database handle. Clones share their connections.
#[derive(Debug, Clone)]
pub struct SigningDatabase {
    pool: Pool,
}

impl SigningDatabase {
    /// Connects, and fails if the server does not answer.
    pub async fn connect(options: &DatabaseOptions) -> Result<Self, DbError> {
        let settings = [("statement_timeout", "15s"), ("idle_in_transaction_session_timeout", "15s"), ("jit", "off")];
        let pool = pool(options, ROLE, &settings, options.rw_connections)?;
        pool.reach().await?;
        Ok(Self { pool })
    }

    /// Returns the conditions that must be corrected before it is used.
    pub async fn preflight(&self) -> Result<Vec<Finding>, DbError> {
        let mut connection = self.pool.inner().acquire().await?;
        let mut findings = catalogue::login(&mut connection).await?;
        findings.extend(migrate::pending(&mut connection).await?);
        Ok(findings)
    }

    /// Closes every connection, and waits for the open transactions.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Returns the orgs whose log has `grown_by` events since its last checkpoint, and those whose last one has fewer
    /// than `signed_by` signatures.
    pub async fn orgs(&self, grown_by: u64, signed_by: usize) -> Result<Vec<BoundOrg>, DbError> {
        let signed_by = i64::try_from(signed_by).unwrap_or(i64::MAX);
        let ids = sqlx::query_scalar!(r#"SELECT app.orgs_to_sign($1, $2) AS "org!""#, to_bigint(grown_by), signed_by);
        let ids = ids.fetch_all(&self.pool).await?;
        Ok(ids.into_iter().map(|id| BoundOrg::named_by_operator(OrgId::from_uuid(id))).collect())
    }

    /// Publishes the signing key, the witnesses, and the notes by which the key was handed over, for exports to
    /// include.
    pub async fn say_policy(&self, vkey: &str, witnesses: &str, handovers: &[String]) -> Result<(), DbError> {
        sqlx::query("INSERT INTO ops.log_handovers (note) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING")
            .bind(handovers)
            .execute(&self.pool)
            .await?;
        sqlx::query!(
            "INSERT INTO ops.log_policies (vkey, witnesses) VALUES ($1, $2)
            ON CONFLICT (vkey) DO UPDATE SET witnesses = $2, said_at = clock_timestamp()",
            vkey,
            witnesses,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Returns every key published here as signing, and every note by which one handed over to the next.
    pub async fn known_keys(&self) -> Result<(Vec<String>, Vec<String>), DbError> {
        let keys = sqlx::query_scalar("SELECT vkey FROM ops.log_policies ORDER BY said_at");
        let notes = sqlx::query_scalar("SELECT note FROM ops.log_handovers ORDER BY said_at, note");
        Ok((keys.fetch_all(&self.pool).await?, notes.fetch_all(&self.pool).await?))
    }

    /// Returns the receipts of deletions that are to be signed; at most 100.
    pub async fn receipts(&self) -> Result<Vec<(OrgId, String)>, DbError> {
        let rows: Vec<(Uuid, String)> = sqlx::query_as(
            "SELECT org, receipt FROM ops.deletions WHERE receipt IS NOT NULL AND note IS NULL ORDER BY org LIMIT 100",
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|(org, receipt)| (OrgId::from_uuid(org), receipt)).collect())
    }

    /// Stores a signed receipt. The first one counts.
    pub async fn keep_receipt(&self, org: OrgId, receipt: &str, note: &str) -> Result<(), DbError> {
        sqlx::query("UPDATE ops.deletions SET note = $3 WHERE org = $1 AND receipt = $2 AND note IS NULL")
            .bind(org.uuid())
            .bind(receipt)
            .bind(note)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Returns the requests of readers that do not wait for the next round.
    pub async fn wishes(&self) -> Result<Wishes, DbError> {
        let mut listener = PgListener::connect_with(self.pool.inner()).await?;
        listener.listen(CHANNEL).await?;
        Ok(Wishes(listener))
    }

    /// Begins a transaction that is bound to one org.
    pub async fn begin(&self, org: BoundOrg) -> Result<SigningTx, DbError> {
        // The only value is a UUID that this program formats: no client's text gets here.
        let statement = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT set_config('app.org_id', '{}', true)",
            org.org().uuid()
        );
        Ok(SigningTx { transaction: begin_with(&self.pool, statement).await?, org: org.org() })
    }
}

/// The orgs for which checkpoints are requested.
#[derive(Debug)]
pub struct Wishes(PgListener);

impl Wishes {
    /// Returns the next one. Requests are lost while the connection is; the requester notices by a timeout, and
    /// retries.
    pub async fn next(&mut self) -> Result<BoundOrg, DbError> {
        loop {
            let wish = self.0.recv().await?;
            if let Ok(id) = wish.payload().parse::<Uuid>() {
                return Ok(BoundOrg::named_by_operator(OrgId::from_uuid(id)));
            }
        }
    }
}

/// A transaction of the signing process about one org. Dropping it rolls it back.
#[derive(Debug)]
pub struct SigningTx {
    transaction: Transaction<'static, Postgres>,
    org: OrgId,
}

impl SigningTx {
    /// Commits it: it is on disk when this returns.
    pub async fn commit(self) -> Result<(), DbError> {
        Ok(self.transaction.commit().await?)
    }

    async fn end(&mut self) -> Result<LogEnd, DbError> {
        let row = sqlx::query!("SELECT next_idx, frontier FROM audit.heads WHERE org_id = $1", self.org.uuid());
        let row = row.fetch_optional(&mut *self.transaction).await?;
        let (size, frontier) = row.map_or((None, None), |row| (Some(row.next_idx), row.frontier));
        let mut end = LogEnd::stored(size, frontier)?;
        end.catch_up(&mut self.transaction, self.org.uuid()).await?;
        Ok(end)
    }

    /// Stores tiles that have become full, and returns whether there are more.
    pub async fn store_tiles(&mut self) -> Result<bool, DbError> {
        let org = self.org.uuid();
        let stored = sqlx::query_scalar!("SELECT max(index) FROM audit.tiles WHERE org_id = $1 AND level = 0", org);
        let stored = stored.fetch_one(&mut *self.transaction).await?.map_or(0, |last| from_bigint(last) + 1);
        let size = sqlx::query_scalar!("SELECT next_idx FROM audit.heads WHERE org_id = $1", org);
        let size = size.fetch_optional(&mut *self.transaction).await?.map_or(0, from_bigint);
        let full = size / u64::from(TILE_WIDTH);
        let upto = full.min(stored + TILES);
        let (old, new) = (stored * u64::from(TILE_WIDTH), upto * u64::from(TILE_WIDTH));
        for tile in Tile::grown(old, new).filter(|tile| tile.width() == TILE_WIDTH) {
            let first = tile.index() * u64::from(TILE_WIDTH);
            let hashes = match tile.level().checked_sub(1) {
                None => self.leaves(first, TILE_WIDTH.into()).await?,
                Some(below) => tree::tile_roots(&mut self.transaction, org, below, first, TILE_WIDTH.into()).await?,
            };
            let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
            let root = subtree_root(&hashes).0;
            sqlx::query!(
                "INSERT INTO audit.tiles (org_id, level, index, hashes, root) VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT DO NOTHING",
                org,
                i16::from(tile.level()),
                to_bigint(tile.index()),
                bytes,
                root.as_slice(),
            )
            .execute(&mut *self.transaction)
            .await?;
        }
        Ok(upto < full)
    }

    /// Computes leaves from the events' own bytes.
    async fn leaves(&mut self, first: u64, count: i64) -> Result<Vec<Hash>, DbError> {
        let leaves = tree::recomputed_leaves(&mut self.transaction, self.org.uuid(), first, count).await?;
        leaves.map_err(|idx| self.altered(format!("the header of event {idx} is another than its leaf")))
    }

    fn altered(&self, what: String) -> DbError {
        DbError::Altered { org: self.org, what, cause: None }
    }

    /// Returns the current head of the log. Tiles have to be stored before.
    pub async fn head(&mut self) -> Result<TreeHead, DbError> {
        let end = self.end().await?;
        let width = u64::from(TILE_WIDTH);
        let edge = end.size() / width * width;
        let leaves = self.leaves(edge, TILE_WIDTH.into()).await?;
        if edge + leaves.len() as u64 != end.size() {
            return Err(self.altered(format!("{} events are there of {}", edge + leaves.len() as u64, end.size())));
        }
        let root = self.prove(&Plan::root(end.size())).await?.into_iter().next().unwrap_or(Hash::OF_NOTHING);
        if root != end.root() {
            return Err(self.altered(format!("the root over its {} events is {root}, not {}", end.size(), end.root())));
        }
        Ok(TreeHead { size: end.size(), root })
    }

    /// Returns the head of the newest checkpoint, and its origin.
    pub async fn newest(&mut self) -> Result<Option<(TreeHead, String)>, DbError> {
        let row = sqlx::query!(
            "SELECT size, root, origin FROM audit.checkpoints WHERE org_id = $1 ORDER BY size DESC LIMIT 1",
            self.org.uuid()
        );
        let row = row.fetch_optional(&mut *self.transaction).await?;
        row.map(|row| {
            let root = Hash(fingerprint("a root", row.root)?.0);
            Ok((TreeHead { size: from_bigint(row.size), root }, row.origin))
        })
        .transpose()
    }

    /// Stores `head` to be signed as that of the log `origin`, if it continues the newest checkpoint. If it is the
    /// newest, it keeps its stored origin.
    pub async fn note_checkpoint(&mut self, origin: String, head: TreeHead) -> Result<String, DbError> {
        if let Some((newest, origin)) = self.newest().await? {
            if newest == head {
                return Ok(origin);
            }
            let org = self.org;
            let refused = |error: ProofError| DbError::Altered {
                org,
                what: format!("{head:?} does not continue the checkpoint {newest:?}"),
                cause: Some(cause(error)),
            };
            let plan = Plan::consistency(newest.size, head.size).map_err(refused)?;
            let proof = self.prove(&plan).await?;
            verify_consistency(newest, head, &proof).map_err(refused)?;
        }
        sqlx::query!(
            "INSERT INTO audit.checkpoints (org_id, size, root, origin) VALUES ($1, $2, $3, $4)",
            self.org.uuid(),
            to_bigint(head.size),
            head.root.0.as_slice(),
            origin,
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(origin)
    }

    /// Returns the hashes of a proof.
    pub async fn prove(&mut self, plan: &Plan) -> Result<Vec<Hash>, DbError> {
        tree::prove_with(&mut self.transaction, self.org.uuid(), plan).await
    }

    /// Returns the signatures of the checkpoint of this size, the log's own first.
    pub async fn signatures(&mut self, size: u64) -> Result<Vec<SignatureLine>, DbError> {
        let lines = sqlx::query_scalar!(
            "SELECT line FROM audit.signatures WHERE org_id = $1 AND size = $2 ORDER BY made_at, name",
            self.org.uuid(),
            to_bigint(size),
        );
        let lines = lines.fetch_all(&mut *self.transaction).await?;
        let read = |line: String| {
            line.parse().map_err(|error: FormatError| DbError::Undecodable {
                what: format!("the signature {line:?}"),
                cause: cause(error),
            })
        };
        lines.into_iter().map(read).collect()
    }

    /// Returns the size of the largest checkpoint signed under this name; 0 without one.
    pub async fn signed_by(&mut self, name: &str) -> Result<u64, DbError> {
        let size = sqlx::query_scalar!(
            "SELECT max(size) FROM audit.signatures WHERE org_id = $1 AND name = $2",
            self.org.uuid(),
            name,
        );
        Ok(size.fetch_one(&mut *self.transaction).await?.map_or(0, from_bigint))
    }

    /// Stores a signature of the checkpoint of this size.
    pub async fn keep(&mut self, size: u64, line: &SignatureLine) -> Result<(), DbError> {
        sqlx::query!(
            "INSERT INTO audit.signatures (org_id, size, name, key_id, line) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT DO NOTHING",
            self.org.uuid(),
            to_bigint(size),
            line.name.as_str(),
            line.key_id.as_slice(),
            line.to_string(),
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }
}
