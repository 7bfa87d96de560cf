//! Reading one owned shard: everything in it, once, in order.

use std::time::{Duration, Instant};

use metrics::counter;
use orgstream_events::Shard;
use orgstream_stream::{CursorError, Log};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{delivery::Delivery, engine::Input};

/// How long to wait before a cursor that could not go on is opened again.
const PAUSE: Duration = Duration::from_millis(500);

/// Hands every message after `after` to the engine, until `stop`. What fails is tried again from where it stood.
pub(crate) async fn read_shard(
    log: Log,
    shard: Shard,
    after: u64,
    engine: mpsc::Sender<Input>,
    stop: CancellationToken,
) {
    let mut seen = after;
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = read_on(&log, shard, &mut seen, &engine) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Reads until the cursor cannot go on or the engine is gone.
async fn read_on(log: &Log, shard: Shard, seen: &mut u64, engine: &mpsc::Sender<Input>) {
    let mut cursor = match log.cursor(shard, *seen).await {
        Ok(cursor) => cursor,
        Err(error) => {
            tracing::warn!(%shard, event.seq = *seen, %error, "a shard cannot be read and will be tried again");
            return;
        }
    };
    loop {
        match cursor.next().await {
            Ok(message) => {
                *seen = message.seq;
                if engine.send(Input::Message(Delivery::new(message, Instant::now()))).await.is_err() {
                    return;
                }
            }
            Err(CursorError::Gap { shard, expected, found }) => {
                counter!("orgstream_stream_gaps_total").increment(1);
                tracing::error!(%shard, expected, found, "messages are missing from the stream: look for a purge or lost storage");
            }
            Err(CursorError::Stream(error)) => {
                tracing::warn!(%shard, event.seq = *seen, %error, "reading a shard was interrupted and will be resumed");
                return;
            }
        }
    }
}
