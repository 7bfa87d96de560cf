//! Rate-limited log lines, whose cause any caller may trigger without limit.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The minimum interval between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// A log line that is written seldom, however often there is a reason, with the number of reasons since.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// Starts without a line written.
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Returns the number of reasons since the line was last written, this one included, if it may be written now.
    pub fn may_say(&self) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.1 += 1;
        if said.0.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        said.0 = Some(Instant::now());
        Some(std::mem::take(&mut said.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_with_its_count() {
        let line = Seldom::new();
        assert_eq!(line.may_say(), Some(1));
        assert_eq!((0..1_000).filter_map(|_| line.may_say()).count(), 0);
        line.0.lock().unwrap().0 = Instant::now().checked_sub(PAUSE);
        assert_eq!((line.may_say(), line.may_say()), (Some(1_001), None));
    }
}
