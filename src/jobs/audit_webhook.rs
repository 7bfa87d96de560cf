//! Audit logs on their way to where organizations collect them: signed posts, in order, each until it is confirmed.
//!
//! The cursor is the place in the log, so whoever receives can prove that nothing is missing: the events of one post begin
//! where the last one ended. Any number of processes may send; each log is sent by one of them at a time. What was confirmed
//! although nobody heard of it comes again, perhaps with what has happened since: whoever receives knows events by `idx`.
//!
//! Headers and signature are those of Standard Webhooks, with Ed25519 (`v1a`): the key follows from the pepper and the
//! organization, so no secret is stored, and none has to be handed out.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer, SigningKey};
use metrics::counter;
use orgstream_domain::credentials::key::Pepper;
use orgstream_events::{EventView, OrgId};
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

/// How often it is looked whether there is anything to send.
const EVERY: Duration = Duration::from_secs(1);
/// Logs that are sent at the same time, and how many of them may go to addresses that were slow when last asked: what the
/// slow ones wait for, the others need not.
const MAX_CONCURRENCY: usize = 128;
const SLOW_AT_ONCE: usize = 96;
/// A post that takes longer makes its address a slow one.
const SLOW: Duration = Duration::from_secs(1);
/// Slow addresses that are remembered.
const CACHE_CAPACITY: usize = 10_000;
/// How long a log is taken for: longer than one post may take.
const LEASE: Duration = Duration::from_secs(30);
/// How long one log is sent before the others have their turn.
const TURN: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most events in one post, and about the most bytes; one event goes in any case.
const EVENTS: u16 = 100;
const BYTES: usize = 512 << 10;

/// Sends audit logs. One per API process.
pub struct Webhooks {
    db: Database,
    keys: WebhookKeys,
    http: reqwest::Client,
    slow: OrgCache<(), ()>,
}

/// What is posted.
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
    /// The place of the first event.
    from_idx: u64,
    /// The place behind the last one: where the next post begins.
    next_idx: u64,
    events: Vec<EventView>,
}

/// The keys that posts are signed with, one for each organization.
#[derive(Clone)]
pub struct WebhookKeys(Pepper);

impl WebhookKeys {
    /// Keys that follow from this secret.
    pub fn new(pepper: Pepper) -> Self {
        Self(pepper)
    }

    fn of(&self, org: OrgId) -> SigningKey {
        SigningKey::from_bytes(&self.0.mac_of("audit webhook", &org.to_string()).0)
    }

    /// What verifies the posts about this organization, as Standard Webhooks write it.
    pub fn public(&self, org: OrgId) -> String {
        format!("whpk_{}", STANDARD.encode(self.of(org).verifying_key().as_bytes()))
    }
}

impl Webhooks {
    /// `local` lets posts go to this machine too, as they must where everything runs on it.
    pub fn new(db: Database, keys: WebhookKeys, local: bool) -> Result<Self, reqwest::Error> {
        Ok(Self { db, keys, http: outward::client(local, TIMEOUT)?, slow: OrgCache::new(CACHE_CAPACITY) })
    }

    /// Sends what there is until `stop`, each log on its own: none waits for another to be taken.
    pub async fn run(self, stop: CancellationToken) {
        let (webhooks, sending) = (Arc::new(self), TaskTracker::new());
        let all = Arc::new(Semaphore::new(MAX_CONCURRENCY));
        let slow = Arc::new(Semaphore::new(SLOW_AT_ONCE));
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            let due = match webhooks.db.audit_to_send().await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%error, "audit logs cannot be sent at the moment");
                    continue;
                }
            };
            for org in due {
                // Who finds no room is due at the next look, too.
                let among_slow = webhooks.is_slow(org).then(|| Arc::clone(&slow).try_acquire_owned()).transpose();
                let (Ok(among_slow), Ok(turn)) = (among_slow, Arc::clone(&all).try_acquire_owned()) else { continue };
                // Taken before it is left to itself, so that the next look does not find it again.
                let taken = match webhooks.take(org).await {
                    Ok(Some(taken)) => taken,
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(org.id = %org.org(), %error, "an audit log cannot be sent at the moment");
                        continue;
                    }
                };
                let (webhooks, stop) = (Arc::clone(&webhooks), stop.clone());
                sending.spawn(async move {
                    if let Err(error) = webhooks.send(org, taken, &stop).await {
                        tracing::warn!(org.id = %org.org(), %error, "an audit log cannot be sent at the moment");
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

    /// Takes the sending of one log: to which address, and from where on.
    async fn take(&self, org: BoundOrg) -> Result<Option<(String, u64)>, DbError> {
        let settings = organizations::get(&mut self.db.read(org).await?).await?.map(|found| found.settings);
        let Some(url) = settings.and_then(|settings| settings.audit_webhook) else { return Ok(None) };
        Ok(self.db.take_webhook(org, &url, LEASE).await?.map(|from| (url, from)))
    }

    /// Sends one log as far as it goes, or until others should have their turn.
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
                // Another process has just sent all of it: nobody shall wait for this one's time to be over.
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
            // Nothing more is owed for now: then whoever looks next may have it.
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

    /// What goes into one post, and where the log ends; or why the next event cannot go. It is not passed over: that would be
    /// a gap.
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
                    return Ok(Err(format!("event {from} cannot be shown: {error}")));
                }
                // What is in front of it goes first.
                Err(_) => break,
            }
        }
        Ok(Ok((events, end)))
    }

    async fn post(&self, org: OrgId, url: &str, from: u64, events: Vec<EventView>) -> Result<(), String> {
        let (now, next) = (now(), from + events.len() as u64);
        let part = Part { org_id: org, from_idx: from, next_idx: next, events };
        let post = Post { kind: "audit.events", timestamp: now.to_string(), data: part };
        let body = serde_json::to_string(&post).map_err(|error| error.to_string())?;
        // With its end: a part that has grown since it was last tried is another one, and must not be taken for known.
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

/// What went wrong, without the address, which may have a secret of the receiver's in it.
fn reason(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time" } else { "it cannot be reached" }.to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
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
