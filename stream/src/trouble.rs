//! Shards that accept no appends: recent failures of this process.
//!
//! A server whose disk was full does not report that to the client. It does not answer for the one stream that could
//! not be written to, and answers again when there is space; everything else of it works.

use std::time::{Duration, Instant};

use dashmap::DashMap;
use orgstream_events::{Chain, Shard};

use crate::{AppendError, Log};

/// How long a failure without a later try is reported: clients that see the report send fewer appends, or none.
const TOLD_FOR: Duration = Duration::from_secs(30);

/// The last failure of each shard since something was last appended to it.
#[derive(Debug, Default)]
pub(crate) struct Troubles(DashMap<Shard, (Instant, String)>);

impl Troubles {
    /// Records the outcome of an append to the shard.
    pub(crate) fn note(&self, shard: Shard, failed: Option<&AppendError>) {
        match failed {
            Some(AppendError::Unavailable { reason }) => {
                let reason = Chain(reason).to_string();
                let before = self.0.insert(shard, (Instant::now(), reason.clone()));
                if before.is_none_or(|(at, _)| at.elapsed() > TOLD_FOR) {
                    tracing::error!(
                        %shard, reason,
                        "a shard takes no appends: if others do, NATS could not write its stream; look at the server's disk \
                         and /healthz?details=true of its monitor, make space, and restart nats-server"
                    );
                }
            }
            // Any other error is an answer of the server.
            _ if self.0.is_empty() => {}
            _ => {
                if self.0.remove(&shard).is_some() {
                    tracing::info!(%shard, "a shard takes appends again");
                }
            }
        }
    }
}

impl Log {
    /// Returns the shards that recently accepted no appends of this process, and the known reasons.
    pub fn troubles(&self) -> Vec<(Shard, String)> {
        let lately = self.inner.troubles.0.iter().filter(|trouble| trouble.value().0.elapsed() < TOLD_FOR);
        let mut troubles: Vec<(Shard, String)> =
            lately.map(|trouble| (*trouble.key(), trouble.value().1.clone())).collect();
        troubles.sort_unstable();
        troubles
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::cause;

    use super::*;

    #[test]
    fn a_shard_is_in_trouble_until_it_answers() {
        let troubles = Troubles::default();
        let late = AppendError::Unavailable { reason: cause("no answer in time") };
        troubles.note(Shard(3), Some(&late));
        troubles.note(Shard(4), None);
        assert_eq!(troubles.0.len(), 1);
        troubles.note(Shard(3), Some(&AppendError::Conflict { subject: "ev.3".to_owned() }));
        assert!(troubles.0.is_empty());
    }
}
