//! Submission of heads to witnesses (C2SP tlog-witness): one task for each, so that a slow one holds up no other.

use std::time::Duration;

use anyhow::{Context, bail};
use metrics::counter;
use orgstream_events::Chain;
use orgstream_projections::{BoundOrg, audit::SigningDatabase};
use orgstream_transparency::{
    AddCheckpoint, KnownWitness, MAX_NOTE_BYTES, Plan, SIZE_CONTENT_TYPE, SignatureLine, SignedNote, TreeHead,
    parse_size,
};
use reqwest::{StatusCode, header};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The timeout of a witness.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The pause after a failure, doubled with each.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// The number of attempts for one head: a witness that has seen less or more says so once.
const TRIES: usize = 3;

/// Sends the heads of logs to one witness, and stores its signatures.
pub(super) struct Submitter {
    db: SigningDatabase,
    witness: KnownWitness,
    http: reqwest::Client,
}

impl Submitter {
    pub(super) fn new(db: SigningDatabase, witness: KnownWitness) -> Self {
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build();
        Self { db, witness, http: http.unwrap_or_default() }
    }

    /// Sends queued heads until `stop`.
    pub(super) async fn run(self, mut orgs: mpsc::Receiver<BoundOrg>, stop: CancellationToken) {
        let mut pause = PAUSES.0;
        while let Some(Some(org)) = stop.run_until_cancelled(orgs.recv()).await {
            match self.submit(org).await {
                Ok(()) => pause = PAUSES.0,
                Err(error) => {
                    counter!("orgstream_audit_witness_failures_total", "witness" => self.witness.name.clone())
                        .increment(1);
                    tracing::warn!(
                        org.id = %org.org(), witness = self.witness.name, error = %Chain(error.as_ref()),
                        "a witness did not sign; it is asked again"
                    );
                    // The next round of the signer finds this org, and all others without this signature, again.
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        return;
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Returns the newest head, its signed note, and the largest size that this witness signed.
    async fn newest(&self, org: BoundOrg) -> anyhow::Result<Option<(TreeHead, SignedNote, u64)>> {
        let mut tx = self.db.begin(org).await?;
        let Some((head, origin)) = tx.newest().await? else { return Ok(None) };
        let lines = tx.signatures(head.size).await?;
        if lines.is_empty() {
            return Ok(None);
        }
        let known = tx.signed_by(self.witness.key.name().as_str()).await?;
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let note = SignedNote::parse(format!("{origin}\n{}\n{}\n\n{lines}", head.size, head.root).as_bytes())?;
        Ok(Some((head, note, known)))
    }

    async fn submit(&self, org: BoundOrg) -> anyhow::Result<()> {
        let Some((head, mut note, mut known)) = self.newest(org).await? else { return Ok(()) };
        if known == head.size {
            return Ok(());
        }
        let url = self.witness.url.as_deref().unwrap_or_default().trim_end_matches('/');
        for _ in 0..TRIES {
            if known > head.size {
                bail!("it has seen {known} events of this log, and the log has {}: events are lost", head.size);
            }
            let proof = {
                let mut tx = self.db.begin(org).await?;
                tx.prove(&Plan::consistency(known, head.size)?).await?
            };
            let body = AddCheckpoint::new(known, proof, note.clone())?.to_string();
            let answer = self.http.post(format!("{url}/add-checkpoint")).body(body).send().await?;
            let status = answer.status();
            let is_size = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == SIZE_CONTENT_TYPE);
            let text = body_of(answer).await?;
            match status {
                StatusCode::OK => {
                    let lines = SignatureLine::parse_all(&text).context("its answer cannot be read")?;
                    let before = note.signatures().len();
                    if note.add_cosignatures(&lines, std::slice::from_ref(&self.witness.key)) == 0 {
                        bail!("its answer is not signed by the key that it is known by");
                    }
                    let mut tx = self.db.begin(org).await?;
                    for line in note.signatures().iter().skip(before) {
                        tx.keep(head.size, line).await?;
                    }
                    tx.commit().await?;
                    counter!("orgstream_audit_cosignatures_total", "witness" => self.witness.name.clone()).increment(1);
                    return Ok(());
                }
                StatusCode::CONFLICT if is_size => known = parse_size(&text)?,
                other => bail!("it answered {other}: {}", String::from_utf8_lossy(&text).trim_end()),
            }
        }
        bail!("it names another size each time");
    }
}

/// Returns a body that is not longer than any answer of a witness.
async fn body_of(mut answer: reqwest::Response) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_NOTE_BYTES {
            bail!("its answer is longer than any answer");
        }
    }
    Ok(body)
}
