//! The quotas of an organization: the most that there may be of things that stay, and what is used of them near a limit.
//!
//! What is used is summed by the read models, which follow the log. Far from a limit that is enough. Near it each commit that adds
//! something is appended together with one of this aggregate, which counts what the read models may not have yet; so commits at once
//! are decided one after the other.

use std::collections::BTreeMap;

use orgstream_events::{AggregateType, Event, PlanName, QuotaCounted, QuotaEvent, QuotaName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Aggregate, DecisionContext, Place, Rejection, RejectionKind, plan::LimitSource};

/// How long after it was found to be near a limit other processes may still add something that is not counted, in milliseconds:
/// the age of what they know, and the time of an append.
const SETTLES_AFTER_MS: i64 = 3_000;
/// The number of processes whose uncounted additions the slack of a quota has room for.
const PROCESSES: u64 = 16;

/// The codes of refusals by a quota.
pub const QUOTA_CODES: [&str; 5] = [
    "members_quota_exceeded",
    "api_keys_quota_exceeded",
    "webhooks_quota_exceeded",
    "storage_quota_exceeded",
    "kind_limit_exceeded",
];

/// The state of an organization's quotas. By default nothing was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// All that was ever counted, by quota: what was added less what was taken.
    counted: BTreeMap<QuotaName, i64>,
    /// The quotas of which every commit is counted.
    near: BTreeMap<QuotaName, Near>,
}

/// Since when every commit is counted, because a limit is near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Near {
    limit: u64,
    since: Timestamp,
    /// The position behind everything that was not counted, once that is certain.
    settled: Option<u64>,
}

/// A limit that counts for an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaLimit {
    /// The most that there may be.
    pub most: u64,
    /// Where it comes from.
    pub source: LimitSource,
    /// The plan of the organization.
    pub plan: PlanName,
}

/// What the read models have of a quota at a position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figure {
    /// What is used.
    pub used: u64,
    /// What this aggregate had counted in all.
    pub counted: i64,
    /// The position in the organization's stream.
    pub at: u64,
}

/// A change of what is used, with what was looked up for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The quota.
    pub quota: QuotaName,
    /// What is added; below zero for what is taken.
    pub change: i64,
    /// The limit.
    pub limit: QuotaLimit,
    /// What the read models have.
    pub figure: Figure,
}

/// What is kept free of a quota for what other processes add without counting it. Nothing is added like that nearer to the limit.
pub fn slack(quota: QuotaName) -> u64 {
    match quota {
        // Decided by the aggregate that has all of them.
        QuotaName::Members | QuotaName::Webhooks => 0,
        QuotaName::ApiKeys => 32,
        QuotaName::StorageBytes => 256 << 20,
    }
}

/// What a process may add without counting it beyond what the read models have, where this much is left.
pub fn uncounted_share(quota: QuotaName, left: u64) -> u64 {
    slack(quota).max(left / 2) / PROCESSES
}

impl Quota {
    /// Returns what is used: what the read models have, and what was counted since.
    pub fn used(&self, quota: QuotaName, figure: Figure) -> u64 {
        let counted = self.counted.get(&quota).copied().unwrap_or_default();
        let since = i128::from(counted) - i128::from(figure.counted);
        u64::try_from((i128::from(figure.used) + since).max(0)).unwrap_or(u64::MAX)
    }

    /// Whether every commit has to be counted, because this limit is near.
    pub fn is_near(&self, quota: QuotaName, most: u64) -> bool {
        self.near.get(&quota).is_some_and(|near| near.limit == most)
    }

    /// Returns the position that the read models must have reached for exact figures; none while there is no such position.
    pub fn settled(&self, quota: QuotaName, most: u64) -> Option<u64> {
        self.near.get(&quota).filter(|near| near.limit == most)?.settled
    }

    fn fold(&mut self, event: &QuotaEvent, seq: u64, at: Timestamp) {
        let QuotaEvent::Counted(QuotaCounted { quota, change, limit }) = event;
        let counted = self.counted.entry(*quota).or_default();
        *counted = counted.saturating_add(*change);
        let Some(limit) = *limit else {
            self.near.remove(quota);
            return;
        };
        let begun = Near { limit, since: at, settled: None };
        let near = self.near.entry(*quota).or_insert(begun);
        if near.limit != limit {
            *near = begun;
        }
        if near.settled.is_none() && at.unix_ms() >= near.since.unix_ms().saturating_add(SETTLES_AFTER_MS) {
            near.settled = Some(seq);
        }
    }

    fn count(&self, count: Count) -> Result<QuotaCounted, QuotaError> {
        let Count { quota, change, limit, figure } = count;
        let (most, used) = (limit.most, self.used(quota, figure));
        let after = used.saturating_add_signed(change);
        let near = self.near.get(&quota).filter(|near| near.limit == most);
        if change > 0 {
            if after > most {
                return Err(OverQuota { quota, limit, used, needed: change.unsigned_abs() }.into());
            }
            // Below its slack a limit is always near, so nothing was added without being counted.
            let is_complete =
                most <= slack(quota) || near.and_then(|near| near.settled).is_some_and(|settled| settled <= figure.at);
            if !is_complete && after.saturating_add(slack(quota)) > most {
                let since = near.map(|near| near.since.unix_ms().saturating_add(SETTLES_AFTER_MS));
                return Err(QuotaError::NotSettled { from: since.map(Timestamp::from_unix_ms) });
            }
        }
        let margin = if near.is_some() { slack(quota).saturating_mul(2) } else { slack(quota) };
        // What changes nothing marks a place behind what is not counted.
        let is_near = change == 0 || after.saturating_add(margin) > most;
        Ok(QuotaCounted { quota, change, limit: is_near.then_some(most) })
    }
}

impl Aggregate for Quota {
    type Command = Vec<Count>;
    type Event = QuotaEvent;
    type Error = QuotaError;
    const TYPE: AggregateType = AggregateType::Quota;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &QuotaEvent) {
        self.fold(event, 0, Timestamp::default());
    }

    fn apply_at(&mut self, event: &QuotaEvent, place: Place<'_>) {
        self.fold(event, place.seq, place.recorded_at);
    }

    fn decide(&self, command: Vec<Count>, _: &DecisionContext) -> Result<Vec<QuotaEvent>, QuotaError> {
        command.into_iter().map(|count| Ok(QuotaEvent::Counted(self.count(count)?))).collect()
    }

    fn wrap(event: QuotaEvent) -> Event {
        Event::Quota(event)
    }

    fn event_of(event: &Event) -> Option<&QuotaEvent> {
        if let Event::Quota(event) = event { Some(event) } else { None }
    }
}

/// The reasons why something is not added to a quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// There is as much as there may be.
    #[error(transparent)]
    Over(#[from] OverQuota),
    /// Other processes may have added something that neither the read models nor this aggregate have yet.
    #[error("what is used near the limit is being counted: send it again in a few seconds")]
    NotSettled {
        /// When nothing is added uncounted any more; none where the count has not begun.
        from: Option<Timestamp>,
    },
}

impl From<QuotaError> for Rejection {
    fn from(error: QuotaError) -> Self {
        match error {
            QuotaError::Over(over) => over.into(),
            QuotaError::NotSettled { .. } => Self::new(RejectionKind::Conflict, "contention", error),
        }
    }
}

/// A refusal by a quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .limit.refusal(*.quota, *.used, *.needed))]
pub struct OverQuota {
    /// The quota.
    pub quota: QuotaName,
    /// The limit.
    pub limit: QuotaLimit,
    /// What is used.
    pub used: u64,
    /// What was to be added.
    pub needed: u64,
}

impl QuotaLimit {
    /// Refuses one more where this many are there.
    pub(crate) fn admits_one(this: Option<&Self>, quota: QuotaName, used: usize) -> Result<(), OverQuota> {
        let used = used as u64;
        match this {
            Some(limit) if used >= limit.most => Err(OverQuota { quota, limit: limit.clone(), used, needed: 1 }),
            _ => Ok(()),
        }
    }

    fn refusal(&self, quota: QuotaName, used: u64, needed: u64) -> String {
        let (what, way_out) = match quota {
            QuotaName::Members => (format!("{used} members"), "remove a member"),
            QuotaName::ApiKeys => (format!("{used} API keys that work"), "revoke one of them"),
            QuotaName::Webhooks => (format!("{used} webhooks"), "go without one"),
            QuotaName::StorageBytes => {
                (format!("{used} bytes of records, and {needed} more are needed"), "archive records or shorten them")
            }
        };
        let Self { most, source, plan } = self;
        let whose = match source {
            LimitSource::Organization => "its own limit".to_owned(),
            LimitSource::Plan | LimitSource::Default => format!("its plan ({plan})"),
        };
        format!(
            "this organization has {what}, and {whose} allows {most}: {way_out}, or ask the platform's operator for a higher limit \
             or another plan"
        )
    }
}

impl From<OverQuota> for Rejection {
    fn from(over: OverQuota) -> Self {
        let (kind, code) = match over.quota {
            QuotaName::Members => (RejectionKind::Conflict, "members_quota_exceeded"),
            QuotaName::ApiKeys => (RejectionKind::Conflict, "api_keys_quota_exceeded"),
            QuotaName::Webhooks => (RejectionKind::Conflict, "webhooks_quota_exceeded"),
            QuotaName::StorageBytes => (RejectionKind::Conflict, "storage_quota_exceeded"),
        };
        let left = over.limit.most.saturating_sub(over.used);
        let figures = [
            ("limit", over.limit.most.to_string()),
            ("used", over.used.to_string()),
            ("required", over.needed.to_string()),
            ("available", left.to_string()),
        ];
        Self::new(kind, code, &over).with(figures)
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{Actor, ActorType};

    use super::*;
    use crate::testing::{context, rejection};

    const STORAGE: QuotaName = QuotaName::StorageBytes;

    fn limit(most: u64) -> QuotaLimit {
        QuotaLimit { most, source: LimitSource::Plan, plan: "trial".parse().unwrap() }
    }

    fn count(quota: QuotaName, change: i64, most: u64, figure: Figure) -> Vec<Count> {
        vec![Count { quota, change, limit: limit(most), figure }]
    }

    fn take(state: &mut Quota, events: &[QuotaEvent], seq: u64, second: i64) {
        let actor = Actor { actor_type: ActorType::System, id: "test".to_owned(), auth: None };
        for event in events {
            let place = Place { seq, actor: &actor, recorded_at: Timestamp::from_unix_ms(second * 1_000) };
            state.apply_at(event, place);
        }
    }

    fn add(state: &mut Quota, counts: Vec<Count>, seq: u64, second: i64) {
        let events = state.decide(counts, &context()).unwrap();
        take(state, &events, seq, second);
    }

    #[test]
    fn s3_29_as_much_as_fits_is_taken_wherever_the_read_models_are() {
        let mut state = Quota::default();
        // They stand still: all is counted here. The last one would be a byte too much.
        for (seq, (change, fits)) in
            (1..).zip([(60, true), (30, true), (-20, true), (31, false), (30, true), (1, false)])
        {
            let decided = state.decide(count(STORAGE, change, 100, Figure::default()), &context());
            assert_eq!(decided.is_ok(), fits, "{change}");
            take(&mut state, &decided.unwrap_or_default(), seq, 1);
        }
        assert_eq!(state.used(STORAGE, Figure::default()), 100);
        // When they have caught up nothing is there twice, and what was taken uncounted before is room.
        let caught_up = Figure { used: 90, counted: 100, at: 9 };
        assert_eq!(state.used(STORAGE, caught_up), 90);
        assert!(state.decide(count(STORAGE, 10, 100, caught_up), &context()).is_ok());
        let refused = rejection(state.decide(count(STORAGE, 11, 100, caught_up), &context()));
        assert_eq!((refused.code, refused.kind.status()), ("storage_quota_exceeded", 409));
        let figures: Vec<_> = refused.figures.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(figures, [("limit", "100"), ("used", "90"), ("required", "11"), ("available", "10")]);
        assert!(refused.detail.contains("archive records") && refused.detail.contains("(trial)"), "{}", refused.detail);
    }

    #[test]
    fn what_is_taken_is_never_refused_and_a_smaller_limit_takes_nothing_away() {
        let figure = Figure { used: 500, counted: 0, at: 3 };
        assert!(Quota::default().decide(count(STORAGE, -10, 100, figure), &context()).is_ok());
        assert!(Quota::default().decide(count(STORAGE, 1, 100, figure), &context()).is_err());
    }

    #[test]
    fn near_a_large_limit_what_others_added_uncounted_is_waited_for() {
        let (mut state, most) = (Quota::default(), 1_000);
        let figure = Figure { used: 968, counted: 0, at: 5 };
        assert!(state.decide(count(QuotaName::ApiKeys, 0, most, figure), &context()).is_ok());
        // 32 are kept free for what is not known yet.
        let next = count(QuotaName::ApiKeys, 1, most, figure);
        assert_eq!(state.decide(next.clone(), &context()), Err(QuotaError::NotSettled { from: None }));
        add(&mut state, count(QuotaName::ApiKeys, 0, most, figure), 10, 100);
        assert!(state.is_near(QuotaName::ApiKeys, most) && !state.is_near(QuotaName::ApiKeys, most + 1));
        let waits = QuotaError::NotSettled { from: Some(Timestamp::from_unix_ms(103_000)) };
        assert_eq!(state.decide(next.clone(), &context()), Err(waits.clone()));
        add(&mut state, count(QuotaName::ApiKeys, 0, most, figure), 11, 102);
        assert_eq!(state.settled(QuotaName::ApiKeys, most), None);
        add(&mut state, count(QuotaName::ApiKeys, 0, most, figure), 12, 103);
        assert_eq!(state.settled(QuotaName::ApiKeys, most), Some(12));
        assert_eq!(state.decide(next, &context()), Err(waits), "the read models are not there yet");
        // There they found two more.
        let figure = Figure { used: 970, counted: 0, at: 12 };
        for (seq, fits) in (13..).zip([true, false]) {
            let decided = state.decide(count(QuotaName::ApiKeys, 30, most, figure), &context());
            assert_eq!(decided.is_ok(), fits);
            take(&mut state, &decided.unwrap_or_default(), seq, 104);
        }
    }

    #[test]
    fn far_from_the_limit_again_commits_are_not_counted_any_more() {
        let mut state = Quota::default();
        let figure = Figure { used: 990, counted: 0, at: 5 };
        add(&mut state, count(QuotaName::ApiKeys, -1, 1_000, figure), 6, 1);
        assert!(state.is_near(QuotaName::ApiKeys, 1_000));
        let figure = Figure { used: 940, counted: -1, at: 7 };
        add(&mut state, count(QuotaName::ApiKeys, -1, 1_000, figure), 8, 2);
        assert!(state.is_near(QuotaName::ApiKeys, 1_000), "not before twice the slack is free");
        let figure = Figure { used: 936, counted: -2, at: 9 };
        add(&mut state, count(QuotaName::ApiKeys, -1, 1_000, figure), 10, 3);
        assert!(!state.is_near(QuotaName::ApiKeys, 1_000));
    }
}
