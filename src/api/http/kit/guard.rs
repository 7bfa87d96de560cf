//! Authorization during an answer, from the first byte to the last: a revocation, a suspension, a lost right or a switch of
//! the session ends running answers, within a second, in every process.
//!
//! [`Guard`] checks again. `active_org::watch` uses it while an answer is made, and [`while_allowed`] before each piece of
//! one that streams, whatever its form: every streaming body of an organization's routes goes through it, without its
//! handler's doing. The repeated checks are shared (`looks.rs`).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_stream::stream;
use axum::{
    body::{Body, Bytes, HttpBody as _},
    http::{HeaderMap, header},
    response::{
        Response,
        sse::{Event, Sse},
    },
};
use futures_util::{StreamExt, stream};
use orgstream_domain::Permission;
use orgstream_events::{Chain, OrgId, cause};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    looks::{Authority, Look},
    reply,
};
use crate::{
    api::http::App,
    app::problem::Problem,
    auth::{Access, AuthError, Principal, session::ActiveSession},
};

/// The maximum age of a check on which something is sent.
const FRESH: Duration = Duration::from_millis(400);
/// How long an answer pauses while the check fails to complete, before it ends.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the final event or line of an answer has to be delivered before the connection is aborted, if its reader takes
/// it.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// The approximate number of bytes that are sent between two checks; whole lines of it. Sent bytes cannot be recalled.
const PIECE: usize = 64 << 10;

/// The check whether the caller of a request still has access. All answers to the same credential share its checks
/// ([`Looks`](super::looks::Looks)).
pub struct Guard {
    app: Arc<App>,
    authorization: String,
    org: OrgId,
    /// The permission of the route.
    permission: Option<Permission>,
    /// The caller's session, if the request came with one.
    session: Option<ActiveSession>,
    /// When the caller was admitted.
    since: Instant,
    looks: Mutex<Option<watch::Receiver<Option<Look>>>>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("org", &self.org).field("permission", &self.permission).finish_non_exhaustive()
    }
}

impl Guard {
    /// Creates the check for a caller that was admitted with this credential.
    pub fn new(
        app: Arc<App>,
        authorization: String,
        org: OrgId,
        permission: Option<Permission>,
        principal: &Principal,
    ) -> Self {
        let (session, since) = (principal.session().cloned(), Instant::now());
        Self { app, authorization, org, permission, session, since, looks: Mutex::default() }
    }

    /// Returns the access as it was a moment ago, or why it was lost. A check that cannot complete at the moment is waited
    /// for: an unconfirmed right is none, and its holder loses a moment.
    pub async fn check(&self) -> Result<Access, AuthError> {
        self.is_where_it_was().await?;
        let unconfirmed = || AuthError::Unavailable(cause("whether you still may cannot be found out; come back"));
        timeout(PAUSE, self.confirmed()).await.unwrap_or_else(|_| Err(unconfirmed()))
    }

    /// Returns the result of the next check, or of the last one if it is fresh; a loss is final, however old its check is.
    async fn confirmed(&self) -> Result<Access, AuthError> {
        loop {
            let mut looks = self.looks();
            loop {
                if let Some(look) = &*looks.borrow_and_update()
                    && let Some(access) = self.judge(look)?
                    && look.ended.elapsed() < FRESH
                {
                    return Ok(access);
                }
                if looks.changed().await.is_err() {
                    break;
                }
            }
        }
    }

    /// Refuses a session that was switched or ended in this process. Other callers always pass.
    pub async fn is_where_it_was(&self) -> Result<(), AuthError> {
        let Some(session) = &self.session else { return Ok(()) };
        match self.app.auth.sessions().unchanged(session).await {
            Err(AuthError::Unavailable(_)) => Ok(()),
            unchanged => unchanged,
        }
    }

    /// Returns why the caller has lost access, once that is so.
    pub async fn lost(&self) -> AuthError {
        loop {
            let mut looks = self.looks();
            loop {
                if let Some(look) = &*looks.borrow_and_update()
                    && let Err(lost) = self.judge(look)
                {
                    return lost;
                }
                if looks.changed().await.is_err() {
                    break;
                }
            }
        }
    }

    fn looks(&self) -> watch::Receiver<Option<Look>> {
        let mut kept = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(looks) = &*kept {
            let lost = looks.borrow().as_ref().is_some_and(|look| self.judge(look).is_err());
            if lost || looks.has_changed().is_ok() {
                return looks.clone();
            }
        }
        // The first subscription, or the successor of one that ended with a loss from before the caller was admitted.
        kept.insert(self.app.looks.follow(self.org, &self.authorization)).clone()
    }

    fn judge(&self, look: &Look) -> Result<Option<Access>, AuthError> {
        if look.began < self.since {
            return Ok(None);
        }
        let Authority { access, epoch } = match &look.found {
            Ok(standing) => standing,
            Err(AuthError::Unavailable(_)) => return Ok(None),
            Err(lost) => return Err(lost.clone()),
        };
        // Switching away and back is a switch, too: this session did not follow what happened in between.
        if let Some(epoch) = *epoch
            && self.session.as_ref().map(|session| session.epoch) != Some(epoch)
        {
            return Err(AuthError::ActiveOrgChanged { epoch });
        }
        if let Some(permission) = self.permission {
            access.require(permission)?;
        }
        Ok(Some(access.clone()))
    }
}

/// How a stream signals a premature end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An event, and the end.
    Events,
    /// A line with the problem, and an aborted connection.
    Lines,
    /// An aborted connection: any text would be taken for content.
    Other,
}

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(header::CONTENT_TYPE).map(axum::http::HeaderValue::as_bytes) {
            Some(b"text/event-stream") => Self::Events,
            Some(b"application/x-ndjson") => Self::Lines,
            _ => Self::Other,
        }
    }
}

/// Wraps a streaming answer, to end it when its caller loses access.
pub fn while_allowed(guard: Arc<Guard>, response: Response) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let form = Form::of(response.headers());
    let (parts, body) = response.into_parts();
    let pieces = stream! {
        let mut pieces = body.into_data_stream();
        let mut left = Bytes::new();
        loop {
            let piece = if left.is_empty() {
                tokio::select! {
                    piece = pieces.next() => guard.check().await.map(|_| piece),
                    lost = guard.lost() => Err(lost),
                }
            } else {
                guard.check().await.map(|_| Some(Ok(std::mem::take(&mut left))))
            };
            match piece {
                Ok(Some(Ok(mut piece))) => {
                    left = piece.split_off(end_of_piece(&piece));
                    yield Ok(piece);
                }
                Ok(Some(Err(error))) => {
                    yield Err(error);
                    break;
                }
                Ok(None) => break,
                Err(lost) => {
                    tracing::debug!(org.id = %guard.org, error = %Chain(&lost), "an answer ends before its end");
                    let reason = Chain(&lost).to_string();
                    if let Some(words) = last_words(form, lost).await {
                        yield Ok(words);
                    }
                    if form != Form::Events {
                        // An immediate abort would discard bytes that were not sent yet.
                        sleep(LAST_WORDS).await;
                        yield Err(axum::Error::new(std::io::Error::other(reason)));
                    }
                    break;
                }
            }
        }
    };
    Response::from_parts(parts, Body::from_stream(pieces))
}

/// Returns where a piece ends: behind the first line that is over [`PIECE`].
fn end_of_piece(bytes: &[u8]) -> usize {
    let behind = bytes.iter().skip(PIECE).position(|byte| *byte == b'\n');
    behind.map_or(bytes.len(), |behind| PIECE + behind + 1)
}

async fn last_words(form: Form, lost: AuthError) -> Option<Bytes> {
    match form {
        Form::Events => {
            let event = match lost {
                AuthError::ActiveOrgChanged { epoch } => {
                    let data = json!({"reason": Chain(&lost).to_string(), "epoch": epoch});
                    Event::default().event("active_org_changed").data(data.to_string())
                }
                lost => closed(&Chain(&lost).to_string()),
            };
            let one = Sse::new(stream::iter([Ok::<_, std::convert::Infallible>(event)]));
            axum::body::to_bytes(axum::response::IntoResponse::into_response(one).into_body(), usize::MAX).await.ok()
        }
        Form::Lines => {
            let mut line = reply::json_bytes(&Problem::from(lost)).ok()?;
            line.push(b'\n');
            Some(line.into())
        }
        Form::Other => None,
    }
}

/// Returns the last event of a stream that ends.
pub fn closed(reason: &str) -> Event {
    Event::default().event("closed").data(json!({"reason": reason}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_of_whole_lines_and_not_much_longer_than_it_must_be() {
        assert_eq!(end_of_piece(b""), 0);
        assert_eq!(end_of_piece(b"a\nb\n"), 4);
        let lines = vec![[b"x".repeat(999), b"\n".to_vec()].concat(); 200].concat();
        let end = end_of_piece(&lines);
        assert!(end > PIECE && end <= PIECE + 1000 && lines[end - 1] == b'\n', "{end}");
        let one = b"y".repeat(3 * PIECE);
        assert_eq!(end_of_piece(&one), one.len());
    }
}
