//! Snapshots of aggregates with long histories: what they contain, and when a process makes one.
//!
//! A process that finds that many events have followed on the last one makes the next, beside its work and without waiting
//! for it.

use std::sync::Arc;

use metrics::counter;
use orgstream_domain::Aggregate;
use orgstream_events::{AggregateId, Chain};
use orgstream_stream::{Log, Placement, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{
    cache::{Loaded, Notes},
    command_index::CommandIndex,
};

/// The number of the content's own form, apart from the state's.
const FORM: u16 = 1;
/// The snapshots that a process makes at the same time. One that finds no place is made a moment later, by another command.
const AT_ONCE: usize = 2;

/// Everything but the place, which the snapshot itself has.
#[derive(Serialize, Deserialize)]
struct Content<A> {
    version: u64,
    #[serde(with = "serde_bytes")]
    commands: Vec<u8>,
    state: A,
}

/// Returns the number of the content's shape.
pub fn shape<A: Aggregate>() -> u32 {
    u32::from(FORM) << 16 | u32::from(A::SHAPE)
}

/// Reads the aggregate; none if the content is not what its shape says.
pub(super) fn read<A: Aggregate>(snapshot: &Snapshot) -> Option<Loaded<A>> {
    let Content { version, commands, state } = match rmp_serde::from_slice(&snapshot.content) {
        Ok(content) => content,
        Err(error) => {
            tracing::warn!(aggregate = A::TYPE.name(), error = %Chain(&error), "a snapshot cannot be read, and the history is read instead");
            return None;
        }
    };
    let commands = CommandIndex::from_bytes(&commands)?;
    Some(Loaded { state, version, seq: snapshot.seq, commands, notes: Notes::of_snapshot(version) })
}

fn write<A: Aggregate>(loaded: &Loaded<A>) -> Result<Snapshot, rmp_serde::encode::Error> {
    let (version, commands) = (loaded.version, loaded.commands.to_bytes());
    let content = rmp_serde::to_vec_named(&Content { version, commands, state: &loaded.state })?;
    Ok(Snapshot { shape: shape::<A>(), seq: loaded.seq, content: content.into() })
}

/// Makes snapshots.
pub(super) struct Snapshots {
    turns: Arc<Semaphore>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Snapshots {
    /// Makes a snapshot of the aggregate if it is time for one. No command waits for it; without it the next reader reads more.
    pub(super) fn keep<A: Aggregate>(
        &self,
        log: &Log,
        placement: &Placement,
        aggregate: &AggregateId,
        loaded: &Arc<Loaded<A>>,
    ) {
        let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() else { return };
        if !loaded.takes_snapshot() {
            return;
        }
        let (log, placement, aggregate, loaded) =
            (log.clone(), placement.clone(), aggregate.clone(), Arc::clone(loaded));
        tokio::spawn(async move {
            let _turn = turn;
            let made = tokio::task::spawn_blocking(move || write(&loaded)).await;
            let kept: anyhow::Result<bool> =
                async { Ok(log.keep_snapshot(&placement, &aggregate, &made??).await?) }.await;
            let outcome = match kept {
                Ok(true) => "kept",
                Ok(false) => "impossible",
                Err(error) => {
                    tracing::warn!(org.id = %placement.org, %aggregate, error = %Chain(error.as_ref()), "a snapshot could not be kept");
                    "failed"
                }
            };
            counter!("orgstream_snapshots_total", "outcome" => outcome).increment(1);
        });
    }
}
