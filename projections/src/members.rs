//! Members: one row per person in an org, kept after they leave.

use std::collections::BTreeMap;

use orgstream_events::{MemberAdded, MemberEvent, MemberId, Role, Timestamp, UserId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{column, from_bigint, parsed},
    page::newest_first,
    read_model::ReadModel,
};

/// The current state of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The person inside the org.
    pub id: MemberId,
    /// The person outside it; never shown.
    pub user_id: UserId,
    /// The member's e-mail address.
    pub email: String,
    /// The member's role.
    pub role: Role,
    /// False once the member has left.
    pub active: bool,
    /// The version of the members aggregate at the member's last change.
    pub version: u64,
    /// When the member joined.
    pub created_at: Timestamp,
    /// When the member last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of that change.
    pub seq: u64,
}

impl Placed for Member {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "members",
    "rm.members",
    "id",
    &["id", "user_id", "email", "role", "status", "version", "created_at", "updated_at", "seq"],
    &[("id", |id| MemberId::from_uuid(id).to_string())],
)
.without(&["user_id"]);

/// A batch's changes to the rows: inserts, and the last state of every changed row.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<MemberId, (&'a MemberAdded, OffsetDateTime)>,
    changes: BTreeMap<MemberId, Change>,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change {
    role: Option<Role>,
    status: Option<&'static str>,
    row_version: RowVersion,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, event: &'a MemberEvent, row_version: RowVersion) {
        let (id, role, status) = match event {
            MemberEvent::Added(event) => {
                self.inserts.insert(event.member_id, (event, row_version.at));
                (event.member_id, Some(event.role), Some("active"))
            }
            MemberEvent::RoleChanged(event) => (event.member_id, Some(event.to), None),
            MemberEvent::Removed(event) => (event.member_id, None, Some("removed")),
        };
        let change = self.changes.entry(id).or_insert(Change { role: None, status: None, row_version });
        change.role = role.or(change.role);
        change.status = status.or(change.status);
        change.row_version = row_version;
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.inserts.contains_key(id));
        // The older rows first: a member may have been removed before the same login was added again.
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.members
                    (org_id, id, user_id, email, role, status, version, created_at, updated_at, seq)
                SELECT $1, old.id, old.user_id, old.email, coalesce(change.role, old.role),
                    coalesce(change.status, old.status), change.version, old.created_at, change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[], $7::bigint[])
                    AS change (id, role, status, version, updated_at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.members WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    role = excluded.role,
                    status = excluded.status,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.role.map(|role| role.to_string())) as _,
                column(&changed, |(_, change)| change.status) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.members", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.values().collect();
            sqlx::query!(
                "INSERT INTO rm.members
                    (org_id, id, user_id, email, role, status, version, created_at, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                    $8::timestamptz[], $9::timestamptz[], $10::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    user_id = excluded.user_id,
                    email = excluded.email,
                    role = excluded.role,
                    status = excluded.status,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                &column(&inserts, |(added, _)| added.user_id.uuid()),
                column(&inserts, |(added, _)| added.email.as_str()) as _,
                column(&born, |(_, change)| change.role.map(|role| role.to_string())) as _,
                column(&born, |(_, change)| change.status) as _,
                &column(&born, |(_, change)| change.row_version.version),
                &column(&inserts, |(_, at)| *at),
                &column(&born, |(_, change)| change.row_version.at),
                &column(&born, |(_, change)| change.row_version.seq),
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}

struct Row {
    id: Uuid,
    user_id: Uuid,
    email: String,
    role: String,
    active: bool,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for Member {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: MemberId::from_uuid(row.id),
            user_id: UserId::from_uuid(row.user_id),
            email: row.email,
            role: parsed("a role", row.role)?,
            active: row.active,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// Returns the active members; with `removed`, those who left as well; with `email`, the members with this address,
/// regardless of case.
pub async fn list(
    tx: &mut TenantTx,
    removed: bool,
    email: Option<&str>,
    page: &Page<Place>,
    limit: u16,
) -> Result<Listing<Member>, DbError> {
    let rows = newest_first!(
        Row,
        r#"SELECT id, user_id, email, role, status = 'active' AS "active!", version, created_at, updated_at, seq
        FROM rm.members WHERE org_id = $1 AND ($5 OR status = 'active')
            AND ($6::text IS NULL OR lower(email COLLATE "C") = lower($6 COLLATE "C"))"#,
        tx,
        page,
        limit,
        removed,
        email
    )?;
    Listing::new(rows, page, limit)
}

/// Returns one member, active or not.
pub async fn get(tx: &mut TenantTx, id: MemberId) -> Result<Option<Member>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id, user_id, email, role, status = 'active' AS "active!", version, created_at, updated_at, seq
        FROM rm.members WHERE org_id = $1 AND id = $2"#,
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(Member::try_from).transpose()
}

/// Returns the active membership of a login.
pub async fn get_by_user(tx: &mut TenantTx, user: UserId) -> Result<Option<Member>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id, user_id, email, role, status = 'active' AS "active!", version, created_at, updated_at, seq
        FROM rm.members WHERE org_id = $1 AND user_id = $2 AND status = 'active'"#,
        org,
        user.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(Member::try_from).transpose()
}

/// Returns the version of the members aggregate: of the last change to any member.
pub async fn roster_version(tx: &mut TenantTx) -> Result<u64, DbError> {
    let org = tx.org().uuid();
    let version =
        sqlx::query_scalar!(r#"SELECT coalesce(max(version), 0) AS "version!" FROM rm.members WHERE org_id = $1"#, org);
    Ok(from_bigint(version.fetch_one(tx.connection()).await?))
}
