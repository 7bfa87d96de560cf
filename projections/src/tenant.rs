//! The org of a transaction: a proof that the caller must be given, and the read transaction that is bound to it.

use orgstream_events::{EventSubject, KindName, OrgId, PLATFORM_ORG, Pipeline, SubjectError};
use sqlx::{PgConnection, Postgres, Transaction};

use crate::{
    DbError,
    apply::version_setting,
    audit::Pin,
    isolation_violation::Alarm,
    search::target::{OpenIndex, SearchTargets},
};

/// An org with a proof, unlike an [`OrgId`], which may be just named by a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BoundOrg(OrgId);

impl BoundOrg {
    /// The org of a credential that was checked. For authentication alone.
    pub const fn proven_by_credential(org: OrgId) -> Self {
        Self(org)
    }

    /// The org of a subject that the stream delivered. For workers.
    pub const fn proven_by_subject(subject: &EventSubject) -> Self {
        Self(subject.org)
    }

    /// The org of a delivered subject whose rest may be unreadable, for a message that is to be parked.
    pub fn proven_by_route(subject: &str) -> Result<Self, SubjectError> {
        EventSubject::route(subject).map(|(_, org)| Self(org))
    }

    /// The org that an operator names on the command line of the machine that holds the database's credentials.
    pub const fn named_by_operator(org: OrgId) -> Self {
        Self(org)
    }

    /// An org that a resolver returned, for work that no client requested and that needs no proof. For this crate
    /// alone.
    pub(crate) const fn proven_by_resolver(org: OrgId) -> Self {
        Self(org)
    }

    /// The platform's own org: the data shared by all orgs.
    pub const fn platform() -> Self {
        Self(PLATFORM_ORG)
    }

    /// The org whose rows define what this one means by the name of a kind: this one, or the platform's.
    pub fn owner_of_kind(self, name: &KindName) -> Self {
        Self(name.owner(self.0))
    }

    /// The org's id.
    pub const fn org(self) -> OrgId {
        self.0
    }
}

/// A consistent view of one org's rows, read-only, limited to the active version of its read models. Dropping it ends
/// it.
#[derive(Debug)]
pub struct TenantTx {
    transaction: Transaction<'static, Postgres>,
    org: OrgId,
    alarm: Alarm,
    pin: Pin,
    targets: SearchTargets,
    search_index: IndexPlace,
}

/// Where the index of words of the bound version is.
#[derive(Debug, Clone)]
enum IndexPlace {
    /// It was not asked for yet.
    Unknown,
    /// In this database.
    Here,
    /// In a search target.
    Elsewhere(OpenIndex),
}

/// Idle timeout between two statements, and timeout of one statement, of a transaction that compares everything.
const TIMEOUT: &str = "10min";

impl TenantTx {
    pub(crate) fn new(transaction: Transaction<'static, Postgres>, org: BoundOrg, alarm: Alarm, pin: Pin) -> Self {
        Self {
            transaction,
            org: org.0,
            alarm,
            pin,
            targets: SearchTargets::default(),
            search_index: IndexPlace::Unknown,
        }
    }

    /// Names the search targets that this process knows.
    pub(crate) fn searching(self, targets: SearchTargets) -> Self {
        Self { targets, ..self }
    }

    /// Returns the name of the search target that the index of words is in, if it is in one.
    pub async fn search_target(&mut self) -> Result<Option<String>, DbError> {
        Ok(self.search_index().await?.map(|index| index.name().to_owned()))
    }

    /// Returns where the index of words of the bound version is, if it is in a search target.
    pub(crate) async fn search_index(&mut self) -> Result<Option<OpenIndex>, DbError> {
        match &self.search_index {
            IndexPlace::Unknown => {}
            IndexPlace::Here => return Ok(None),
            IndexPlace::Elsewhere(index) => return Ok(Some(index.clone())),
        }
        // Every statement of a search reads ranges of primary keys, whatever the words are, and takes longer to plan than to run:
        // each is planned once for a connection.
        let found: Option<(i32, String)> = sqlx::query_as(
            "SELECT placed.version, placed.target FROM set_config('plan_cache_mode', 'force_generic_plan', true)
            LEFT JOIN ops.search_indexes AS placed ON placed.org = $1 AND placed.version = app.search_version()
            WHERE placed.version IS NOT NULL",
        )
        .bind(self.org.uuid())
        .fetch_optional(&mut *self.transaction)
        .await?;
        let bound = BoundOrg(self.org);
        let index = found.map(|(version, name)| OpenIndex::new(self.targets.clone(), name, bound, version));
        self.search_index = index.clone().map_or(IndexPlace::Here, IndexPlace::Elsewhere);
        Ok(index)
    }

    /// The key of the audit logs that this process was given.
    pub(crate) fn pin(&self) -> &Pin {
        &self.pin
    }

    /// Raises the timeouts, for an operator's command that compares the whole of an org.
    pub async fn take_time(&mut self) -> Result<(), DbError> {
        sqlx::query(
            "SELECT set_config('statement_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $1, true)",
        )
        .bind(TIMEOUT)
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Fails unless a row of `table` names this org.
    pub(crate) fn check_own(&self, found: OrgId, table: &'static str) -> Result<(), DbError> {
        self.alarm.check(self.org, found, table)
    }

    /// The org.
    pub fn org(&self) -> OrgId {
        self.org
    }

    /// Ends it, for a caller that needs to know that it ended.
    pub async fn finish(self) -> Result<(), DbError> {
        Ok(self.transaction.commit().await?)
    }

    /// Switches to another version of a pipeline's rows, as of the same moment.
    pub(crate) async fn look_at(&mut self, pipeline: Pipeline, version: i32) -> Result<(), DbError> {
        let Some(setting) = version_setting(pipeline) else { return Ok(()) };
        self.search_index = IndexPlace::Unknown;
        sqlx::query!("SELECT set_config($2, $1, true)", version.to_string(), setting)
            .fetch_one(&mut *self.transaction)
            .await?;
        Ok(())
    }

    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}
