//! Webhooks for audit logs: signed posts to an address of the organization's, in order, each repeated until it is confirmed.
//!
//! The cursor is the index in the log, so the receiver can prove that nothing is missing: the events of one post start where
//! the last one ended. Any number of processes may send; each log is sent by one of them at a time. A post whose
//! confirmation was lost is repeated, perhaps with further events: the receiver deduplicates events by `idx`.
//!
//! Headers and signature are those of Standard Webhooks, with Ed25519 (`v1a`): the key is derived from the pepper and the
//! organization, so no secret is stored, and none has to be distributed.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer, SigningKey};
use metrics::counter;
use orgstream_domain::credentials::key::Pepper;
use orgstream_events::{Chain, EventView, OrgId};
use orgstream_projections::{BoundOrg, Database, DbError, audit, organizations};
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    adapters::egress as outward,
    app::event_view::shown,
    clock::now,
    tenant_cache::{OrgCache, Scoped},
};

/// The polling interval.
const EVERY: Duration = Duration::from_secs(1);
/// The maximum number of logs that are sent at the same time, and of those to addresses that were slow at their last post:
/// the slow ones do not hold up the others.
const MAX_CONCURRENCY: usize = 128;
const SLOW_AT_ONCE: usize = 96;
/// The duration of a post that makes its address a slow one.
const SLOW: Duration = Duration::from_secs(1);
/// The maximum number of cached slow addresses.
const CACHE_CAPACITY: usize = 10_000;
/// The lease of a log: longer than one post may take.
const LEASE: Duration = Duration::from_secs(30);
/// How long one log is sent before the others have their turn.
const TURN: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of events in one post, and the approximate maximum of bytes; one event goes in any case.
const EVENTS: u16 = 100;
const BYTES: usize = 512 << 10;

/// Sends audit logs. One per API process.
pub struct Webhooks {
    db: Database,
    keys: WebhookKeys,
    http: reqwest::Client,
    slow: OrgCache<(), ()>,
}

/// The body of a post.
#[derive(Serialize)]
struct Post {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: String,
    data: Part,
}

/// A stretch of the log without gaps.
#[derive(Serialize)]
struct Part {
    org_id: OrgId,
    /// The index of the first event.
    from_idx: u64,
    /// The index behind the last one: where the next post starts.
    next_idx: u64,
    events: Vec<EventView>,
}

/// The keys that posts are signed with, one for each organization.
#[derive(Clone)]
pub struct WebhookKeys(Pepper);

impl WebhookKeys {
    /// Derives the keys from this secret.
    pub fn new(pepper: Pepper) -> Self {
        Self(pepper)
    }

    fn of(&self, org: OrgId) -> SigningKey {
        SigningKey::from_bytes(&self.0.mac_of("audit webhook", &org.to_string()).0)
    }

    /// Returns the key that verifies the posts about this organization, in the form of Standard Webhooks.
    pub fn public(&self, org: OrgId) -> String {
        format!("whpk_{}", STANDARD.encode(self.of(org).verifying_key().as_bytes()))
    }
}

impl Webhooks {
    /// Creates the sender. `local` lets posts go to this machine too, as they must where everything runs on it.
    pub fn new(db: Database, keys: WebhookKeys, local: bool) -> Result<Self, reqwest::Error> {
        Ok(Self { db, keys, http: outward::client(local, TIMEOUT)?, slow: OrgCache::new(CACHE_CAPACITY) })
    }

    /// Sends what is due until `stop`, each log on its own: none waits for another.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (webhooks, sending) = (self, TaskTracker::new());
        let all = Arc::new(Semaphore::new(MAX_CONCURRENCY));
        let slow = Arc::new(Semaphore::new(SLOW_AT_ONCE));
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            let due = match webhooks.db.audit_to_send().await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "audit logs cannot be sent at the moment");
                    continue;
                }
            };
            for org in due {
                // A log that finds no room is due at the next poll, too.
                let among_slow = webhooks.is_slow(org).then(|| Arc::clone(&slow).try_acquire_owned()).transpose();
                let (Ok(among_slow), Ok(turn)) = (among_slow, Arc::clone(&all).try_acquire_owned()) else { continue };
                // Leased before its task is spawned, so that the next poll does not find it again.
                let taken = match webhooks.take(org).await {
                    Ok(Some(taken)) => taken,
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(org.id = %org.org(), error = %Chain(&error), "an audit log cannot be sent at the moment");
                        continue;
                    }
                };
                let (webhooks, stop) = (Arc::clone(&webhooks), stop.clone());
                sending.spawn(async move {
                    if let Err(error) = webhooks.send(org, taken, &stop).await {
                        tracing::warn!(org.id = %org.org(), error = %Chain(&error), "an audit log cannot be sent at the moment");
                    }
                    drop((turn, among_slow));
                });
            }
        }
        sending.close();
        sending.wait().await;
    }

    fn is_slow(&self, org: BoundOrg) -> bool {
        self.slow.get(&Scoped::new(org.org(), ())).is_some()
    }

    /// Takes the lease of one log; returns its address and cursor.
    async fn take(&self, org: BoundOrg) -> Result<Option<(String, u64)>, DbError> {
        let settings = organizations::get(&mut self.db.read(org).await?).await?.map(|found| found.settings);
        let Some(url) = settings.and_then(|settings| settings.audit_webhook) else { return Ok(None) };
        Ok(self.db.take_webhook(org, &url, LEASE).await?.map(|from| (url, from)))
    }

    /// Sends one log to its end, or until the others have their turn.
    async fn send(
        &self,
        org: BoundOrg,
        (url, mut from): (String, u64),
        stop: &CancellationToken,
    ) -> Result<(), DbError> {
        let until = Instant::now() + TURN;
        loop {
            let (events, end) = match self.part(org, from).await? {
                Ok(part) => part,
                Err(trouble) => return self.failed(org, &url, from, &trouble).await,
            };
            if events.is_empty() {
                // Another process has just sent all of it: the lease is released at once.
                self.db.webhook_confirmed(org, &url, (from, from), Duration::ZERO).await?;
                return Ok(());
            }
            let next = from + events.len() as u64;
            let begun = Instant::now();
            let posted = self.post(org.org(), &url, from, events).await;
            let is_slow = begun.elapsed() > SLOW;
            if is_slow {
                self.slow.insert(Scoped::new(org.org(), ()), ());
            } else {
                self.slow.remove(&Scoped::new(org.org(), ()));
            }
            if let Err(trouble) = posted {
                return self.failed(org, &url, from, &trouble).await;
            }
            counter!("orgstream_audit_webhook_posts_total", "outcome" => "confirmed").increment(1);
            // A slow one takes a turn for each post.
            let goes_on = next < end && Instant::now() < until && !is_slow && !stop.is_cancelled();
            // Nothing more is due for now: the lease is released to the next poll.
            let lease = if goes_on { LEASE } else { Duration::ZERO };
            if !self.db.webhook_confirmed(org, &url, (from, next), lease).await? || !goes_on {
                return Ok(());
            }
            from = next;
        }
    }

    async fn failed(&self, org: BoundOrg, url: &str, from: u64, trouble: &str) -> Result<(), DbError> {
        counter!("orgstream_audit_webhook_posts_total", "outcome" => "failed").increment(1);
        tracing::warn!(org.id = %org.org(), event.idx = from, trouble, "a part of an audit log was not taken");
        self.db.webhook_failed(org, url, from, trouble).await
    }

    /// Returns the events of one post, and where the log ends; or why the next event cannot be sent. It is not skipped: that
    /// would be a gap.
    async fn part(&self, org: BoundOrg, from: u64) -> Result<Result<(Vec<EventView>, u64), String>, DbError> {
        let mut tx = self.db.read(org).await?;
        let (end, rows) = (audit::size(&mut tx).await?, audit::from_idx(&mut tx, from, EVENTS).await?.entries);
        let (mut events, mut bytes) = (Vec::new(), 0);
        for row in &rows {
            bytes += row.sealed.header.len() + row.sealed.payload.len();
            if bytes > BYTES && !events.is_empty() {
                break;
            }
            match row.view().map(shown) {
                Ok(event) => events.push(event),
                Err(error) if events.is_empty() => {
                    return Ok(Err(format!("event {from} cannot be shown: {}", Chain(&error))));
                }
                // The events before it are sent first.
                Err(_) => break,
            }
        }
        Ok(Ok((events, end)))
    }

    async fn post(&self, org: OrgId, url: &str, from: u64, events: Vec<EventView>) -> Result<(), String> {
        let (now, next) = (now(), from + events.len() as u64);
        let part = Part { org_id: org, from_idx: from, next_idx: next, events };
        let post = Post { kind: "audit.events", timestamp: now.to_string(), data: part };
        let body = serde_json::to_string(&post).map_err(|error| Chain(&error).to_string())?;
        // With its end: a part that has grown since the last attempt is another one, and must not be taken for a duplicate.
        let id = format!("{org}_{from}_{next}");
        let seconds = now.unix_ms() / 1000;
        let signed = format!("{id}.{seconds}.{body}");
        let signature = self.keys.of(org).sign(signed.as_bytes());
        let answer = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("orgstream/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", format!("v1a,{}", STANDARD.encode(signature.to_bytes())))
            .body(body)
            .send()
            .await
            .map_err(|error| reason(&error))?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status())) }
    }
}

/// Describes an error, without the address, which may have a secret of the receiver's in it.
fn reason(error: &reqwest::Error) -> String {
    let text = if error.is_timeout() { "no answer in time" } else { "it cannot be reached" };
    match std::error::Error::source(error) {
        Some(source) => format!("{text}: {}", Chain(source)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_organization_has_a_key_of_its_own() {
        let keys = WebhookKeys::new(Pepper::new([7; 32]).unwrap());
        let [one, other, again] = [1, 2, 1].map(|number| keys.public(OrgId::fresh(0, [number; 10])));
        assert_ne!(one, other);
        assert_eq!(one, again);
    }
}
