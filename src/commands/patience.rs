//! How long a command goes on against other writers to the same thing, before its caller may as well try again later.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// In all. Whoever lost every race in it competes with more writers than one thing can have.
const LONGEST: Duration = Duration::from_secs(5);
/// The most races. More than fit into the time, unless something is wrong.
const TRIES: u32 = 1_000;
/// The longest pause between two races is 2 to the power of this, in milliseconds.
const PAUSE: u32 = 5;

/// The patience of one command.
pub(super) struct Patience {
    until: Instant,
    tries: u32,
}

impl Patience {
    /// Full.
    pub(super) fn new() -> Self {
        Self { until: Instant::now() + LONGEST, tries: 0 }
    }

    /// Waits a little after a lost race; false once the patience is at its end.
    pub(super) async fn again(&mut self) -> bool {
        metrics::counter!("orgstream_append_conflicts_total").increment(1);
        self.tries += 1;
        if self.tries > TRIES || Instant::now() >= self.until {
            return false;
        }
        // The first race is lost to whoever was a moment earlier; the others to several, who must not all come back at once.
        if self.tries > 1 {
            let longest = 1_u64 << self.tries.min(PAUSE);
            sleep(Duration::from_millis(rand::random_range(0..=longest))).await;
        }
        true
    }
}
