//! The retry budget of a command that conflicts with other writers to the same aggregate, after which its caller may as well
//! retry later.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The total time. A command that lost every race in it competes with more writers than one aggregate can have.
const LONGEST: Duration = Duration::from_secs(5);
/// The maximum number of races. More than fit into the time, unless something is wrong.
const TRIES: u32 = 1_000;
/// The longest pause between two races is 2 to the power of this, in milliseconds.
const PAUSE: u32 = 5;

/// The remaining budget of one command.
pub(super) struct Patience {
    until: Instant,
    tries: u32,
}

impl Patience {
    /// Starts with the full budget.
    pub(super) fn new() -> Self {
        Self { until: Instant::now() + LONGEST, tries: 0 }
    }

    /// Backs off after a lost race; returns false once the budget is exhausted.
    pub(super) async fn again(&mut self) -> bool {
        metrics::counter!("orgstream_append_conflicts_total").increment(1);
        self.tries += 1;
        if self.tries > TRIES || Instant::now() >= self.until {
            return false;
        }
        // The first race is lost to one earlier writer; the others to several, which must not all retry at once.
        if self.tries > 1 {
            let longest = 1_u64 << self.tries.min(PAUSE);
            sleep(Duration::from_millis(rand::random_range(0..=longest))).await;
        }
        true
    }
}
