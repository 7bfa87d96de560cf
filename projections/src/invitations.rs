//! Invitations: one row each, kept after they are accepted or revoked, and the mails that go out with them.
//!
//! The outbox is a table of its own, without versions: a mail is sent once, however often its row is rebuilt.

use std::collections::BTreeMap;

use orgstream_events::{
    Actor, CommandId, Fingerprint, InvitationEvent, InvitationId, InvitationIssued, MemberId, Role, Timestamp,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    CreatedBy, DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{column, fingerprint, from_bigint, from_wire, parsed},
    page::newest_first,
    read_model::ReadModel,
};

/// The current state of an invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Its id.
    pub id: InvitationId,
    /// The address of the invited person.
    pub email: String,
    /// The role after acceptance.
    pub role: Role,
    /// Its status.
    pub status: InvitationStatus,
    /// When it expires.
    pub expires_at: Timestamp,
    /// The MAC that the token is compared with.
    pub token_mac: Fingerprint,
    /// The command that made the token.
    pub token_command: CommandId,
    /// The member that accepted it.
    pub member_id: Option<MemberId>,
    /// The actor that invited.
    pub created_by: CreatedBy,
    /// The aggregate's version.
    pub version: u64,
    /// When it was issued.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

/// The status of an invitation. An expired one is pending: it can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvitationStatus {
    /// Not accepted yet.
    Pending,
    /// Accepted: a member joined by it.
    Accepted,
    /// It was revoked.
    Revoked,
}

impl Placed for Invitation {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "invitations",
    "rm.invitations",
    "id",
    &[
        "id",
        "email",
        "role",
        "status",
        "expires_at",
        "token_mac",
        "token_command",
        "member_id",
        "created_by_type",
        "created_by_id",
        "version",
        "created_at",
        "updated_at",
        "seq",
    ],
    &[("id", |id| InvitationId::from_uuid(id).to_string()), ("member_id", |id| MemberId::from_uuid(id).to_string())],
)
.without(&["token_mac", "token_command"]);

/// A batch's changes to the rows: inserts, and the last state of every changed row; and the mails to send.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<InvitationId, Birth<'a>>,
    changes: BTreeMap<InvitationId, Change>,
    mails: Vec<(CommandId, InvitationId)>,
}

struct Birth<'a> {
    issued: &'a InvitationIssued,
    by: &'a Actor,
    at: OffsetDateTime,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change {
    offer: Option<Offer>,
    status: Option<&'static str>,
    member_id: Option<Uuid>,
    row_version: RowVersion,
}

#[derive(Clone, Copy)]
struct Offer {
    expires_at: Timestamp,
    token_mac: Fingerprint,
    token_command: CommandId,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(
        &mut self,
        id: InvitationId,
        event: &'a InvitationEvent,
        command: CommandId,
        by: &'a Actor,
        row_version: RowVersion,
    ) {
        let offer = |expires_at, token_mac| Some(Offer { expires_at, token_mac, token_command: command });
        let (offer, status, member_id) = match event {
            InvitationEvent::Issued(issued) => {
                self.inserts.insert(id, Birth { issued, by, at: row_version.at });
                (offer(issued.expires_at, issued.token_mac), Some("pending"), None)
            }
            InvitationEvent::Resent(event) => (offer(event.expires_at, event.token_mac), None, None),
            InvitationEvent::Revoked(_) => (None, Some("revoked"), None),
            InvitationEvent::Accepted(event) => (None, Some("accepted"), Some(event.member_id.uuid())),
        };
        if offer.is_some() {
            self.mails.push((command, id));
        }
        let change =
            self.changes.entry(id).or_insert(Change { offer: None, status: None, member_id: None, row_version });
        change.offer = offer.or(change.offer);
        change.status = status.or(change.status);
        change.member_id = member_id.or(change.member_id);
        change.row_version = row_version;
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.inserts.contains_key(id));
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.invitations (org_id, id, email, role, status, expires_at, token_mac, token_command,
                    member_id, created_by_type, created_by_id, version, created_at, updated_at, seq)
                SELECT $1, old.id, old.email, old.role, coalesce(change.status, old.status),
                    coalesce(change.expires_at, old.expires_at), coalesce(change.token_mac, old.token_mac),
                    coalesce(change.token_command, old.token_command), coalesce(change.member_id, old.member_id),
                    old.created_by_type, old.created_by_id, change.version, old.created_at, change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::text[], $4::timestamptz[], $5::bytea[], $6::uuid[], $7::uuid[],
                    $8::bigint[], $9::timestamptz[], $10::bigint[])
                    AS change (id, status, expires_at, token_mac, token_command, member_id, version, updated_at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.invitations WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    status = excluded.status,
                    expires_at = excluded.expires_at,
                    token_mac = excluded.token_mac,
                    token_command = excluded.token_command,
                    member_id = excluded.member_id,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.status) as _,
                column(&changed, |(_, change)| change.offer.map(|offer| offer.expires_at.to_datetime())) as _,
                column(&changed, |(_, change)| change.offer.map(|offer| offer.token_mac.0.to_vec())) as _,
                column(&changed, |(_, change)| change.offer.map(|offer| offer.token_command.uuid())) as _,
                column(&changed, |(_, change)| change.member_id) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.invitations", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.invitations (org_id, id, email, role, status, expires_at, token_mac, token_command,
                    member_id, created_by_type, created_by_id, version, created_at, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
                    $7::bytea[], $8::uuid[], $9::uuid[], $10::text[], $11::text[], $12::bigint[], $13::timestamptz[],
                    $14::timestamptz[], $15::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    email = excluded.email,
                    role = excluded.role,
                    status = excluded.status,
                    expires_at = excluded.expires_at,
                    token_mac = excluded.token_mac,
                    token_command = excluded.token_command,
                    member_id = excluded.member_id,
                    created_by_type = excluded.created_by_type,
                    created_by_id = excluded.created_by_id,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&inserts, |birth| birth.issued.email.as_str()) as _,
                column(&inserts, |birth| birth.issued.role.to_string()) as _,
                column(&born, |(_, change)| change.status) as _,
                column(&born, |(_, change)| change.offer.map(|offer| offer.expires_at.to_datetime())) as _,
                column(&born, |(_, change)| change.offer.map(|offer| offer.token_mac.0.to_vec())) as _,
                column(&born, |(_, change)| change.offer.map(|offer| offer.token_command.uuid())) as _,
                column(&born, |(_, change)| change.member_id) as _,
                column(&inserts, |birth| birth.by.actor_type.name()) as _,
                column(&inserts, |birth| birth.by.id.as_str()) as _,
                &column(&born, |(_, change)| change.row_version.version),
                &column(&inserts, |birth| birth.at),
                &column(&born, |(_, change)| change.row_version.at),
                &column(&born, |(_, change)| change.row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
        }
        if !self.mails.is_empty() {
            // Skips those that a rebuild inserts again.
            sqlx::query!(
                "INSERT INTO ops.mails (org_id, id, invitation_id)
                SELECT $1, mail.* FROM unnest($2::uuid[], $3::uuid[]) AS mail ON CONFLICT DO NOTHING",
                org,
                &column(&self.mails, |(command, _)| command.uuid()),
                &column(&self.mails, |(_, invitation)| invitation.uuid()),
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}

struct Row {
    id: Uuid,
    email: String,
    role: String,
    status: String,
    expires_at: OffsetDateTime,
    token_mac: Vec<u8>,
    token_command: Uuid,
    member_id: Option<Uuid>,
    created_by_type: String,
    created_by_id: String,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for Invitation {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: InvitationId::from_uuid(row.id),
            email: row.email,
            role: parsed("a role", row.role)?,
            status: from_wire("an invitation's status", row.status)?,
            expires_at: row.expires_at.into(),
            token_mac: fingerprint("a token's mac", row.token_mac)?,
            token_command: CommandId::from_uuid(row.token_command),
            member_id: row.member_id.map(MemberId::from_uuid),
            created_by: CreatedBy::stored(row.created_by_type, row.created_by_id)?,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// Returns all invitations, of any status.
pub async fn list(tx: &mut TenantTx, page: &Page<Place>, limit: u16) -> Result<Listing<Invitation>, DbError> {
    let rows = newest_first!(
        Row,
        "SELECT id, email, role, status, expires_at, token_mac, token_command, member_id, created_by_type, created_by_id,
            version, created_at, updated_at, seq
        FROM rm.invitations WHERE org_id = $1",
        tx,
        page,
        limit
    )?;
    Listing::new(rows, page, limit)
}

/// Returns one invitation.
pub async fn get(tx: &mut TenantTx, id: InvitationId) -> Result<Option<Invitation>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT id, email, role, status, expires_at, token_mac, token_command, member_id, created_by_type, created_by_id,
            version, created_at, updated_at, seq
        FROM rm.invitations WHERE org_id = $1 AND id = $2",
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(Invitation::try_from).transpose()
}

/// Returns the invitation that a token belongs to.
pub async fn get_by_token(tx: &mut TenantTx, token_mac: &Fingerprint) -> Result<Option<Invitation>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT id, email, role, status, expires_at, token_mac, token_command, member_id, created_by_type, created_by_id,
            version, created_at, updated_at, seq
        FROM rm.invitations WHERE org_id = $1 AND token_mac = $2",
        org,
        token_mac.0.as_slice(),
    );
    row.fetch_optional(tx.connection()).await?.map(Invitation::try_from).transpose()
}
