//! The check of broker access: with no credentials, with this process's own, and with a producer's.
//!
//! Every check asks the server itself, by attempting an operation that must be denied and that changes nothing if it is
//! allowed.

use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, Event, ServerError};
use tokio::{sync::mpsc, time::timeout};
use uuid::Uuid;

use crate::{Credentials, Finding, Log, StreamError, access::JETSTREAM, api::unavailable, credentials::Reach};

const ACTION: &str = "look at the broker's door";
const TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a denial, which normally arrives within milliseconds. An operation not denied within it counts as
/// allowed.
const REFUSAL: Duration = Duration::from_secs(3);
/// Capacity of the buffer of denials not yet read.
const KEPT: usize = 64;

const FIX: &str = "run it with the accounts that `orgstream nats init` makes (docs/operations.md)";

/// A connection that records the server's denials.
struct Probe {
    client: Client,
    refusals: mpsc::Receiver<String>,
}

/// The outcome of a connection attempt.
enum Opened {
    In(Probe),
    Refused,
}

impl Probe {
    async fn open(reach: &Reach, user: Option<&Credentials>) -> Result<Opened, StreamError> {
        let (refused, refusals) = mpsc::channel(KEPT);
        let connect = reach
            .options(user)?
            .name("orgstream preflight")
            .connection_timeout(TIMEOUT)
            .request_timeout(Some(REFUSAL))
            .event_callback(move |event| {
                let refused = refused.clone();
                async move {
                    if let Event::ServerError(ServerError::Other(text)) = event {
                        let _ = refused.try_send(text.to_lowercase());
                    }
                }
            });
        match connect.connect(reach.servers()).await {
            Ok(client) => Ok(Opened::In(Self { client, refusals })),
            Err(error)
                if matches!(
                    error.kind(),
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation
                ) =>
            {
                Ok(Opened::Refused)
            }
            Err(error) => Err(unavailable(ACTION, error)),
        }
    }

    /// Whether the server reports a permissions violation for `subject` within [`REFUSAL`].
    async fn is_refused(&mut self, subject: &str) -> bool {
        let subject = format!("\"{}\"", subject.to_lowercase());
        let heard = async {
            while let Some(text) = self.refusals.recv().await {
                if text.contains("permissions violation") && text.contains(&subject) {
                    return true;
                }
            }
            false
        };
        timeout(REFUSAL, heard).await.unwrap_or(false)
    }

    async fn may_publish(&mut self, subject: &str) -> Result<bool, StreamError> {
        let inbox = self.client.new_inbox();
        let sent = self.client.publish_with_reply(subject.to_owned(), inbox, "".into()).await;
        sent.map_err(|error| unavailable(ACTION, error))?;
        self.client.flush().await.map_err(|error| unavailable(ACTION, error))?;
        Ok(!self.is_refused(subject).await)
    }

    async fn may_subscribe(&mut self, subject: &str) -> Result<bool, StreamError> {
        let _subscription =
            self.client.subscribe(subject.to_owned()).await.map_err(|error| unavailable(ACTION, error))?;
        self.client.flush().await.map_err(|error| unavailable(ACTION, error))?;
        Ok(!self.is_refused(subject).await)
    }
}

impl Log {
    /// Returns the accesses that are allowed but must be denied. `producer` holds the text of a producer's credentials,
    /// if there are any.
    pub async fn door(&self, producer: Option<Credentials>) -> Result<Vec<Finding>, StreamError> {
        let options = &self.inner.options;
        let reach = options.reach();
        if let Opened::In(_) = Probe::open(&reach, None).await? {
            let what = "nats-server admits every client: a stranger can read and write every organization's history";
            return Ok(vec![Finding { what: what.to_owned(), fix: FIX.to_owned() }]);
        }
        let mut findings = Vec::new();
        let user = match &options.creds {
            Some(path) => Some(Credentials::read(path).await?),
            None => None,
        };
        if let Opened::In(mut probe) = Probe::open(&reach, user.as_ref()).await? {
            // No stream of this name ever existed, so nothing is lost if the request is allowed.
            let delete = format!("{JETSTREAM}.STREAM.DELETE.preflight-{}", Uuid::now_v7().simple());
            if probe.may_publish(&delete).await? {
                let what = "our NATS credentials may delete streams, which nothing but the administrator's may";
                let fix =
                    "give `serve` and `work` their own credentials (ORGSTREAM_NATS_CREDS), not the administrator's";
                findings.push(Finding { what: what.to_owned(), fix: fix.to_owned() });
            }
        }
        if let Some(producer) = producer {
            findings.extend(producers(&reach, &producer).await?);
        }
        Ok(findings)
    }
}

/// Returns the operations that producers can do but must not.
async fn producers(reach: &Reach, user: &Credentials) -> Result<Vec<Finding>, StreamError> {
    let Opened::In(mut probe) = Probe::open(reach, Some(user)).await? else {
        let what = "nats-server does not know the key that producers' credentials are signed with";
        let fix = "give `serve` the file of the accounts that nats-server runs with (ORGSTREAM_NATS_PRODUCERS)";
        return Ok(vec![Finding { what: what.to_owned(), fix: fix.to_owned() }]);
    };
    let mut findings = Vec::new();
    for subject in ["ev.>", "_INBOX.>", "cmd.>"] {
        if probe.may_subscribe(subject).await? {
            findings.push(Finding { what: format!("NATS lets producers read {subject}"), fix: FIX.to_owned() });
        }
    }
    for subject in ["$JS.API.STREAM.INFO.EV_0", "orgstream.api.preflight", "cmd.another"] {
        if probe.may_publish(subject).await? {
            findings.push(Finding { what: format!("NATS lets producers publish on {subject}"), fix: FIX.to_owned() });
        }
    }
    Ok(findings)
}
