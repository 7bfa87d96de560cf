//! Stall detection from two checks: a lane or reader that was behind at both and has not moved in between is stalled.
//!
//! Being behind is no fault, and neither is being slow: a backlog that is worked off moves between any two checks. One
//! that does not move while there is work was forgotten, is stuck, or is blocked, whatever it reports of itself. This
//! file only decides; the watchdog checks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The most suspects remembered until the next check.
const SUSPECTS: usize = 1_024;

/// The result of one check of a lane or reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Its position.
    pub(crate) at: u64,
    /// The log's next sequence for it after that; none when it has everything.
    pub(crate) next: Option<u64>,
}

/// A change found by a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is at the same position as at the last check, and was behind then as it is now.
    Stands,
    /// It was stalled, and has moved since.
    Moves,
}

/// A lane or reader that was behind at the last check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Suspect {
    /// Its position.
    pub(crate) at: u64,
    /// The log's next sequence for it after that.
    pub(crate) next: u64,
    since: Instant,
    stands: bool,
}

impl Suspect {
    /// How long it is known to have been at its position.
    pub(crate) fn for_so_long(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

/// All suspects: those that were behind at the last check.
#[derive(Debug)]
pub(crate) struct Stalls<K>(BTreeMap<K, Suspect>);

impl<K> Default for Stalls<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> Stalls<K> {
    /// Records the result of a check.
    pub(crate) fn see(&mut self, who: K, sight: Sight, now: Instant) -> Option<Change> {
        let known = self.0.get_mut(&who);
        match (known, sight.next) {
            (Some(known), Some(_)) if known.at == sight.at => {
                let is_new = !known.stands;
                known.stands = true;
                is_new.then_some(Change::Stands)
            }
            (known, next) => {
                let stood = known.is_some_and(|known| known.stands);
                match next {
                    Some(next) if stood || self.0.contains_key(&who) || self.0.len() < SUSPECTS => {
                        self.0.insert(who, Suspect { at: sight.at, next, since: now, stands: false });
                    }
                    Some(_) => {}
                    None => {
                        self.0.remove(&who);
                    }
                }
                stood.then_some(Change::Moves)
            }
        }
    }

    /// Returns those that must be checked again.
    pub(crate) fn suspects(&self) -> impl Iterator<Item = K> {
        self.0.keys().copied()
    }

    /// Returns those that are stalled.
    pub(crate) fn standing(&self) -> impl Iterator<Item = (K, &Suspect)> {
        self.0.iter().filter(|(_, suspect)| suspect.stands).map(|(who, suspect)| (*who, suspect))
    }

    /// Removes those that are now another worker's.
    pub(crate) fn keep(&mut self, ours: impl Fn(K) -> bool) {
        self.0.retain(|who, _| ours(*who));
    }

    /// Records a failed check: what could not be checked may not have been able to move either.
    pub(crate) fn looked_in_vain(&mut self) {
        self.0.retain(|_, suspect| suspect.stands);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn behind(at: u64) -> Sight {
        Sight { at, next: Some(at + 3) }
    }

    fn done(at: u64) -> Sight {
        Sight { at, next: None }
    }

    /// The changes found by consecutive checks of one lane.
    fn looks(sights: &[Sight]) -> Vec<Option<Change>> {
        let (mut stalls, mut now) = (Stalls::default(), Instant::now());
        let mut changes = Vec::new();
        for sight in sights {
            changes.push(stalls.see(1, *sight, now));
            now += Duration::from_secs(30);
        }
        changes
    }

    #[test]
    fn who_is_behind_twice_at_the_same_place_is_stalled_and_is_named_once() {
        assert_eq!(looks(&[behind(7), behind(7), behind(7)]), [None, Some(Change::Stands), None]);
    }

    #[test]
    fn who_has_everything_is_never_stalled() {
        assert_eq!(looks(&[done(7), done(7), done(7)]), [None; 3]);
    }

    #[test]
    fn once_is_not_enough() {
        assert_eq!(looks(&[behind(7), done(10), behind(10), done(13)]), [None; 4]);
    }

    #[test]
    fn it_is_over_when_it_moves_whether_or_not_it_arrives() {
        let (stands, moves) = (Some(Change::Stands), Some(Change::Moves));
        assert_eq!(looks(&[behind(7), behind(7), behind(8), behind(8)]), [None, stands, moves, stands]);
        assert_eq!(looks(&[behind(7), behind(7), done(10), behind(10)]), [None, stands, moves, None]);
    }

    /// A rebuild puts a checkpoint back to the beginning: that is a movement too.
    #[test]
    fn what_goes_back_moves() {
        assert_eq!(looks(&[behind(7), behind(0), behind(4)]), [None; 3]);
    }

    #[test]
    fn an_outage_between_two_looks_is_nobodys_stall() {
        let (mut stalls, now) = (Stalls::default(), Instant::now());
        assert_eq!(stalls.see(1, behind(7), now), None);
        assert_eq!(stalls.see(1, behind(7), now), Some(Change::Stands));
        assert_eq!(stalls.see(2, behind(7), now), None);
        stalls.looked_in_vain();
        assert_eq!(stalls.see(2, behind(7), now), None);
        assert_eq!(stalls.see(1, behind(7), now), None, "it was named before");
        assert_eq!(stalls.standing().count(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut stalls, now) = (Stalls::default(), Instant::now());
        for who in 0..2 * SUSPECTS {
            stalls.see(who, behind(7), now);
        }
        assert_eq!(stalls.suspects().count(), SUSPECTS);
    }

    proptest! {
        /// However slowly a backlog is worked off, and however much is added: while it moves, it is not reported.
        #[test]
        fn a_backlog_that_moves_is_not_named(steps in prop::collection::vec((1_u64..5, 0_u64..9), 1..60)) {
            let mut at = 0;
            let sights: Vec<Sight> = steps
                .iter()
                .map(|(step, ahead)| {
                    at += step;
                    Sight { at, next: (*ahead > 0).then_some(at + ahead) }
                })
                .collect();
            prop_assert!(looks(&sights).iter().all(Option::is_none));
        }

        /// A reported lane was behind, at the same position, at this check and the one before.
        #[test]
        fn whoever_is_named_has_not_moved(seen in prop::collection::vec((0_u64..3, prop::bool::ANY), 1..60)) {
            let sights: Vec<Sight> = seen.iter().map(|(at, more)| if *more { behind(*at) } else { done(*at) }).collect();
            for (place, change) in looks(&sights).iter().enumerate() {
                if *change == Some(Change::Stands) {
                    prop_assert!(sights[place].next.is_some());
                    prop_assert_eq!(sights[place], sights[place - 1]);
                }
            }
        }
    }
}
