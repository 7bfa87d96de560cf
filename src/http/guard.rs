//! Who is being answered must be allowed to be, from the first byte to the last: what was revoked, suspended, taken away or
//! left behind by a switch ends the answers that are under way, within a second, in every process.
//!
//! [`Guard`] asks again. `active_org::watch` asks it while an answer is made, and [`while_allowed`] before each piece of one
//! that streams, whatever its form: every streaming body of an organization's routes goes through it, without its handler's
//! doing.

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
use orgstream_events::OrgId;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

use super::{App, reply};
use crate::{
    auth::{Access, AuthError, Permission, Principal, authenticator::OrgName},
    problem::Problem,
};

/// How often it is asked again while nothing is sent. What is known of credentials and rights is up to half a second old, so
/// with this and the way to the read models it stays within a second.
pub const CHECK: Duration = Duration::from_millis(250);
/// How long it is believed that somebody signed a token, which takes a while to find out. What its bearer may is asked anew.
const SIGNED: Duration = Duration::from_millis(100);

/// How long the last words of an answer have to get out before it breaks off, if its reader takes them.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// About how much is sent between two questions, in bytes; whole lines of it. What is on its way cannot be taken back.
const PIECE: usize = 64 << 10;

/// The question whether the caller of a request may still be answered.
pub struct Guard {
    app: Arc<App>,
    authorization: String,
    org: OrgId,
    /// What the route takes.
    permission: Option<Permission>,
    /// Of the caller's session, if that is what they came with.
    epoch: Option<u64>,
    signed: Mutex<Option<(Instant, Principal)>>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("org", &self.org).field("permission", &self.permission).finish_non_exhaustive()
    }
}

impl Guard {
    /// For whoever came with this credential, and was let in by it.
    pub fn new(
        app: Arc<App>,
        authorization: String,
        org: OrgId,
        permission: Option<Permission>,
        principal: &Principal,
    ) -> Self {
        let epoch = principal.session().map(|session| session.epoch);
        Self { app, authorization, org, permission, epoch, signed: Mutex::default() }
    }

    /// Whether the caller has a session, of which a switch in this process is known at once.
    pub fn is_of_session(&self) -> bool {
        self.epoch.is_some()
    }

    /// The access as it is now, or why there is none. What cannot be found out at the moment changes nothing, and is no
    /// answer: the read models may be away while the log goes on.
    pub async fn check(&self) -> Result<Option<Access>, AuthError> {
        match self.access().await {
            Ok(access) => Ok(Some(access)),
            Err(AuthError::Unavailable(_)) => Ok(None),
            Err(lost) => Err(lost),
        }
    }

    /// Why the caller may not be answered any more, if that is so.
    pub async fn lost(&self) -> Option<AuthError> {
        self.check().await.err()
    }

    async fn access(&self) -> Result<Access, AuthError> {
        let principal = self.principal().await?;
        // There and back again is a switch, too: what happened in between was not followed by this session.
        if let Some(now) = principal.session().map(|session| session.epoch)
            && self.epoch != Some(now)
        {
            return Err(AuthError::ActiveOrgChanged { epoch: now });
        }
        let access = self.app.auth.access(&principal, &OrgName::Id(self.org)).await?;
        if let Some(permission) = self.permission {
            access.require(permission)?;
        }
        Ok(access)
    }

    async fn principal(&self) -> Result<Principal, AuthError> {
        let known = || self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, principal)) = &*known()
            && at.elapsed() < SIGNED
        {
            return Ok(principal.clone());
        }
        let principal = self.app.auth.principal_at(Some(&self.authorization), Some(&OrgName::Id(self.org))).await?;
        if let Principal::User { session: None, .. } | Principal::Sso { .. } = principal {
            *known() = Some((Instant::now(), principal.clone()));
        }
        Ok(principal)
    }
}

/// How a stream ends before its end, so that its reader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An event, and the end.
    Events,
    /// A line with the problem, and a connection that breaks off.
    Lines,
    /// A connection that breaks off: any words would be taken for content.
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

/// The answer, if it streams, until its caller may not have it any more.
pub fn while_allowed(guard: Arc<Guard>, response: Response) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let form = Form::of(response.headers());
    let (parts, body) = response.into_parts();
    let pieces = stream! {
        let mut pieces = body.into_data_stream();
        let mut checks = interval_at(tokio::time::Instant::now() + CHECK, CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut left = Bytes::new();
        loop {
            let piece = if left.is_empty() {
                tokio::select! {
                    piece = pieces.next() => Some(piece),
                    _ = checks.tick() => None,
                }
            } else {
                Some(Some(Ok(std::mem::take(&mut left))))
            };
            if let Some(lost) = guard.lost().await {
                tracing::debug!(org.id = %guard.org, %lost, "an answer ends before its end");
                let reason = lost.to_string();
                if let Some(words) = last_words(form, lost).await {
                    yield Ok(words);
                }
                if form != Form::Events {
                    // What breaks off at once takes along what was not sent yet.
                    sleep(LAST_WORDS).await;
                    yield Err(axum::Error::new(std::io::Error::other(reason)));
                }
                break;
            }
            match piece {
                Some(Some(Ok(mut piece))) => {
                    left = piece.split_off(end_of_piece(&piece));
                    yield Ok(piece);
                }
                Some(Some(Err(error))) => {
                    yield Err(error);
                    break;
                }
                Some(None) => break,
                None => {}
            }
        }
    };
    Response::from_parts(parts, Body::from_stream(pieces))
}

/// Where a piece ends: behind the first line that is over [`PIECE`].
fn end_of_piece(bytes: &[u8]) -> usize {
    let behind = bytes.iter().skip(PIECE).position(|byte| *byte == b'\n');
    behind.map_or(bytes.len(), |behind| PIECE + behind + 1)
}

async fn last_words(form: Form, lost: AuthError) -> Option<Bytes> {
    match form {
        Form::Events => {
            let event = match lost {
                AuthError::ActiveOrgChanged { epoch } => {
                    let data = json!({"reason": lost.to_string(), "epoch": epoch});
                    Event::default().event("active_org_changed").data(data.to_string())
                }
                lost => closed(&lost.to_string()),
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

/// The last event of a stream that ends.
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
