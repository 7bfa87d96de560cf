//! Which org a transaction is for: a value one must be given, and the reading transaction that is bound to it.

use orgstream_events::{EventSubject, OrgId, PLATFORM_ORG, SubjectError};
use sqlx::{PgConnection, Postgres, Transaction};

use crate::{DbError, audit::Pin, isolation_violation::Alarm};

/// An org that somebody has proven, which is more than an [`OrgId`] that somebody has named.
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

    /// The same where the rest of the subject may be unreadable and the message is to be parked.
    pub fn proven_by_route(subject: &str) -> Result<Self, SubjectError> {
        EventSubject::route(subject).map(|(_, org)| Self(org))
    }

    /// The org that an operator names on the command line of the machine that holds the database's credentials.
    pub const fn named_by_operator(org: OrgId) -> Self {
        Self(org)
    }

    /// An org that a resolver named, about which nobody asked for anything that somebody must prove. For this crate alone.
    pub(crate) const fn proven_by_resolver(org: OrgId) -> Self {
        Self(org)
    }

    /// The platform's own org: what all orgs share.
    pub const fn platform() -> Self {
        Self(PLATFORM_ORG)
    }

    /// Which org.
    pub const fn org(self) -> OrgId {
        self.0
    }
}

/// A consistent view of one org's rows, read-only, as far as they belong to the version of its read models that is shown.
/// Dropping it ends it.
#[derive(Debug)]
pub struct TenantTx {
    transaction: Transaction<'static, Postgres>,
    org: OrgId,
    alarm: Alarm,
    pin: Pin,
}

/// How long a transaction that compares everything may be idle between two statements, and how long one of them may take.
const TIMEOUT: &str = "10min";

impl TenantTx {
    pub(crate) fn new(transaction: Transaction<'static, Postgres>, org: BoundOrg, alarm: Alarm, pin: Pin) -> Self {
        Self { transaction, org: org.0, alarm, pin }
    }

    /// What this process was told of the key of the audit logs.
    pub(crate) fn pin(&self) -> &Pin {
        &self.pin
    }

    /// For an operator's command that compares the whole of an org, at its own pace.
    pub async fn take_time(&mut self) -> Result<(), DbError> {
        sqlx::query(
            "SELECT set_config('statement_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $1, true)",
        )
        .bind(TIMEOUT)
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Goes on only if a row of `table` says that it is of this org.
    pub(crate) fn check_own(&self, found: OrgId, table: &'static str) -> Result<(), DbError> {
        self.alarm.check(self.org, found, table)
    }

    /// Which org.
    pub fn org(&self) -> OrgId {
        self.org
    }

    /// Ends it where the caller wants to know that it ended.
    pub async fn finish(self) -> Result<(), DbError> {
        Ok(self.transaction.commit().await?)
    }

    /// Shows another version of the org's read models, of the same moment.
    pub(crate) async fn look_at(&mut self, version: i32) -> Result<(), DbError> {
        sqlx::query!("SELECT set_config('app.rm_version', $1, true)", version.to_string())
            .fetch_one(&mut *self.transaction)
            .await?;
        Ok(())
    }

    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}
