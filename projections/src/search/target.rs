//! Search targets: where an organization's index of words is, if it is not in the database of the read models.
//!
//! A target has versions of indexes, as the database has. A version is built there beside the one that is shown, and is shown by the
//! checkpoint of the search pipeline in the database: that names the version, and `ops.search_indexes` the target of the version.
//! So a reader finds what its own snapshot names, and a target decides nothing.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use metrics::counter;
use orgstream_events::{Cause, Chain, KindName, RecordId, SearchedField, cause};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::{Asked, Matched, document::Document};
use crate::{BoundOrg, DbError};

/// Timeout of a call to a target. Less than the database lets a transaction wait.
const ANSWER: Duration = Duration::from_secs(6);
/// The first pause after a request that failed, doubled each time up to the longest.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// The longest name of a target.
const MAX_NAME: usize = 63;

/// A version of an organization's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexVersion {
    /// The organization.
    pub org: BoundOrg,
    /// The version. No other index of the organization ever has its number.
    pub version: i32,
}

/// Who writes to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The epoch of the worker's lease on the organization's shard.
    pub epoch: u64,
    /// Whether the version is the one that is shown: what is written has to be found as soon as the write is done.
    pub is_shown: bool,
}

/// What is found of a record from a position on.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The record.
    pub id: RecordId,
    /// The position of its content. Of two changes of a record, the one with the higher position counts.
    pub seq: u64,
    /// What is found of it; nothing once it is archived.
    pub found: Option<FoundRecord>,
}

/// A record that is found.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundRecord {
    /// Its kind.
    pub kind: KindName,
    /// The fields that are searched.
    pub fields: Vec<SearchedField>,
    /// What is found of them.
    pub document: Document,
}

/// What an index says of a record that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexedRecord {
    /// The record.
    pub id: RecordId,
    /// Its kind.
    pub kind: KindName,
    /// Its title, if it has one.
    pub title: Option<String>,
    /// Whether it has more text than is searched.
    pub is_truncated: bool,
    /// The fields that are searched.
    pub fields: Vec<SearchedField>,
    /// The values by which hits are counted, by field.
    pub facets: Map<String, Value>,
    /// The position of its content.
    pub seq: u64,
}

/// The reason why a target does not do what it is asked.
#[derive(Debug, Clone)]
pub enum TargetError {
    /// It does not answer, or has too much to do: it would be the same for every index.
    Away(Cause),
    /// It is about this index.
    OfIndex(Cause),
}

/// A search target. Every call may be repeated, also after it has failed half-way.
pub trait SearchTarget: fmt::Debug + Send + Sync + 'static {
    /// Fails unless the target can be used.
    fn check(&self) -> BoxFuture<'_, Result<(), TargetError>>;

    /// Makes a version, without anything in it, unless it is there.
    fn create(&self, at: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>>;

    /// Writes changes, of each record one. One that is older than what is there changes nothing.
    fn write<'a>(
        &'a self,
        at: IndexVersion,
        writer: Writer,
        changes: &'a [Change],
    ) -> BoxFuture<'a, Result<(), TargetError>>;

    /// Makes a version ready to be shown: from then on everything that was written is found.
    fn show(&self, at: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>>;

    /// Drops a version, or up to `rows` rows of it. Returns whether it is gone. Nothing can be written to it afterwards.
    fn drop_version(&self, at: IndexVersion, rows: u32) -> BoxFuture<'_, Result<bool, TargetError>>;

    /// Finds the records that fulfil the conditions; phrases are looked for by the caller.
    fn matching<'a>(&'a self, at: IndexVersion, asked: Asked<'a>) -> BoxFuture<'a, Result<Matched, TargetError>>;

    /// Returns what the index has of these records, in any order.
    fn records<'a>(
        &'a self,
        at: IndexVersion,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<IndexedRecord>, TargetError>>;
}

/// The search targets that a process knows, by name.
#[derive(Debug, Clone, Default)]
pub struct SearchTargets(Arc<BTreeMap<String, NamedTarget>>);

/// A target of the settings.
#[derive(Debug)]
pub struct NamedTarget {
    name: String,
    kind: &'static str,
    address: String,
    target: Box<dyn SearchTarget>,
    trouble: Mutex<Trouble>,
}

/// What is known of a target that does not do what it is asked: it is asked ever more rarely, and by one at a time, so that what
/// waits for it holds up nothing else.
#[derive(Debug, Default)]
struct Trouble {
    failures: u32,
    until: Option<Instant>,
}

impl SearchTargets {
    /// Creates the set.
    pub fn new(targets: impl IntoIterator<Item = NamedTarget>) -> Self {
        Self(Arc::new(targets.into_iter().map(|target| (target.name.clone(), target)).collect()))
    }

    /// Returns the target of this name.
    pub fn named(&self, name: &str) -> Option<&NamedTarget> {
        self.0.get(name)
    }

    /// Returns all of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &NamedTarget> {
        self.0.values()
    }

    fn known(&self, name: &str) -> Result<&NamedTarget, DbError> {
        let missing = || {
            let cause = cause("this process has no search target of this name: see --search-targets");
            DbError::Target { target: name.to_owned(), cause }
        };
        self.named(name).ok_or_else(missing)
    }
}

impl NamedTarget {
    /// Creates the target. `address` is shown, and has no secret.
    pub fn new(name: String, kind: &'static str, address: String, target: impl SearchTarget) -> Self {
        Self { name, kind, address, target: Box::new(target), trouble: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kind of program it is.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Fails unless the target can be used. Asks it in any case.
    pub async fn check(&self) -> Result<(), DbError> {
        self.answer(self.target.check()).await.map_err(|error| self.error(error))
    }

    async fn answer<T>(&self, answer: impl Future<Output = Result<T, TargetError>>) -> Result<T, TargetError> {
        let late = || Err(TargetError::Away(cause(format!("no answer within {} seconds", ANSWER.as_secs()))));
        tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|_| late())
    }

    /// Asks the target, unless it has failed a moment ago.
    async fn ask<T>(&self, asked: impl Future<Output = Result<T, TargetError>>) -> Result<T, DbError> {
        if !self.may_be_asked() {
            return Err(self.error(TargetError::Away(cause("it has failed a moment ago, and is asked again soon"))));
        }
        let answer = self.answer(asked).await;
        self.learn(&answer);
        answer.map_err(|error| self.error(error))
    }

    fn learn<T>(&self, answer: &Result<T, TargetError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.is_err() {
            counter!("orgstream_search_target_failures_total", "target" => self.name.clone()).increment(1);
        }
        if let Err(TargetError::Away(cause)) = answer {
            if trouble.failures == 0 {
                tracing::warn!(
                    target = self.name, error = %Chain(cause.as_ref()),
                    "the search target does not do what it is asked; the organizations whose index is there wait for it"
                );
            }
            trouble.until = Some(Instant::now() + (FIRST * (1 << trouble.failures.min(8))).min(LONGEST));
            trouble.failures = trouble.failures.saturating_add(1);
        } else {
            if trouble.failures > 0 {
                tracing::info!(target = self.name, "the search target answers again");
            }
            *trouble = Trouble::default();
        }
    }

    fn may_be_asked(&self) -> bool {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if trouble.until.is_some_and(|until| until > now) {
            return false;
        }
        if trouble.failures > 0 {
            // The others wait for the answer to this one.
            trouble.until = Some(now + ANSWER);
        }
        true
    }

    fn error(&self, (TargetError::Away(cause) | TargetError::OfIndex(cause)): TargetError) -> DbError {
        DbError::Target { target: self.name.clone(), cause }
    }
}

/// Fails unless a text can be the name of a target.
pub fn check_target_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) {
        return Err(format!("{name:?} is not a name of 1 to {MAX_NAME} characters a-z, 0-9 and -"));
    }
    if name == DEFAULT_TARGET {
        return Err(format!("{DEFAULT_TARGET:?} is the database of the read models"));
    }
    Ok(())
}

/// The name of the database of the read models, where each index is unless it was placed elsewhere.
pub const DEFAULT_TARGET: &str = "default";

/// A version that is in a target, and the targets that this process knows.
#[derive(Debug, Clone)]
pub(crate) struct OpenIndex {
    targets: SearchTargets,
    name: String,
    at: IndexVersion,
}

impl OpenIndex {
    pub(crate) fn new(targets: SearchTargets, name: String, org: BoundOrg, version: i32) -> Self {
        Self { targets, name, at: IndexVersion { org, version } }
    }

    /// Returns the index of a version, if that is in a target.
    pub(crate) async fn of_version(
        connection: &mut PgConnection,
        targets: &SearchTargets,
        org: BoundOrg,
        version: i32,
    ) -> Result<Option<Self>, DbError> {
        let name: Option<String> =
            sqlx::query_scalar("SELECT target FROM ops.search_indexes WHERE org = $1 AND version = $2")
                .bind(org.org().uuid())
                .bind(version)
                .fetch_optional(connection)
                .await?;
        Ok(name.map(|name| Self::new(targets.clone(), name, org, version)))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn create(&self) -> Result<(), DbError> {
        let known = self.targets.known(&self.name)?;
        known.ask(known.target.create(self.at)).await
    }

    pub(crate) async fn write(&self, writer: Writer, changes: &[Change]) -> Result<(), DbError> {
        let known = self.targets.known(&self.name)?;
        known.ask(known.target.write(self.at, writer, changes)).await
    }

    pub(crate) async fn show(&self) -> Result<(), DbError> {
        let known = self.targets.known(&self.name)?;
        known.ask(known.target.show(self.at)).await
    }

    pub(crate) async fn drop_version(&self, rows: u32) -> Result<bool, DbError> {
        let known = self.targets.known(&self.name)?;
        known.ask(known.target.drop_version(self.at, rows)).await
    }

    pub(crate) async fn matching(&self, asked: Asked<'_>) -> Result<Matched, DbError> {
        let known = self.targets.known(&self.name)?;
        known.ask(known.target.matching(self.at, asked)).await
    }

    pub(crate) async fn records(&self, ids: &[RecordId]) -> Result<Vec<IndexedRecord>, DbError> {
        let known = self.targets.known(&self.name)?;
        known.ask(known.target.records(self.at, ids)).await
    }
}

/// What an open batch writes to the target of its organization, in place of rows.
#[derive(Debug)]
pub(crate) struct Outgoing {
    index: OpenIndex,
    writer: Writer,
    changes: BTreeMap<RecordId, Change>,
    /// Those at the savepoint.
    saved: BTreeMap<RecordId, Change>,
}

impl Outgoing {
    pub(crate) fn new(index: OpenIndex, writer: Writer) -> Self {
        Self { index, writer, changes: BTreeMap::new(), saved: BTreeMap::new() }
    }

    pub(crate) fn index(&self) -> &OpenIndex {
        &self.index
    }

    /// Whether there is something to be written.
    pub(crate) fn is_pending(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Adds changes, in the order of the log.
    pub(crate) fn add(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.changes.extend(changes.into_iter().map(|change| (change.id, change)));
    }

    pub(crate) fn save(&mut self) {
        self.saved = self.changes.clone();
    }

    pub(crate) fn undo(&mut self) {
        self.changes = std::mem::take(&mut self.saved);
    }

    /// Writes what was added.
    pub(crate) async fn send(&mut self) -> Result<(), DbError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = std::mem::take(&mut self.changes).into_values().collect();
        self.index.write(self.writer, &changes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_not_that_of_the_database() {
        for name in ["a", "search-2", &"x".repeat(63)] {
            check_target_name(name).unwrap();
        }
        for name in ["", "default", "A", "a b", "a/b", "ä", &"x".repeat(64)] {
            check_target_name(name).unwrap_err();
        }
    }

    #[derive(Debug)]
    struct Failing;

    fn away() -> TargetError {
        TargetError::Away(cause("it is away"))
    }

    impl SearchTarget for Failing {
        fn check(&self) -> BoxFuture<'_, Result<(), TargetError>> {
            Box::pin(async { Err(away()) })
        }
        fn create(&self, _: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>> {
            self.check()
        }
        fn write<'a>(&'a self, _: IndexVersion, _: Writer, _: &'a [Change]) -> BoxFuture<'a, Result<(), TargetError>> {
            self.check()
        }
        fn show(&self, _: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>> {
            self.check()
        }
        fn drop_version(&self, _: IndexVersion, _: u32) -> BoxFuture<'_, Result<bool, TargetError>> {
            Box::pin(async { Err(away()) })
        }
        fn matching<'a>(&'a self, _: IndexVersion, _: Asked<'a>) -> BoxFuture<'a, Result<Matched, TargetError>> {
            Box::pin(async { Err(away()) })
        }
        fn records<'a>(
            &'a self,
            _: IndexVersion,
            _: &'a [RecordId],
        ) -> BoxFuture<'a, Result<Vec<IndexedRecord>, TargetError>> {
            Box::pin(async { Err(away()) })
        }
    }

    #[tokio::test]
    async fn a_target_that_fails_is_asked_by_one_at_a_time_and_ever_more_rarely() {
        let target = NamedTarget::new("away".to_owned(), "test", String::new(), Failing);
        target.ask(async { Err::<(), _>(away()) }).await.unwrap_err();
        let at_once = target.ask(async { Ok(()) }).await.unwrap_err();
        assert!(Chain(&at_once).to_string().contains("a moment ago"), "{}", Chain(&at_once));
        // The pause is over: one asks, and the others do not wait for its answer.
        target.trouble.lock().unwrap().until = Some(Instant::now());
        assert!(target.may_be_asked() && !target.may_be_asked());
        target.trouble.lock().unwrap().until = None;
        target.ask(async { Ok(()) }).await.unwrap();
        assert!(target.may_be_asked() && target.may_be_asked());
        // What is about one index says nothing about the others.
        target.ask(async { Err::<(), _>(TargetError::OfIndex(cause("there is no such index"))) }).await.unwrap_err();
        assert!(target.may_be_asked() && target.may_be_asked());
        let unknown = SearchTargets::default().known("away").unwrap_err();
        assert!(unknown.is_retryable() && !unknown.may_be_of_an_event() && unknown.is_of_some_rows());
    }
}
