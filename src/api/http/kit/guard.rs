//! Who is being answered must be allowed to be, from the first byte to the last: what was revoked, suspended, taken away or
//! left behind by a switch ends the answers that are under way, within a second, in every process.
//!
//! [`Guard`] asks again. `active_org::watch` asks it while an answer is made, and [`while_allowed`] before each piece of one
//! that streams, whatever its form: every streaming body of an organization's routes goes through it, without its handler's
//! doing. What is looked at again and again for it is shared (`looks.rs`).

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
use orgstream_events::OrgId;
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

/// How old a look may be that something is sent by.
const FRESH: Duration = Duration::from_millis(400);
/// How long an answer pauses while it cannot be found out whether it may go on, before it ends.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the last words of an answer have to get out before it breaks off, if its reader takes them.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// About how much is sent between two questions, in bytes; whole lines of it. What is on its way cannot be taken back.
const PIECE: usize = 64 << 10;

/// The question whether the caller of a request may still be answered. Whoever asks shares the looks at what they may with
/// all other answers to the same credential ([`Looks`](super::looks::Looks)).
pub struct Guard {
    app: Arc<App>,
    authorization: String,
    org: OrgId,
    /// What the route takes.
    permission: Option<Permission>,
    /// The caller's, if that is what they came with.
    session: Option<ActiveSession>,
    /// When they were let in.
    since: Instant,
    looks: Mutex<Option<watch::Receiver<Option<Look>>>>,
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
        let (session, since) = (principal.session().cloned(), Instant::now());
        Self { app, authorization, org, permission, session, since, looks: Mutex::default() }
    }

    /// The access as it was a moment ago, or why there is none any more. What cannot be found out at the moment is waited for: a
    /// right that nobody confirms is none, and whoever has it loses a moment.
    pub async fn check(&self) -> Result<Access, AuthError> {
        self.is_where_it_was().await?;
        let unconfirmed = || AuthError::Unavailable("whether you still may cannot be found out; come back".to_owned());
        timeout(PAUSE, self.confirmed()).await.unwrap_or_else(|_| Err(unconfirmed()))
    }

    /// What the next look finds, or the last one if it was just now; a loss counts however long ago it was found.
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

    /// Refuses a session that was switched or ended in this process. Everybody else is where they were.
    pub async fn is_where_it_was(&self) -> Result<(), AuthError> {
        let Some(session) = &self.session else { return Ok(()) };
        match self.app.auth.sessions().unchanged(session).await {
            Err(AuthError::Unavailable(_)) => Ok(()),
            unchanged => unchanged,
        }
    }

    /// Why the caller may not be answered any more, once that is so.
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
        // The first, or those that went on ended with what was so before the caller was let in.
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
        // There and back again is a switch, too: what happened in between was not followed by this session.
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
