//! The budget of slot time for rebuilds.

use std::time::{Duration, Instant};

/// The share of the slots' time that rebuilds may use while there is other work.
const SHARE: f64 = 0.1;
/// Batches' worth of time that may be saved up.
const SAVED: f64 = 10.0;

/// A bucket of slot time that fills at a tenth of the rate at which slot time passes.
#[derive(Debug)]
pub(super) struct Budget {
    slots: f64,
    most: f64,
    /// Microseconds that may be spent; negative after overspending.
    left: f64,
    at: Instant,
    /// Microseconds spent since the share was last read, and the time of that.
    spent: f64,
    asked_at: Instant,
}

impl Budget {
    pub(super) fn new(slots: usize, batch: Duration, now: Instant) -> Self {
        let slots = slots as f64;
        Self { slots, most: SAVED * micros(batch), left: 0.0, at: now, spent: 0.0, asked_at: now }
    }

    /// Adds the time that has passed.
    pub(super) fn accrue(&mut self, now: Instant) {
        let passed = micros(now.saturating_duration_since(self.at));
        self.at = now;
        self.left = (self.left + passed * self.slots * SHARE).min(self.most);
    }

    /// Whether a step may begin although there is other work.
    pub(super) fn is_open(&self) -> bool {
        self.left > 0.0
    }

    /// Returns when it may; none when it may now.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        if self.is_open() {
            return None;
        }
        let wait = (-self.left).max(0.0) / (self.slots * SHARE).max(f64::MIN_POSITIVE);
        Some(self.at + Duration::from_micros(wait.min(1e9) as u64 + 1))
    }

    /// Records the duration of a step; only beside other work does it count against what may be spent.
    pub(super) fn spend(&mut self, took: Duration, beside_others: bool) {
        self.spent += micros(took);
        if beside_others {
            self.left -= micros(took);
        }
    }

    /// Returns the share of the slots' time that was spent since the last call.
    pub(super) fn share(&mut self, now: Instant) -> f64 {
        let passed = micros(now.saturating_duration_since(self.asked_at)) * self.slots;
        let share = if passed > 0.0 { self.spent / passed } else { 0.0 };
        (self.spent, self.asked_at) = (0.0, now);
        share
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(4);

    #[test]
    fn beside_other_work_rebuilds_get_a_tenth_of_the_slots() {
        let begun = Instant::now();
        let mut budget = Budget::new(4, SLICE, begun);
        let (mut now, mut spent) = (begun, Duration::ZERO);
        while now < begun + Duration::from_secs(10) {
            now += Duration::from_millis(1);
            budget.accrue(now);
            if budget.is_open() {
                // However long the steps turn out to be.
                let took = Duration::from_millis(3 + spent.as_millis() as u64 % 50);
                budget.spend(took, true);
                spent += took;
            }
        }
        let share = spent.as_secs_f64() / (4.0 * 10.0);
        assert!((0.095..0.105).contains(&share), "{share}");
    }

    #[test]
    fn what_was_spent_on_an_idle_machine_is_not_held_against_anybody() {
        let begun = Instant::now();
        let mut budget = Budget::new(4, SLICE, begun);
        budget.accrue(begun + Duration::from_secs(1));
        budget.spend(Duration::from_secs(60), false);
        assert!(budget.is_open());
        budget.spend(Duration::from_secs(1), true);
        assert!(!budget.is_open());
        let wait = budget.opens_at().unwrap() - (begun + Duration::from_secs(1));
        assert!((Duration::from_millis(2_300)..Duration::from_millis(2_500)).contains(&wait), "{wait:?}");
    }
}
