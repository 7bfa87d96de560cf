//! While the database serves no org, transactions are tried with growing pauses, however many lanes there are.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Trouble;

/// The first pause of all lanes, doubled each time up to the longest. The first command after an outage may have to
/// wait for that.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);
/// Consecutive pauses from which on it is reported as an outage: one org's trouble ends with the next commit of
/// another.
const CALLED_SO: u32 = 3;
/// How long an outage is assumed without a new failure: waiting lanes try again sooner.
const BELIEVED: Duration = Duration::from_secs(15);

/// Whether transactions are worth a try, by the outcomes of the last ones.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// The error, and when it last occurred.
    met: Option<(Arc<str>, Instant)>,
    /// Pauses since the last commit.
    pauses: u32,
    until: Option<Instant>,
}

impl Outage {
    /// Records that the database served a request.
    pub(super) fn is_over(&mut self) {
        *self = Self::default();
    }

    /// Records that a transaction failed, and none was committed while it ran.
    pub(super) fn goes_on(&mut self, trouble: &Trouble, now: Instant) {
        self.met = Some((Arc::clone(&trouble.reason), now));
        // Concurrent failures count once.
        if self.until.is_none_or(|until| until <= now) {
            self.until = Some(now + (FIRST * (1 << self.pauses.min(8))).min(LONGEST));
            self.pauses = self.pauses.saturating_add(1);
        }
    }

    /// Whether nothing is to be tried yet.
    pub(super) fn is_pausing(&mut self, now: Instant) -> bool {
        self.until = self.until.filter(|until| *until > now);
        self.until.is_some()
    }

    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.until
    }

    /// The error that all lanes wait for, once it is certain that it concerns all.
    pub(super) fn reason(&self, now: Instant) -> Option<&Arc<str>> {
        let (reason, at) = self.met.as_ref()?;
        let is_one = self.pauses >= CALLED_SO && now.saturating_duration_since(*at) < BELIEVED;
        is_one.then_some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_end_with_the_first_commit() {
        let (mut outage, mut now) = (Outage::default(), Instant::now());
        let trouble = Trouble { reason: "it is read-only".into(), everywhere: true, suspect: false, elsewhere: false };
        let begun = now;
        let mut tries = 0;
        while now < begun + Duration::from_secs(60) {
            assert!(!outage.is_pausing(now));
            // Four slots find out at the same time.
            (0..4).for_each(|_| outage.goes_on(&trouble, now));
            tries += 1;
            assert!(outage.is_pausing(now));
            let until = outage.ends_at().unwrap();
            assert!(until - now <= LONGEST);
            now = until;
        }
        assert!(tries < 40, "{tries} tries in a minute");
        assert_eq!(outage.reason(now).map(AsRef::as_ref), Some("it is read-only"));
        assert!(outage.reason(now + 2 * BELIEVED).is_none());
        outage.is_over();
        assert!(!outage.is_pausing(now) && outage.reason(now).is_none());
    }
}
