//! Which views a version folds: it takes up what a kind declares with the first record of the kind, and keeps to that.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use orgstream_events::{KindName, OrgId, Pipeline, RecordId, ViewDefinition};
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::contribution::{InView, View};
use crate::{
    Asked, BoundOrg, Database, DbError, RebuildJob, RebuildState, TenantTx,
    apply::{place_of, version_setting},
    convert::{Document, column, from_bigint, parsed, to_bigint},
};

/// The most kinds that are remembered to have no views.
const MAX_PLAIN: usize = 10_000;

/// Where a version gets the views from that it takes up with the first record of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum TakesUp {
    /// What the kind declares now.
    #[default]
    Declared,
    /// What the version that is shown has taken up, with which this one is compared.
    Shown,
}

/// Kinds that have never declared a view, by who defines them, each with the version up to which that is known. So their records cost no query.
#[derive(Debug, Default)]
pub(crate) struct PlainKinds(Mutex<HashMap<(OrgId, KindName), u64>>);

impl PlainKinds {
    fn has(&self, org: OrgId, kind: &KindName, version: u64) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(kind.owner(org), kind.clone())).is_some_and(|known| *known >= version)
    }

    fn note(&self, org: OrgId, kind: &KindName, version: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_PLAIN {
            known.clear();
        }
        known.insert((kind.owner(org), kind.clone()), version);
    }
}

/// What a batch knows of its version's views before it asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Folding {
    pub(crate) takes_up: TakesUp,
    /// Whether the version folds any view; none when that is not known.
    pub(crate) folds: Option<bool>,
    pub(crate) plain: Arc<PlainKinds>,
}

/// The views of a kind as a version folds them.
#[derive(Debug, Clone, PartialEq)]
pub struct KindViews {
    /// The version of the kind that declared them.
    pub kind_version: u64,
    /// Their definitions.
    pub views: Vec<ViewDefinition>,
}

/// A record before the batch.
#[derive(Debug)]
pub(crate) struct Before {
    id: Uuid,
    pub(crate) kind: String,
    data: Json<Document>,
    pub(crate) active: bool,
    pub(crate) created_at: OffsetDateTime,
    seq: i64,
}

impl Before {
    pub(crate) fn id(&self) -> RecordId {
        RecordId::from_uuid(self.id)
    }

    /// What it contributed.
    pub(crate) fn in_view(&self) -> Option<InView<'_>> {
        let Self { kind, data, created_at, seq, .. } = self;
        self.active.then(|| InView { kind, data: &data.0.0, created_at: *created_at, place: place_of(*seq, 0) })
    }
}

/// The views that a batch folds.
pub(crate) struct Views(pub(super) BTreeMap<String, Vec<View>>);

impl Views {
    /// Finds the views of the version, and takes up those of kinds whose first records are `born` in this batch, each with the
    /// version of the kind. Before the batch writes any record.
    pub(crate) async fn begin(
        connection: &mut PgConnection,
        org: Uuid,
        folding: &Folding,
        born: &BTreeMap<&KindName, u64>,
    ) -> Result<Self, DbError> {
        let mut views = BTreeMap::new();
        if folding.folds != Some(false) {
            let rows = sqlx::query!(
                r#"SELECT kind, views AS "views: Json<Vec<ViewDefinition>>" FROM rm.kind_views WHERE org_id = $1"#,
                org,
            );
            for row in rows.fetch_all(&mut *connection).await? {
                views.insert(row.kind, row.views.0);
            }
        }
        let new = born.iter().filter(|(kind, version)| {
            let is_plain =
                folding.takes_up == TakesUp::Declared && folding.plain.has(OrgId::from_uuid(org), kind, **version);
            !is_plain && !views.contains_key(kind.as_str())
        });
        let new: Vec<&KindName> = new.map(|(kind, _)| *kind).collect();
        if !new.is_empty() {
            for (kind, taken) in take_up(connection, org, folding, new).await? {
                views.insert(kind.into(), taken.views);
            }
        }
        let compiled = |(kind, views): (String, Vec<ViewDefinition>)| {
            let views = views.into_iter().map(|view| View::new(&kind, view)).collect();
            (kind, views)
        };
        Ok(Self(views.into_iter().map(compiled).collect()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, kind: &str) -> bool {
        self.0.contains_key(kind)
    }

    /// Reads the records of these ids whose kinds have views.
    pub(crate) async fn before(
        &self,
        connection: &mut PgConnection,
        org: Uuid,
        ids: &[Uuid],
    ) -> Result<Vec<Before>, DbError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let kinds: Vec<String> = self.0.keys().cloned().collect();
        let rows = sqlx::query_as!(
            Before,
            r#"SELECT old.id, old.kind, old.data AS "data: Json<Document>", old.status = 'active' AS "active!", old.created_at,
                old.seq
            FROM unnest($2::uuid[]) AS wanted (id)
            CROSS JOIN LATERAL (
                SELECT * FROM rm.records WHERE org_id = $1 AND id BETWEEN wanted.id AND wanted.id ORDER BY id LIMIT 1
            ) AS old
            WHERE old.kind = ANY ($3)"#,
            org,
            ids,
            &kinds,
        );
        Ok(rows.fetch_all(connection).await?)
    }
}

/// Returns the views of those kinds that have no record in this version yet, and writes down that it folds them.
async fn take_up(
    connection: &mut PgConnection,
    org: Uuid,
    folding: &Folding,
    kinds: Vec<&KindName>,
) -> Result<Vec<(KindName, KindViews)>, DbError> {
    let mut names: Vec<KindName> = kinds.into_iter().cloned().collect();
    let mut found = Vec::new();
    if folding.takes_up == TakesUp::Declared {
        let mut by_owner: BTreeMap<OrgId, Vec<KindName>> = BTreeMap::new();
        for name in &names {
            by_owner.entry(name.owner(OrgId::from_uuid(org))).or_default().push(name.clone());
        }
        for (owner, names) in by_owner {
            found.extend(bound_to(connection, owner, &names, TakesUp::Declared).await?);
        }
        for (kind, declared) in &found {
            if declared.views.is_empty() {
                folding.plain.note(OrgId::from_uuid(org), kind, declared.kind_version);
            }
        }
        found.retain(|(_, declared)| !declared.views.is_empty());
        names = found.iter().map(|(kind, _)| kind.clone()).collect();
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let first = sqlx::query_scalar!(
        r#"SELECT wanted.kind AS "kind!" FROM unnest($2::text[]) AS wanted (kind)
        LEFT JOIN LATERAL (
            SELECT kind FROM rm.records WHERE org_id = $1 AND kind = wanted.kind LIMIT 1
        ) AS known ON true
        WHERE known.kind IS NULL"#,
        org,
        column(&names, KindName::as_str) as _,
    );
    let first: Vec<String> = first.fetch_all(&mut *connection).await?;
    if folding.takes_up == TakesUp::Shown {
        names.retain(|kind| first.iter().any(|name| name == kind.as_str()));
        if names.is_empty() {
            return Ok(Vec::new());
        }
        found = bound_to(connection, OrgId::from_uuid(org), &names, TakesUp::Shown).await?;
    }
    found.retain(|(kind, _)| first.iter().any(|name| name == kind.as_str()));
    if found.is_empty() {
        return Ok(found);
    }
    sqlx::query!(
        "INSERT INTO rm.kind_views (org_id, kind, kind_version, views)
        SELECT $1, taken.* FROM unnest($2::text[], $3::bigint[], $4::jsonb[]) AS taken",
        org,
        column(&found, |(kind, _)| kind.as_str()) as _,
        &column(&found, |(_, taken)| to_bigint(taken.kind_version)),
        column(&found, |(_, taken)| Json(&taken.views)) as _,
    )
    .execute(connection)
    .await?;
    Ok(found)
}

/// Reads the views of kinds, bound for this to the version that is shown of who declares them, or of the organization that has taken
/// them up.
async fn bound_to(
    connection: &mut PgConnection,
    whose: OrgId,
    kinds: &[KindName],
    takes_up: TakesUp,
) -> Result<Vec<(KindName, KindViews)>, DbError> {
    // The transaction goes on to write other rows of the organization, those of other pipelines too.
    let settings: Vec<&str> = Pipeline::ALL.into_iter().filter_map(version_setting).chain(["app.org_id"]).collect();
    let bound: Vec<String> =
        sqlx::query_scalar("SELECT coalesce(current_setting(name, true), '') FROM unnest($1::text[]) AS one (name)")
            .bind(&settings)
            .fetch_all(&mut *connection)
            .await?;
    sqlx::query_scalar!("SELECT app.bind($1)", whose.uuid()).fetch_one(&mut *connection).await?;
    let names: Vec<&str> = column(kinds, KindName::as_str);
    let found: Vec<(String, i64, Json<Vec<ViewDefinition>>)> = match takes_up {
        TakesUp::Declared => {
            sqlx::query_as(
                "SELECT name, version, coalesce(views, '[]') FROM rm.kinds WHERE org_id = $1 AND name = ANY ($2)",
            )
            .bind(whose.uuid())
            .bind(&names)
            .fetch_all(&mut *connection)
            .await?
        }
        TakesUp::Shown => {
            sqlx::query_as("SELECT kind, kind_version, views FROM rm.kind_views WHERE org_id = $1 AND kind = ANY ($2)")
                .bind(whose.uuid())
                .bind(&names)
                .fetch_all(&mut *connection)
                .await?
        }
    };
    sqlx::query("SELECT count(set_config(name, value, true)) FROM unnest($1::text[], $2::text[]) AS one (name, value)")
        .bind(&settings)
        .bind(&bound)
        .fetch_one(connection)
        .await?;
    let views = |(kind, version, views): (String, i64, Json<Vec<ViewDefinition>>)| {
        Ok((parsed("a kind name", kind)?, KindViews { kind_version: from_bigint(version), views: views.0 }))
    };
    found.into_iter().map(views).collect()
}

/// Returns the views that the rows follow, by kind.
pub async fn folded(tx: &mut TenantTx) -> Result<BTreeMap<KindName, KindViews>, DbError> {
    let rows = sqlx::query!(
        r#"SELECT kind, kind_version, views AS "views: Json<Vec<ViewDefinition>>" FROM rm.kind_views WHERE org_id = $1"#,
        tx.org().uuid(),
    );
    let rows = rows.fetch_all(tx.connection()).await?.into_iter().map(|row| {
        let views = KindViews { kind_version: from_bigint(row.kind_version), views: row.views.0 };
        Ok((parsed("a kind name", row.kind)?, views))
    });
    rows.collect()
}

/// Returns those of these kinds that have records, archived or not.
pub async fn with_records(tx: &mut TenantTx, kinds: &[KindName]) -> Result<Vec<KindName>, DbError> {
    let rows = sqlx::query_scalar!(
        r#"SELECT known.kind AS "kind!" FROM unnest($2::text[]) AS wanted (kind)
        CROSS JOIN LATERAL (
            SELECT kind FROM rm.records WHERE org_id = $1 AND kind = wanted.kind LIMIT 1
        ) AS known"#,
        tx.org().uuid(),
        column(kinds, KindName::as_str) as _,
    );
    let rows: Vec<String> = rows.fetch_all(tx.connection()).await?;
    rows.into_iter().map(|kind| parsed("a kind name", kind)).collect()
}

/// The builds of views that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewBuildsAsked {
    /// The organizations whose rows follow other views than their kinds declare; up to 1,001.
    pub missing: usize,
    /// Those whose build was asked for now.
    pub asked: usize,
}

impl Database {
    /// Asks for a build of the read models of every organization whose rows follow other views than this kind declares, unless
    /// `most` of them are built already. One that was rolled back, or whose build failed, is left to the operator.
    pub async fn ask_for_views(
        &self,
        kind: &KindName,
        declared: &[ViewDefinition],
        most: usize,
    ) -> Result<ViewBuildsAsked, DbError> {
        let orgs =
            sqlx::query_scalar!(r#"SELECT app.orgs_to_fold($1, $2) AS "org!""#, kind.as_str(), Json(declared) as _);
        let orgs = orgs.fetch_all(self.resolver_pool()).await?;
        self.ask_for_builds(orgs.into_iter().map(OrgId::from_uuid).collect(), most).await
    }

    /// The same for the views of all kinds that organizations have of their own.
    pub async fn ask_for_own_views(&self, most: usize) -> Result<ViewBuildsAsked, DbError> {
        let orgs: Vec<Uuid> =
            sqlx::query_scalar("SELECT app.orgs_to_fold_own()").fetch_all(self.resolver_pool()).await?;
        self.ask_for_builds(orgs.into_iter().map(OrgId::from_uuid).collect(), most).await
    }

    async fn ask_for_builds(&self, orgs: Vec<OrgId>, most: usize) -> Result<ViewBuildsAsked, DbError> {
        let (mut waiting, mut under_way, mut missing) = (Vec::new(), 0, 0);
        let known = self.rebuilds_of(&orgs, Pipeline::ReadModels).await?;
        for org in orgs {
            match known.iter().find(|job| job.org == org) {
                Some(job) if job.state.is_under_way() => under_way += 1,
                Some(job) if job.state == RebuildState::Failed || job.job == RebuildJob::RollBack => continue,
                Some(_) | None => waiting.push(org),
            }
            missing += 1;
        }
        let mut asked = 0;
        for org in waiting.into_iter().take(most.saturating_sub(under_way)) {
            let outcome =
                self.ask_rebuild(BoundOrg::proven_by_resolver(org), Pipeline::ReadModels, RebuildJob::Build).await?;
            asked += usize::from(matches!(outcome, Asked::Begun(_)));
        }
        Ok(ViewBuildsAsked { missing, asked })
    }
}
