//! Reading one owned shard: everything in it, once, in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::counter;
use orgstream_events::Shard;
use orgstream_stream::{CursorError, Log, StreamError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{delivery::Delivery, engine::Input, traffic::Traffic};

/// How long to wait before a cursor that could not go on is opened again.
const PAUSE: Duration = Duration::from_millis(500);

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
    let mut cursor = log.cursor(shard, *seen).await?;
    trouble.send_if_modified(|known| known.take().is_some());
    loop {
        match cursor.next().await {
            Ok(message) => {
                *seen = message.seq;
                traffic.note(&message.subject, message.seq);
                if engine.send(Input::Message(Delivery::new(message, Instant::now()))).await.is_err() {
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
