//! The loop that deletes organizations: it finds those whose deletion was requested, and takes one step after the other.
//!
//! A deletion is a row that one process has at a time (`projections::deletions`). Each step can be taken again: a process that is
//! killed leaves it to the next one, and what was done is found done. A deletion that is completed has a receipt in the platform's
//! log; where an older backup of the database brings rows back, the receipt says that they are to be erased again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use metrics::counter;
use orgstream_events::{Chain, DeletionReceipt, OrgId, Pipeline, RowsErased};
use orgstream_projections::{
    Database, DbError, audit, checkpoints,
    deletions::{Deletion, DeletionStep, LEASE, TenantTable},
};
use orgstream_transparency::SignedNote;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::now,
    commands::{deletions::Billed, handler::CommandHandler, request::CommandError, vault::VaultError},
};

/// The polling interval.
const EVERY: Duration = Duration::from_secs(1);
/// How often receipts are compared with the rows that there are.
const COMPARED: Duration = Duration::from_hours(1);
/// The pause of a deletion that waits for something else.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time for which a deletion is not looked at: it may be cancelled meanwhile.
const LONGEST: Duration = Duration::from_secs(10);
/// The most rows that are erased at once.
const ROWS: u32 = 500;
/// The most rounds through all tables: rows that come back again and again are a fault of ours.
const ROUNDS: usize = 20;

/// The reason why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DeletionError {
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The secrets could not be destroyed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Rows come back.
    #[error("the table {table} of an organization that is erased has rows again and again")]
    RowsComeBack {
        /// The table.
        table: String,
    },
    /// A receipt cannot be read.
    #[error("the receipt of a deletion cannot be read")]
    Receipt(#[source] orgstream_events::Cause),
    /// Another process has it.
    #[error("another process has taken the deletion")]
    Taken,
}

/// How a step ended.
enum Taken {
    /// The next one follows.
    Next(DeletionStep),
    /// It waits for this.
    Waits(&'static str, Duration),
}

/// What deletes organizations.
pub struct Deletions<'a> {
    db: &'a Database,
    handler: &'a CommandHandler,
    /// Whether there is a payment provider.
    collects: bool,
    compared: Option<Instant>,
}

impl<'a> Deletions<'a> {
    /// Deletes the rows in `db`, and acts by `handler`; `collects` says whether there is a payment provider.
    pub fn new(db: &'a Database, handler: &'a CommandHandler, collects: bool) -> Self {
        Self { db, handler, collects, compared: None }
    }

    /// Deletes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            match stop.run_until_cancelled(Box::pin(self.round())).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(error = %Chain(&error), "deletions cannot be looked for at the moment");
                }
            }
        }
    }

    /// Takes every step that is due.
    pub async fn round(&mut self) -> Result<(), DeletionError> {
        if self.compared.is_none_or(|compared| compared.elapsed() >= COMPARED) {
            match self.compare_with_receipts().await {
                Ok(()) => self.compared = Some(Instant::now()),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "receipts of deletions cannot be compared at the moment");
                }
            }
        }
        for org in self.db.orgs_to_delete().await? {
            // What is wrong with one of them is nothing to the others.
            if let Err(error) = self.take_up(org).await {
                tracing::warn!(org.id = %org, error = %Chain(&error), "a deletion cannot be taken up at the moment");
            }
        }
        while let Some(mut deletion) = self.db.take_deletion().await? {
            if let Err(error) = self.carry_on(&mut deletion).await {
                counter!("orgstream_deletion_failures_total").increment(1);
                tracing::warn!(
                    org.id = %deletion.org, step = deletion.step.name(), error = %Chain(&error),
                    "a step of a deletion failed, and is taken again"
                );
            }
        }
        Ok(())
    }

    /// Takes up the deletion of an organization that has requested it.
    async fn take_up(&self, org: OrgId) -> Result<(), DeletionError> {
        if let Some(requested) = self.handler.deletion(org).await? {
            let by = self.handler.person_behind(org, &requested.requested_by).await?;
            self.db.note_deletion(org, by, requested.requested_at, requested.grace_until).await?;
        }
        Ok(())
    }

    /// Finds organizations that are deleted, and of which the database does not know that: an older backup was restored. And those
    /// whose bytes a rewrite has removed.
    async fn compare_with_receipts(&self) -> Result<(), DeletionError> {
        for org in self.handler.completed_deletions().await? {
            if self.db.deletion_step(org).await? != Some(DeletionStep::Done)
                && let Err(error) = self.erase_again(org).await
            {
                tracing::warn!(org.id = %org, error = %Chain(&error), "a deletion cannot be carried out again at the moment");
            }
        }
        self.db.note_bytes_removed(&self.handler.left_out().await?).await?;
        Ok(())
    }

    /// Takes up the erasure of an organization that has a receipt. Returns whether it has one.
    async fn erase_again(&self, org: OrgId) -> Result<bool, DeletionError> {
        let Some(note) = self.handler.receipt(org).await? else { return Ok(false) };
        let receipt = read(&note)?;
        tracing::warn!(org.id = %org, "an organization that was deleted is in the database again, and is erased again");
        self.db.erase_again(org, receipt.fence, receipt.requested_at).await?;
        Ok(true)
    }

    /// Takes the steps of a deletion until it waits for something.
    async fn carry_on(&self, deletion: &mut Deletion) -> Result<(), DeletionError> {
        if deletion.step < DeletionStep::Erasing && self.erase_again(deletion.org).await? {
            return Ok(());
        }
        loop {
            let (org, epoch) = (deletion.org, deletion.epoch);
            let taken = tokio::select! {
                taken = self.take_step(deletion) => taken?,
                lost = self.hold(org, epoch) => return Err(lost),
            };
            match taken {
                Taken::Next(step) => {
                    tracing::info!(org.id = %deletion.org, step = step.name(), "a deletion has come to its next step");
                    (deletion.step, deletion.waits_for) = (step, None);
                    self.keep(deletion).await?;
                    if matches!(step, DeletionStep::Done | DeletionStep::Cancelled) {
                        return Ok(());
                    }
                }
                Taken::Waits(what, pause) => {
                    deletion.waits_for = Some(what.to_owned());
                    return if self.db.keep_deletion(deletion, pause).await? {
                        Ok(())
                    } else {
                        Err(DeletionError::Taken)
                    };
                }
            }
        }
    }

    async fn take_step(&self, deletion: &mut Deletion) -> Result<Taken, DeletionError> {
        match deletion.step {
            DeletionStep::Requested => self.wait_for_grace(deletion).await,
            DeletionStep::Billing => self.bill(deletion).await,
            DeletionStep::Sealing => self.seal(deletion).await,
            DeletionStep::Shredding => {
                deletion.facts.secrets_destroyed = self.handler.shred(deletion.org).await?;
                Ok(Taken::Next(DeletionStep::Erasing))
            }
            DeletionStep::Erasing => self.erase(deletion).await,
            DeletionStep::Releasing => self.release(deletion).await,
            DeletionStep::Signing => self.complete(deletion).await,
            // It is not looked at again.
            DeletionStep::Done | DeletionStep::Cancelled => Ok(Taken::Waits("nothing", LONGEST)),
        }
    }

    /// Holds a deletion while a step goes on; ends when another process has it.
    async fn hold(&self, org: OrgId, epoch: u64) -> DeletionError {
        loop {
            sleep(LEASE / 4).await;
            // A step that counts rows holds it itself, so that this one fails.
            if matches!(self.db.hold_deletion(org, epoch).await, Ok(false)) {
                return DeletionError::Taken;
            }
        }
    }

    async fn keep(&self, deletion: &Deletion) -> Result<(), DeletionError> {
        if self.db.go_on_with_deletion(deletion).await? { Ok(()) } else { Err(DeletionError::Taken) }
    }

    async fn wait_for_grace(&self, deletion: &mut Deletion) -> Result<Taken, DeletionError> {
        let Some(requested) = self.handler.deletion(deletion.org).await? else {
            return Ok(Taken::Next(DeletionStep::Cancelled));
        };
        // It may have been cancelled and requested again.
        (deletion.requested_at, deletion.grace_until) = (requested.requested_at, requested.grace_until);
        let left = requested.grace_until.unix_ms().saturating_sub(now().unix_ms());
        Ok(match u64::try_from(left) {
            Ok(left @ 1..) => Taken::Waits("the end of the grace period", Duration::from_millis(left).min(LONGEST)),
            _ => Taken::Next(DeletionStep::Billing),
        })
    }

    async fn bill(&self, deletion: &mut Deletion) -> Result<Taken, DeletionError> {
        match self.handler.deletion(deletion.org).await? {
            None => return Ok(Taken::Next(DeletionStep::Cancelled)),
            Some(requested) if requested.sealed_at.is_some() => return Ok(Taken::Next(DeletionStep::Sealing)),
            // It was cancelled meanwhile, and requested again.
            Some(requested) if requested.grace_until > now() => return Ok(Taken::Next(DeletionStep::Requested)),
            Some(_) => {}
        }
        Ok(match self.handler.bill_finally(deletion.org, self.collects).await? {
            Billed::Done(invoice) => {
                deletion.facts.invoice = invoice;
                Taken::Next(DeletionStep::Sealing)
            }
            Billed::Untold => Taken::Waits("the payment provider", PAUSE),
            Billed::Paying => Taken::Waits("the end of a payment", LONGEST),
        })
    }

    /// Seals it, and waits until everything up to the seal is applied and signed.
    async fn seal(&self, deletion: &mut Deletion) -> Result<Taken, DeletionError> {
        match self.handler.deletion(deletion.org).await? {
            None => return Ok(Taken::Next(DeletionStep::Cancelled)),
            Some(requested) if requested.sealed_at.is_none() && requested.grace_until > now() => {
                return Ok(Taken::Next(DeletionStep::Requested));
            }
            Some(_) => {}
        }
        let sealed = self.handler.seal(deletion.org).await?;
        (deletion.fence, deletion.facts.sealed_at) = (Some(sealed.fence), Some(sealed.at));
        let mut tx = self.db.read(deletion.bound()).await?;
        let reached = checkpoints::each(&mut tx).await?;
        let is_applied = |pipeline: Pipeline| reached[pipeline].is_some_and(|(_, seq): (_, u64)| seq >= sealed.fence);
        if !Pipeline::ALL.into_iter().all(is_applied) {
            return Ok(Taken::Waits("the projections", PAUSE));
        }
        let size = audit::size(&mut tx).await?;
        match audit::newest_checkpoint(&mut tx).await? {
            Some(signed) if signed.head.size == size => {
                deletion.facts.log_size = size;
                deletion.facts.log_root = signed.head.root.to_string();
                Ok(Taken::Next(DeletionStep::Shredding))
            }
            _ => {
                audit::ask_for_checkpoint(tx).await?;
                Ok(Taken::Waits("the signing process", PAUSE))
            }
        }
    }

    /// Erases the rows of every table, until a round finds none.
    async fn erase(&self, deletion: &mut Deletion) -> Result<Taken, DeletionError> {
        let tables = self.db.tenant_tables().await?;
        let mut newest = match deletion.facts.versions {
            Some(newest) => newest,
            None => {
                // Found out before anything that says it is gone.
                let newest = self.db.newest_version(deletion).await?;
                let mut rows = BTreeMap::new();
                for table in &tables {
                    let before = self.count(deletion, table, newest).await?;
                    rows.insert(table.name.clone(), RowsErased { before, ..RowsErased::default() });
                }
                (deletion.facts.versions, deletion.facts.rows) = (Some(newest), rows);
                self.keep(deletion).await?;
                newest
            }
        };
        for round in 0.. {
            // A rebuild may have begun another version meanwhile.
            newest = newest.max(self.db.newest_version(deletion).await?);
            self.db.end_rebuilds(deletion).await?;
            let mut last = None;
            for table in &tables {
                if self.erase_table(deletion, table, newest).await? > 0 {
                    last = Some(table);
                }
            }
            match last {
                None => break,
                Some(table) if round >= ROUNDS => {
                    return Err(DeletionError::RowsComeBack { table: table.name.clone() });
                }
                Some(_) => {}
            }
        }
        for table in &tables {
            let left = self.count(deletion, table, newest).await?;
            deletion.facts.rows.entry(table.name.clone()).or_default().left = left;
            if left > 0 {
                return Err(DeletionError::RowsComeBack { table: table.name.clone() });
            }
        }
        Ok(Taken::Next(DeletionStep::Releasing))
    }

    async fn erase_table(
        &self,
        deletion: &mut Deletion,
        table: &TenantTable,
        newest: i32,
    ) -> Result<u64, DeletionError> {
        let mut erased = 0;
        for version in versions(table, newest) {
            loop {
                let began = Instant::now();
                let rows = self.db.erase_rows(deletion, table, version, ROWS).await?;
                erased += rows;
                if rows < u64::from(ROWS) {
                    break;
                }
                // Half of the time is everybody else's.
                sleep(began.elapsed().min(PAUSE)).await;
            }
        }
        Ok(erased)
    }

    async fn count(&self, deletion: &Deletion, table: &TenantTable, newest: i32) -> Result<u64, DeletionError> {
        let mut count = 0;
        for version in versions(table, newest) {
            count += self.db.count_rows(deletion, table, version).await?;
        }
        Ok(count)
    }

    async fn release(&self, deletion: &mut Deletion) -> Result<Taken, DeletionError> {
        if !self.db.drop_indexes_elsewhere(deletion, ROWS).await? {
            return Ok(Taken::Waits("the search target", Duration::ZERO));
        }
        deletion.facts.identity_kept = self.handler.end_claims(deletion.org).await?;
        Ok(Taken::Next(DeletionStep::Signing))
    }

    /// Has the receipt signed, and appends it to the platform's log.
    async fn complete(&self, deletion: &mut Deletion) -> Result<Taken, DeletionError> {
        if self.handler.receipt(deletion.org).await?.is_some() {
            self.handler.mark_erased(deletion.org).await?;
            return Ok(Taken::Next(DeletionStep::Done));
        }
        if deletion.receipt.is_none() {
            let facts = deletion.facts.clone();
            let receipt = DeletionReceipt {
                completed_at: now(),
                fence: deletion.fence.unwrap_or_default(),
                identity_kept: facts.identity_kept,
                invoice: facts.invoice,
                log_root: facts.log_root,
                log_size: facts.log_size,
                org_id: deletion.org,
                requested_at: deletion.requested_at,
                rows: facts.rows,
                sealed_at: facts.sealed_at.unwrap_or(deletion.grace_until),
                secrets_destroyed: facts.secrets_destroyed,
                stream_bytes_removed_at: deletion.bytes_removed_at,
            };
            let text = serde_json::to_string(&receipt);
            deletion.receipt = Some(text.map_err(|error| DeletionError::Receipt(orgstream_events::cause(error)))?);
            self.keep(deletion).await?;
        }
        let Some(note) = &deletion.note else { return Ok(Taken::Waits("the signing process", PAUSE)) };
        self.handler.complete_deletion(deletion.org, note.clone()).await?;
        // Not before: without its history and without a receipt an organization could not be told from one that never was.
        self.handler.mark_erased(deletion.org).await?;
        counter!("orgstream_deletions_total").increment(1);
        tracing::info!(org.id = %deletion.org, "an organization was deleted");
        Ok(Taken::Next(DeletionStep::Done))
    }
}

/// Returns the versions of a table that may have rows.
fn versions(table: &TenantTable, newest: i32) -> std::ops::RangeInclusive<i32> {
    0..=if table.has_versions { newest } else { 0 }
}

/// Reads what a receipt says, which is in a log whose messages are signed themselves.
fn read(note: &str) -> Result<DeletionReceipt, DeletionError> {
    let note =
        SignedNote::parse(note.as_bytes()).map_err(|error| DeletionError::Receipt(orgstream_events::cause(error)))?;
    let statement = note.text().lines().nth(1).unwrap_or_default();
    serde_json::from_str(statement).map_err(|error| DeletionError::Receipt(orgstream_events::cause(error)))
}
