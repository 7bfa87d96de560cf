//! The reasons why a command of an account is refused, and how they are answered.

use orgstream_events::{Amount, HoldId, MeterName, PlanVersion, Timestamp, TopUpId};
use serde::{Deserialize, Serialize};

use super::MAX_BUCKETS;
use crate::{FieldError, Rejection, RejectionKind};

/// The reasons why a command of an account is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AccountError {
    /// Fields are malformed.
    #[error("{} fields are not as they must be", .0.len())]
    Invalid(Vec<FieldError>),
    /// The trial is over.
    #[error("the trial of the plan {} ended at {since}: choose a paid plan, and use goes on at once", plan.plan)]
    BillingRequired {
        /// The plan.
        plan: PlanVersion,
        /// The end.
        since: Timestamp,
    },
    /// The plan counts no such meter, and nothing of it was granted.
    #[error("there is no meter {meter}: the plan has {}", names(known))]
    UnknownMeter {
        /// The meter.
        meter: MeterName,
        /// Those that there are.
        known: Vec<MeterName>,
    },
    /// Less is available than is needed.
    #[error("{required} {meter} are needed and {available} are available{}", reset(*resets_at))]
    Insufficient {
        /// The meter.
        meter: MeterName,
        /// What is needed.
        required: Amount,
        /// What is available.
        available: Amount,
        /// When the plan grants more.
        resets_at: Option<Timestamp>,
    },
    /// The cap of a month would be exceeded.
    #[error(
        "{required} {meter} more would exceed the {cap} of a month, of which {used} are used or held, until {resets_at}"
    )]
    CapReached {
        /// The meter.
        meter: MeterName,
        /// What is needed.
        required: Amount,
        /// The cap.
        cap: Amount,
        /// What was used and is held.
        used: Amount,
        /// The end of the month.
        resets_at: Timestamp,
    },
    /// As many holds are open as may be.
    #[error("{most} operations are under way, which is the limit: settle or release one, or wait until {free_at}")]
    Concurrency {
        /// The limit.
        most: usize,
        /// The earliest deadline.
        free_at: Timestamp,
    },
    /// There is no such hold, or it has ended.
    #[error("the hold {0} is not open: it was settled or released, its deadline has passed, or it never was")]
    HoldNotOpen(HoldId),
    /// The deadline would be too late.
    #[error("a hold lasts a day at most, and this one began at {reserved_at}: settle it, and reserve again")]
    TooLong {
        /// Its beginning.
        reserved_at: Timestamp,
    },
    /// More was used than is held.
    #[error("{asked} is more than the {held} that are held: extend the hold before more is used")]
    MoreThanHeld {
        /// What is held.
        held: Amount,
        /// What is asked for.
        asked: Amount,
    },
    /// There are as many buckets as there may be.
    #[error("an account has at most {MAX_BUCKETS} grants that are not used up; let some of them be used or end first")]
    TooManyBuckets,
    /// The plan sells none of the meter.
    #[error("the plan {} sells no {meter} beforehand: ask for another plan", plan.plan)]
    NotSold {
        /// The meter.
        meter: MeterName,
        /// The plan.
        plan: PlanVersion,
    },
    /// There is no such top-up, or it has ended.
    #[error("the top-up {} is not open: it was paid or declined, or it never was", .0.0)]
    TopUpNotOpen(TopUpId),
    /// The sum would be too large.
    #[error("no more than {} {meter} can be granted in all", Amount::MAX)]
    TooMuch {
        /// The meter.
        meter: MeterName,
    },
}

fn names(meters: &[MeterName]) -> String {
    match meters {
        [] => "none".to_owned(),
        meters => meters.iter().map(MeterName::as_str).collect::<Vec<_>>().join(", "),
    }
}

fn reset(at: Option<Timestamp>) -> String {
    at.map_or_else(|| ": ask for credit".to_owned(), |at| format!(": the plan grants more at {at}"))
}

impl From<AccountError> for Rejection {
    fn from(error: AccountError) -> Self {
        let detail = error.to_string();
        let figure = |name, value: &dyn std::fmt::Display| (name, value.to_string());
        match error {
            AccountError::Invalid(errors) => Self::invalid(errors),
            AccountError::BillingRequired { since, .. } => {
                Self::new(RejectionKind::PaymentRequired, "billing_required", detail)
                    .with([figure("trial_ended_at", &since)])
            }
            AccountError::UnknownMeter { .. } => Self::field("/meter", "unknown_value", detail),
            AccountError::Insufficient { required, available, resets_at, .. } => {
                let figures = [figure("required", &required), figure("available", &available)];
                let resets = resets_at.map(|at| figure("resets_at", &at));
                Self::new(RejectionKind::PaymentRequired, "insufficient_balance", detail)
                    .with(figures.into_iter().chain(resets))
            }
            AccountError::CapReached { required, cap, used, resets_at, .. } => {
                let figures = [
                    figure("required", &required),
                    figure("available", &cap.less(used)),
                    figure("resets_at", &resets_at),
                ];
                Self::new(RejectionKind::LimitReached, "usage_cap_reached", detail).with(figures).until(resets_at)
            }
            AccountError::Concurrency { most, free_at } => {
                let figures = [figure("limit", &most), figure("free_at", &free_at)];
                Self::new(RejectionKind::LimitReached, "hold_limit_exceeded", detail).with(figures).until(free_at)
            }
            AccountError::HoldNotOpen(_) => Self::new(RejectionKind::Conflict, "hold_not_open", detail),
            AccountError::TooLong { .. } => Self::field("/seconds", "out_of_range", detail),
            AccountError::MoreThanHeld { held, .. } => {
                Self::new(RejectionKind::Conflict, "more_than_held", detail).with([figure("held", &held)])
            }
            AccountError::TooManyBuckets => Self::new(RejectionKind::Conflict, "too_many_grants", detail),
            AccountError::NotSold { .. } => Self::new(RejectionKind::Conflict, "top_up_not_sold", detail),
            AccountError::TopUpNotOpen(_) => Self::new(RejectionKind::Conflict, "top_up_not_open", detail),
            AccountError::TooMuch { .. } => Self::field("/amount", "out_of_range", detail),
        }
    }
}
