//! Reading one owned shard: everything in it, once, in order.
//!
//! A reader that begins far behind does not read its way to the end: almost all of that is one org's as a rule, whose lane
//! will read the log at its own pace in any case, and everybody else would wait. It asks who has something there, lets each
//! of them read their own part, and goes on from the end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use metrics::counter;
use orgstream_events::{PLATFORM_ORG, Shard};
use orgstream_stream::{CursorError, Log, StreamError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{delivery::Delivery, engine::Input, scheduler::Passed, traffic::Traffic};

/// How long to wait before a cursor that could not go on is opened again.
const PAUSE: Duration = Duration::from_millis(500);
/// Messages behind the end of its shard from which on a reader asks who has any.
const FAR_BEHIND: u64 = 20_000;
/// Messages that are read in the time that one question takes, and in that of a lane's first look at its own part.
const ASKING: u64 = 20;
const LOOKING: u64 = 200;
/// Questions at the same time.
const AT_ONCE: usize = 16;

/// Hands every message after where `traffic` is to the engine, until `stop`. What fails is tried again from where it
/// stood, and `trouble` says what it is.
pub(crate) async fn read_shard(
    log: Log,
    shard: Shard,
    traffic: Arc<Traffic>,
    engine: mpsc::Sender<Input>,
    trouble: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    let mut seen = traffic.position();
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            read = read_on(&log, shard, &mut seen, &traffic, &engine, &trouble) => {
                if let Err(error) = read {
                    let text = Some(error.to_string());
                    let is_new = trouble.send_if_modified(|known| *known != text && { *known = text; true });
                    if is_new {
                        tracing::warn!(%shard, event.seq = seen, %error, "a shard cannot be read and is tried again");
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Reads until the cursor cannot go on or the engine is gone.
async fn read_on(
    log: &Log,
    shard: Shard,
    seen: &mut u64,
    traffic: &Traffic,
    engine: &mpsc::Sender<Input>,
    trouble: &watch::Sender<Option<String>>,
) -> Result<(), StreamError> {
    if let Some((to, passed)) = far_behind(log, shard, *seen).await? {
        tracing::info!(%shard, messages = to - *seen, orgs = passed.len(), "far behind, so each reads its own part");
        if engine.send(Input::PassOver { shard, to, passed }).await.is_err() {
            return Ok(());
        }
        *seen = to;
        traffic.pass_over(to);
    }
    let mut cursor = log.cursor(shard, *seen).await?;
    trouble.send_if_modified(|known| known.take().is_some());
    loop {
        match cursor.next().await {
            Ok(message) => {
                *seen = message.seq;
                traffic.note(&message.subject, message.seq);
                if engine.send(Input::Message(Delivery::new(message, Instant::now(), log.keys()))).await.is_err() {
                    return Ok(());
                }
            }
            Err(CursorError::Gap { shard, expected, found }) => {
                counter!("orgstream_stream_gaps_total").increment(1);
                tracing::error!(%shard, expected, found, "messages are missing from the stream: look for a purge or lost storage");
            }
            Err(CursorError::Stream(error)) => return Err(error),
        }
    }
}

/// How far a reader after `seen` should go at once, and who has something on the way; none when it had better read.
///
/// Nobody is missed: the first message of every org is its creation, which is what the shard's orgs are known by.
async fn far_behind(log: &Log, shard: Shard, seen: u64) -> Result<Option<(u64, Vec<Passed>)>, StreamError> {
    // The end first: whoever comes later is read.
    let end = log.shard_end(shard).await?;
    let messages = end.saturating_sub(seen);
    if messages < FAR_BEHIND {
        return Ok(None);
    }
    let mut orgs = log.orgs_of_shard(shard).await?;
    orgs.push(PLATFORM_ORG);
    if messages < ASKING * orgs.len() as u64 {
        return Ok(None);
    }
    let passed: Vec<Option<Passed>> = stream::iter(orgs)
        .map(async |org| match log.next_after(shard, org, seen).await? {
            Some(next) if next <= end => Ok(Some(Passed { org, next, last: log.last_of(shard, org).await? })),
            _ => Ok::<_, StreamError>(None),
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let passed: Vec<Passed> = passed.into_iter().flatten().collect();
    Ok((messages >= LOOKING * passed.len() as u64).then_some((end, passed)))
}
