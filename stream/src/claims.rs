//! Claims: values that may belong to one org only (a slug, a user's personal org), one subject each, first come first
//! served.

use std::time::Duration;

use orgstream_events::{OrgId, Timestamp, cause};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{ClaimError, Log, StreamError, placement::system_write, publish::Write, system::Fact};

/// The age from which a claim whose org was never placed counts as abandoned by an interrupted creation. An org is
/// created moments after its claims.
const ABANDONED_AFTER: Duration = Duration::from_mins(10);
/// Lost races for one abandoned claim, before the caller has to retry later.
const TRIES: usize = 5;
const MAX_TOKEN: usize = 200;

#[derive(Serialize, Deserialize)]
struct Claim {
    org: OrgId,
    at: Timestamp,
    #[serde(default)]
    state: State,
    /// When it becomes free for any org, for a claim of an org that was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_until: Option<Timestamp>,
}

impl Claim {
    fn is_free(&self) -> bool {
        let now: Timestamp = OffsetDateTime::now_utc().into();
        self.state == State::Released || self.held_until.is_some_and(|until| until <= now)
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Made for one command, which releases it if the command fails.
    #[default]
    New,
    /// Another command of the org relies on it too, so it is not released.
    Kept,
    /// Released: free for any org.
    Released,
}

struct Found {
    /// None when no message on the subject is authentic.
    claim: Option<Claim>,
    seq: u64,
    stored_at: OffsetDateTime,
}

impl Log {
    /// Claims `value` within `scope` for `org`. Returns the sequence of a new claim, which [`Log::release`] expects;
    /// none if the claim was the org's own already.
    pub async fn claim(&self, scope: &str, value: &str, org: OrgId) -> Result<Option<u64>, ClaimError> {
        self.take(scope, value, org, false).await
    }

    /// Claims as [`Log::claim`] does, for a value that is released once it is not needed any more: a claim of the org's
    /// own is written again, so that it survives a release by a command that found it before ([`Log::claim_of`]).
    pub async fn claim_anew(&self, scope: &str, value: &str, org: OrgId) -> Result<Option<u64>, ClaimError> {
        self.take(scope, value, org, true).await
    }

    /// Returns the sequence of the claim of `org` on `value`, for [`Log::release`]; none if it has none.
    pub async fn claim_of(&self, scope: &str, value: &str, org: OrgId) -> Result<Option<u64>, StreamError> {
        let found = self.find_claim(&subject(scope, value)?).await?;
        let is_own = |claim: &Claim| claim.org == org && !claim.is_free();
        Ok(found.filter(|found| found.claim.as_ref().is_some_and(is_own)).map(|found| found.seq))
    }

    async fn take(&self, scope: &str, value: &str, org: OrgId, anew: bool) -> Result<Option<u64>, ClaimError> {
        let mut write = claim_write(scope, value, org, State::New)?;
        let mut is_own = false;
        for _ in 0..TRIES {
            if let Some(seq) = self.write_system(&write).await? {
                return Ok(Some(seq).filter(|_| !is_own));
            }
            let Some(found) = self.find_claim(&write.subject).await? else {
                write.expected = Some(0);
                continue;
            };
            if let Some(claim @ Claim { org: by, state, .. }) = &found.claim {
                let (by, is_free) = (*by, claim.is_free());
                if by == org && *state == State::Kept && !is_free && !anew {
                    return Ok(None);
                }
                is_own = by == org && !is_free;
                if is_own || is_free {
                    let state = if is_own { State::Kept } else { State::New };
                    write = Write { expected: Some(found.seq), ..claim_write(scope, value, org, state)? };
                    continue;
                }
                if !self.is_abandoned(by, found.stored_at).await? {
                    return Err(ClaimError::Taken { by });
                }
                tracing::info!(org.id = %org, abandoned_by = %by, scope, "taking over an abandoned claim");
            }
            write.expected = Some(found.seq);
        }
        Err(StreamError::Unavailable { action: "claim", reason: cause("others keep claiming it") }.into())
    }

    /// Releases the claim at `seq`, unless another command has relied on it since.
    pub async fn release(&self, scope: &str, value: &str, org: OrgId, seq: u64) -> Result<(), StreamError> {
        let write = Write { expected: Some(seq), ..claim_write(scope, value, org, State::Released)? };
        self.write_system(&write).await.map(|_| ())
    }

    /// Ends a claim of an org that was deleted: it is free at once, or when it was held for long enough. False if it is not the
    /// org's own.
    pub async fn end_claim(
        &self,
        scope: &str,
        value: &str,
        org: OrgId,
        held_until: Option<Timestamp>,
    ) -> Result<bool, StreamError> {
        for _ in 0..TRIES {
            let Some(Found { claim: Some(claim), seq, .. }) = self.find_claim(&subject(scope, value)?).await? else {
                return Ok(false);
            };
            if claim.org != org || claim.is_free() {
                return Ok(false);
            }
            if held_until.is_some() && claim.held_until.is_some() {
                return Ok(true);
            }
            let state = if held_until.is_some() { State::Kept } else { State::Released };
            let claim = Claim { state, held_until, ..claim };
            let payload = serde_json::to_vec(&claim).map_err(StreamError::Unencodable)?.into();
            let write = Write { payload, expected: Some(seq), ..system_write(subject(scope, value)?) };
            if self.write_system(&write).await?.is_some() {
                return Ok(true);
            }
        }
        Err(StreamError::Unavailable { action: "end a claim", reason: cause("others keep writing it") })
    }

    /// Returns the org that has claimed `value` within `scope`.
    pub async fn claimed_by(&self, scope: &str, value: &str) -> Result<Option<OrgId>, StreamError> {
        let claim = self.find_claim(&subject(scope, value)?).await?.and_then(|found| found.claim);
        Ok(claim.filter(|claim| !claim.is_free()).map(|claim| claim.org))
    }

    async fn find_claim(&self, subject: &str) -> Result<Option<Found>, StreamError> {
        let Some(Fact { seq, content, stored_at }) = self.system_fact(subject).await? else { return Ok(None) };
        let corrupt =
            |error: serde_json::Error| StreamError::Corrupt { subject: subject.to_owned(), seq, reason: cause(error) };
        let claim = content.map(|content| serde_json::from_slice(&content)).transpose().map_err(corrupt)?;
        Ok(Some(Found { claim, seq, stored_at }))
    }

    async fn is_abandoned(&self, by: OrgId, stored_at: OffsetDateTime) -> Result<bool, StreamError> {
        let old = OffsetDateTime::now_utc() - stored_at > ABANDONED_AFTER;
        Ok(old && self.placement(by).await?.is_none())
    }
}

/// The first claim of `value`, to be written.
fn claim_write(scope: &str, value: &str, org: OrgId, state: State) -> Result<Write, StreamError> {
    let claim = Claim { org, at: OffsetDateTime::now_utc().into(), state, held_until: None };
    let payload = serde_json::to_vec(&claim).map_err(StreamError::Unencodable)?;
    Ok(Write { payload: payload.into(), ..system_write(subject(scope, value)?) })
}

fn subject(scope: &str, value: &str) -> Result<String, StreamError> {
    let is_token = |text: &str| {
        (1..=MAX_TOKEN).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if is_token(scope) && is_token(value) {
        Ok(format!("sys.claim.{scope}.{value}"))
    } else {
        Err(StreamError::Invalid(format!("{scope:?} {value:?} cannot be claimed: letters, digits, - and _ only")))
    }
}
