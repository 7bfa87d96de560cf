//! Organizations: one row per org, and the plans of those that are not on the default plan.
//!
//! Plans have a table of their own, without versions: workers use it for fair sharing while a rebuild replays old
//! plans.

use orgstream_events::{
    OrgId, OrganizationCreated, OrganizationEvent, OrganizationLimits, OrganizationSettings, PlanName, Slug,
    TenantType, Timestamp,
};
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, TenantTx,
    apply::{RowVersion, all_there},
    convert::{from_bigint, from_json, from_wire, parsed, wire_name},
    read_model::ReadModel,
};

/// The current state of an organization.
#[derive(Debug, Clone, PartialEq)]
pub struct Organization {
    /// Its id.
    pub id: OrgId,
    /// Its name in URLs.
    pub slug: Slug,
    /// Its human-readable name.
    pub name: String,
    /// The type of tenant.
    pub tenant_type: TenantType,
    /// The region of its data.
    pub region: String,
    /// The reason for its suspension, while it is suspended.
    pub suspended_reason: Option<String>,
    /// Its own settings.
    pub settings: OrganizationSettings,
    /// Its plan.
    pub plan: PlanName,
    /// Its limits that differ from its plan's.
    pub limits: OrganizationLimits,
    /// Its organization id at an external identity provider.
    pub external_id: Option<String>,
    /// When its deletion is carried out, once it was requested and while it is not cancelled.
    pub delete_at: Option<Timestamp>,
    /// When all API keys of that time ended.
    pub keys_ended_at: Option<Timestamp>,
    /// The aggregate's version.
    pub version: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "organization",
    "rm.organizations",
    "org_id",
    &[
        "slug",
        "name",
        "tenant_type",
        "region",
        "suspended_reason",
        "settings",
        "version",
        "created_at",
        "updated_at",
        "seq",
        "external_id",
        "limits",
        "delete_at",
        "keys_ended_at",
    ],
    &[],
);

/// A batch's changes to the row. Fields that are None stay unchanged.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    created: Option<(&'a OrganizationCreated, OffsetDateTime)>,
    slug: Option<&'a Slug>,
    name: Option<&'a str>,
    suspension: Option<Suspension<'a>>,
    settings: Option<&'a OrganizationSettings>,
    plan: Option<(&'a PlanName, i64)>,
    limits: Option<&'a OrganizationLimits>,
    tenant_type: Option<TenantType>,
    external_id: Option<&'a str>,
    deletion: Option<DeletionChange>,
    keys_ended_at: Option<OffsetDateTime>,
    row_version: Option<RowVersion>,
}

#[derive(Clone, Copy)]
enum DeletionChange {
    At(OffsetDateTime),
    Cancelled,
}

impl DeletionChange {
    fn at(self) -> Option<OffsetDateTime> {
        match self {
            Self::At(at) => Some(at),
            Self::Cancelled => None,
        }
    }
}

enum Suspension<'a> {
    Because(&'a str),
    Over,
}

impl<'a> Suspension<'a> {
    fn reason(&self) -> Option<&'a str> {
        match self {
            Self::Because(reason) => Some(reason),
            Self::Over => None,
        }
    }
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, event: &'a OrganizationEvent, row_version: RowVersion) {
        match event {
            OrganizationEvent::Created(event) => {
                *self = Self {
                    created: Some((event, row_version.at)),
                    slug: Some(&event.slug),
                    name: Some(&event.name),
                    tenant_type: Some(event.tenant_type),
                    ..Self::default()
                };
            }
            OrganizationEvent::Renamed(event) => {
                self.slug = Some(&event.slug);
                self.name = Some(&event.name);
            }
            OrganizationEvent::SettingsChanged(event) => self.settings = Some(&event.settings),
            OrganizationEvent::Suspended(event) => self.suspension = Some(Suspension::Because(&event.reason)),
            OrganizationEvent::Resumed(_) => self.suspension = Some(Suspension::Over),
            OrganizationEvent::PlanChanged(event) => self.plan = Some((&event.plan, row_version.seq)),
            OrganizationEvent::LimitsChanged(event) => self.limits = Some(&event.limits),
            OrganizationEvent::Upgraded(event) => self.tenant_type = Some(event.tenant_type),
            OrganizationEvent::IdentityLinked(event) => self.external_id = Some(&event.external_id),
            OrganizationEvent::DeletionRequested(event) => {
                self.deletion = Some(DeletionChange::At(event.grace_until.to_datetime()));
                self.keys_ended_at = Some(row_version.at);
            }
            OrganizationEvent::DeletionCancelled(_) => self.deletion = Some(DeletionChange::Cancelled),
            // What is here goes once the organization is deleted.
            OrganizationEvent::Sealed(_) => {}
        }
        self.row_version = Some(row_version);
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let Some(row_version) = self.row_version else { return Ok(()) };
        if let Some((plan, seq)) = self.plan {
            // Ignores plans that the history passes before the known state.
            sqlx::query!(
                "INSERT INTO ops.plans AS known (org_id, plan, seq) VALUES ($1, $2, $3)
                ON CONFLICT (org_id) DO UPDATE SET plan = excluded.plan, seq = excluded.seq
                WHERE known.seq < excluded.seq",
                org,
                plan.as_str(),
                seq,
            )
            .execute(&mut *connection)
            .await?;
        }
        let Some((created, created_at)) = self.created else {
            let changed = sqlx::query!(
                "UPDATE rm.organizations SET
                    slug = coalesce($2, slug),
                    name = coalesce($3, name),
                    suspended_reason = CASE WHEN $4 THEN $5 ELSE suspended_reason END,
                    settings = coalesce($6, settings),
                    tenant_type = coalesce($10, tenant_type),
                    external_id = coalesce($11, external_id),
                    limits = coalesce($12, limits),
                    delete_at = CASE WHEN $13 THEN $14 ELSE delete_at END,
                    keys_ended_at = coalesce($15, keys_ended_at),
                    version = $7,
                    updated_at = $8,
                    seq = $9
                WHERE org_id = $1",
                org,
                self.slug.map(Slug::as_str),
                self.name,
                self.suspension.is_some(),
                self.suspension.as_ref().and_then(Suspension::reason),
                self.settings.map(Json) as _,
                row_version.version,
                row_version.at,
                row_version.seq,
                self.tenant_type.as_ref().map(wire_name),
                self.external_id,
                self.limits.map(Json) as _,
                self.deletion.is_some(),
                self.deletion.and_then(DeletionChange::at),
                self.keys_ended_at,
            )
            .execute(connection)
            .await?;
            return all_there("rm.organizations", 1, changed.rows_affected());
        };
        let (defaults, no_limits) = (OrganizationSettings::default(), OrganizationLimits::default());
        sqlx::query!(
            "INSERT INTO rm.organizations
                (org_id, slug, name, tenant_type, region, suspended_reason, settings, version, created_at, updated_at, seq,
                external_id, limits, delete_at, keys_ended_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
            ON CONFLICT (org_id, rm_version) DO UPDATE SET
                slug = excluded.slug,
                name = excluded.name,
                tenant_type = excluded.tenant_type,
                region = excluded.region,
                suspended_reason = excluded.suspended_reason,
                settings = excluded.settings,
                version = excluded.version,
                created_at = excluded.created_at,
                updated_at = excluded.updated_at,
                seq = excluded.seq,
                external_id = excluded.external_id,
                limits = excluded.limits,
                delete_at = excluded.delete_at,
                keys_ended_at = excluded.keys_ended_at",
            org,
            self.slug.map(Slug::as_str),
            self.name,
            wire_name(&self.tenant_type.unwrap_or(created.tenant_type)),
            created.region,
            self.suspension.as_ref().and_then(Suspension::reason),
            Json(self.settings.unwrap_or(&defaults)) as _,
            row_version.version,
            created_at,
            row_version.at,
            row_version.seq,
            self.external_id,
            Json(self.limits.unwrap_or(&no_limits)) as _,
            self.deletion.and_then(DeletionChange::at),
            self.keys_ended_at,
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Returns the bound org itself; None until its creation has been applied.
pub async fn get(tx: &mut TenantTx) -> Result<Option<Organization>, DbError> {
    let org = tx.org();
    let row = sqlx::query!(
        "SELECT slug, name, tenant_type, region, suspended_reason, settings, version, created_at, updated_at, seq,
            external_id, limits, delete_at, keys_ended_at, (SELECT plan FROM ops.plans WHERE org_id = $1) AS plan
        FROM rm.organizations WHERE org_id = $1",
        org.uuid(),
    )
    .fetch_optional(tx.connection())
    .await?;
    row.map(|row| {
        Ok(Organization {
            id: org,
            slug: parsed("a slug", row.slug)?,
            name: row.name,
            tenant_type: from_wire("a tenant type", row.tenant_type)?,
            region: row.region,
            suspended_reason: row.suspended_reason,
            settings: from_json("an organization's settings", &row.settings)?,
            plan: row.plan.map(|plan| parsed("a plan", plan)).transpose()?.unwrap_or_default(),
            limits: from_json("an organization's limits", &row.limits)?,
            external_id: row.external_id,
            delete_at: row.delete_at.map(Into::into),
            keys_ended_at: row.keys_ended_at.map(Into::into),
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    })
    .transpose()
}

/// Returns the bound org's plan, and the stream sequence of the event that set it; None on the default plan.
pub async fn booked(tx: &mut TenantTx) -> Result<Option<(PlanName, u64)>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query!("SELECT plan, seq FROM ops.plans WHERE org_id = $1", org);
    let row = row.fetch_optional(tx.connection()).await?;
    row.map(|row| Ok((parsed("a plan", row.plan)?, from_bigint(row.seq)))).transpose()
}
