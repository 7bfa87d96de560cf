//! The signing process: it follows the growth of the orgs' logs, stores their trees, and signs their heads.
//!
//! It has a login of its own and the only key. Of each log it signs a head after so many events or so many seconds,
//! whichever comes first, and at a reader's request. The head is stored in the database, on disk, before it is signed, and
//! under a key that has room for one root only; so no crash and no second process can make two histories of one log.

use std::{collections::HashSet, time::Duration};

use metrics::counter;
use orgstream_events::{Chain, DeletionReceipt, OrgId, cause};
use orgstream_projections::{
    BoundOrg, DbError,
    audit::{SigningDatabase, Wishes},
};
use orgstream_transparency::{FormatError, LogSigner, PolicyFile, Receipt, SignedNote, TreeHead};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::submit::Submitter;

/// The polling interval of the logs.
const LOOK: Duration = Duration::from_secs(1);
/// The queue length of one witness, in orgs. Further ones are found again at the next round.
const QUEUE: usize = 1_024;
/// The maximum number of attempts at a head that another process may be making at the same time.
const TRIES: usize = 3;

/// The schedule of signing.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The number of events after which a log is signed at once.
    pub events: u64,
    /// The maximum wait of a single event.
    pub wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { events: 256, wait: Duration::from_secs(10) }
    }
}

/// The signing process.
pub struct Signer {
    db: SigningDatabase,
    key: LogSigner,
    witnesses: PolicyFile,
    witness_lines: String,
    handovers: Vec<String>,
    pace: Pace,
    refused: HashSet<OrgId>,
}

impl Signer {
    /// Creates a signer. `witnesses` is a policy file: those of its witnesses that have an address are asked for
    /// cosignatures.
    pub fn new(db: SigningDatabase, key: LogSigner, witnesses: &str, pace: Pace) -> anyhow::Result<Self> {
        let lines = witnesses.lines().filter(|line| !line.trim_start().starts_with("log "));
        let witness_lines: String = lines.flat_map(|line| [line, "\n"]).collect();
        Ok(Self {
            db,
            key,
            witnesses: PolicyFile::parse(witness_lines.as_bytes())?,
            witness_lines,
            handovers: Vec::new(),
            pace,
            refused: HashSet::new(),
        })
    }

    /// Adds the notes by which earlier keys handed over to this one, which are published to readers.
    pub fn after(self, handovers: &[SignedNote]) -> Self {
        Self { handovers: handovers.iter().map(ToString::to_string).collect(), ..self }
    }

    /// Signs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut submitting = JoinSet::new();
        let mut queues = Vec::new();
        for witness in self.witnesses.witnesses.iter().filter(|witness| witness.url.is_some()) {
            let (queue, orgs) = mpsc::channel(QUEUE);
            queues.push(queue);
            let submitter = Submitter::new(self.db.clone(), witness.clone());
            submitting.spawn(submitter.run(orgs, stop.clone()));
        }
        let mut wishes = None;
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waited = self.pace.wait;
        loop {
            let orgs = tokio::select! {
                () = stop.cancelled() => break,
                wish = next_wish(&mut wishes) => match wish {
                    Ok(org) => vec![org],
                    Err(error) => {
                        tracing::debug!(error = %Chain(&error), "wishes for checkpoints do not arrive");
                        wishes = None;
                        continue;
                    }
                },
                _ = ticks.tick() => {
                    if wishes.is_none() {
                        wishes = self.start().await;
                    }
                    if let Err(error) = self.sign_receipts().await {
                        tracing::warn!(error = %Chain(&error), "receipts of deletions cannot be signed at the moment");
                    }
                    waited += LOOK;
                    let is_round = waited >= self.pace.wait;
                    if is_round {
                        waited = Duration::ZERO;
                    }
                    let (grown_by, signed_by) = if is_round { (1, 1 + queues.len()) } else { (self.pace.events, 0) };
                    self.db.orgs(grown_by, signed_by).await.unwrap_or_else(|error| {
                        tracing::warn!(error = %Chain(&error), "which logs have grown is not known at the moment");
                        Vec::new()
                    })
                }
            };
            for org in orgs {
                if stop.is_cancelled() {
                    break;
                }
                if self.sign_and_tell(org).await {
                    for queue in &queues {
                        // A full queue is being processed; the next round finds what it had no room for.
                        let _ = queue.try_send(org);
                    }
                }
            }
        }
        while submitting.join_next().await.is_some() {}
    }

    /// Publishes the policy and subscribes to the requests in the database, again after an outage.
    async fn start(&self) -> Option<Wishes> {
        let started = async {
            self.db.say_policy(&self.key.verifier().to_string(), &self.witness_lines, &self.handovers).await?;
            self.db.wishes().await
        };
        match started.await {
            Ok(wishes) => Some(wishes),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the database does not answer the signing process");
                None
            }
        }
    }

    /// Signs the receipts of deletions that wait for it. A text that is no receipt of its organization is not signed.
    pub async fn sign_receipts(&self) -> Result<(), DbError> {
        for (org, text) in self.db.receipts().await? {
            let is_receipt = serde_json::from_str::<DeletionReceipt>(&text).is_ok_and(|receipt| {
                receipt.org_id == org && serde_json::to_string(&receipt).is_ok_and(|same| same == text)
            });
            match Receipt::sign(&self.key, &text) {
                Ok(note) if is_receipt => self.db.keep_receipt(org, &text, &note.to_string()).await?,
                _ => tracing::error!(org.id = %org, "what is to be signed is no receipt of the organization"),
            }
        }
        Ok(())
    }

    /// Signs, and returns whether there is a signed head.
    async fn sign_and_tell(&mut self, org: BoundOrg) -> bool {
        match self.sign(org).await {
            Ok(head) => {
                self.refused.remove(&org.org());
                head.is_some()
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(org.id = %org.org(), error = %Chain(&error), "a head could not be signed");
                false
            }
            Err(error) => {
                counter!("orgstream_audit_refused_total").increment(1);
                if self.refused.insert(org.org()) {
                    tracing::error!(
                        org.id = %org.org(), error = %Chain(&error),
                        "the audit log is not signed any more: its rows were changed, or those of what was signed before"
                    );
                }
                false
            }
        }
    }

    /// Signs the log's current head, unless that was done; none for a log without events.
    pub async fn sign(&self, org: BoundOrg) -> Result<Option<TreeHead>, DbError> {
        let mut tries_left = TRIES;
        loop {
            match self.try_sign(org).await {
                Err(DbError::Conflict(_)) if tries_left > 1 => tries_left -= 1,
                other => return other,
            }
        }
    }

    async fn try_sign(&self, org: BoundOrg) -> Result<Option<TreeHead>, DbError> {
        let mut tx = loop {
            let mut tx = self.db.begin(org).await?;
            if !tx.store_tiles().await? {
                break tx;
            }
            tx.commit().await?;
        };
        let head = tx.head().await?;
        if head.size == 0 {
            return Ok(None);
        }
        let origin = format!("{}/{}", self.key.verifier().name(), org.org());
        let origin = tx.note_checkpoint(origin, head).await?;
        let signed = tx.signatures(head.size).await?;
        tx.commit().await?;
        let unreadable = |error: FormatError| DbError::Undecodable {
            what: format!("the name {origin:?} of a log"),
            cause: cause(error),
        };
        let key = self.key.named(origin.parse().map_err(unreadable)?);
        let is_ours = |id: [u8; 4]| id == key.verifier().id();
        if !signed.iter().any(|line| line.name == *key.verifier().name() && is_ours(line.key_id)) {
            let note = key.sign(head);
            let mut tx = self.db.begin(org).await?;
            for line in note.signatures() {
                tx.keep(head.size, line).await?;
            }
            tx.commit().await?;
            counter!("orgstream_audit_checkpoints_total").increment(1);
        }
        Ok(Some(head))
    }
}

/// Returns the next request; waits forever without a connection.
async fn next_wish(wishes: &mut Option<Wishes>) -> Result<BoundOrg, DbError> {
    match wishes {
        Some(wishes) => wishes.next().await,
        None => std::future::pending().await,
    }
}
