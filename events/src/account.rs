//! Events of an account: what an organization may use, what is held for it, and what it used. All amounts are exact.

use serde::{Deserialize, Serialize};

use crate::{ActorType, Amount, Currency, HoldId, KindName, MeterName, PlanVersion, Timestamp, codec::event_enum};

event_enum! {
    /// The events of an organization's account.
    AccountEvent about aggregate {
        Granted(AccountGranted) = "account.granted", 1;
        AllowanceChanged(AccountAllowanceChanged) = "account.allowance_changed", 1;
        BucketClosed(AccountBucketClosed) = "account.bucket_closed", 1;
        Reserved(AccountReserved) = "account.reserved", 1;
        Extended(AccountExtended) = "account.extended", 1;
        Settled(AccountSettled) = "account.settled", 1;
        Released(AccountReleased) = "account.released", 1;
        HoldsExpired(AccountHoldsExpired) = "account.holds_expired", 1;
        ThresholdCrossed(AccountThresholdCrossed) = "account.threshold_crossed", 1;
        TopUpChanged(AccountTopUpChanged) = "account.top_up_changed", 1;
        TopUpRequested(AccountTopUpRequested) = "account.top_up_requested", 1;
        TopUpPaid(AccountTopUpPaid) = "account.top_up_paid", 1;
        TopUpDeclined(AccountTopUpDeclined) = "account.top_up_declined", 1;
    }
}

/// The number of a bucket in its account, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BucketId(pub u32);

/// Where an amount comes from. In the order of use among those that end at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BucketSource {
    /// The plan's, for one calendar month.
    Allowance,
    /// The platform's operator.
    Grant,
    /// A payment.
    Purchase,
    /// The plan's, for one calendar month, beyond what is included: paid for afterwards.
    Overage,
}

/// An amount was granted: a bucket from which it is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountGranted {
    /// When it took effect.
    pub at: Timestamp,
    /// The bucket.
    pub bucket: BucketId,
    /// The meter.
    pub meter: MeterName,
    /// Where it comes from.
    pub source: BucketSource,
    /// The amount.
    pub amount: Amount,
    /// The first moment at which it may be used.
    pub from: Timestamp,
    /// The first moment at which it may not be used any more; none for one without an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The plan that it follows from, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanVersion>,
    /// The money for a million units of it, where it is paid for afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million: Option<Amount>,
    /// The reason, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the plan grants in this month changed with the plan. What is used and held stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountAllowanceChanged {
    /// When it took effect.
    pub at: Timestamp,
    /// The bucket.
    pub bucket: BucketId,
    /// The meter.
    pub meter: MeterName,
    /// The amount of the whole month from now on.
    pub amount: Amount,
    /// The plan that it follows from.
    pub plan: PlanVersion,
    /// The money for a million units of what is used of it from now on, where it is paid for afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million: Option<Amount>,
}

/// A bucket was closed: it has ended, or nothing is left in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountBucketClosed {
    /// When it took effect.
    pub at: Timestamp,
    /// The bucket.
    pub bucket: BucketId,
    /// The meter.
    pub meter: MeterName,
    /// What was left in it, and lapsed.
    pub lapsed: Amount,
}

/// A part of an amount, and the bucket that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draw {
    /// The bucket.
    pub bucket: BucketId,
    /// The part.
    pub amount: Amount,
}

/// What an amount is used for, as the caller says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedFor {
    /// The kind of the record that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<KindName>,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl UsedFor {
    fn is_unsaid(&self) -> bool {
        *self == Self::default()
    }
}

/// Who uses an amount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedBy {
    /// The type of the principal.
    pub actor_type: ActorType,
    /// Its id in the organization.
    pub id: String,
}

/// An amount is held until it is settled or released, or until the deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountReserved {
    /// When it took effect.
    pub at: Timestamp,
    /// The hold.
    pub hold: HoldId,
    /// The meter.
    pub meter: MeterName,
    /// The amount.
    pub amount: Amount,
    /// Its parts by bucket.
    pub draws: Vec<Draw>,
    /// The moment at which what is held returns.
    pub deadline: Timestamp,
    /// What it is for.
    #[serde(default, skip_serializing_if = "UsedFor::is_unsaid")]
    pub used_for: UsedFor,
    /// Who asked for it.
    pub by: UsedBy,
}

/// A hold became larger, or lasts longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountExtended {
    /// When it took effect.
    pub at: Timestamp,
    /// The hold.
    pub hold: HoldId,
    /// The amount by which it is larger.
    pub amount: Amount,
    /// Its parts by bucket.
    pub draws: Vec<Draw>,
    /// The deadline from now on.
    pub deadline: Timestamp,
}

/// An amount was used: of a hold, whose rest returned, or at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountSettled {
    /// When it took effect.
    pub at: Timestamp,
    /// The hold, which has ended; none for an amount that was used without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldId>,
    /// When it was held: the moment whose usage it is.
    pub reserved_at: Timestamp,
    /// The meter.
    pub meter: MeterName,
    /// The amount that was used.
    pub amount: Amount,
    /// Its parts by bucket.
    pub draws: Vec<Draw>,
    /// The amount that was held and not used.
    pub returned: Amount,
    /// What it was for.
    #[serde(default, skip_serializing_if = "UsedFor::is_unsaid")]
    pub used_for: UsedFor,
    /// Who used it.
    pub by: UsedBy,
}

/// A hold ended unused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountReleased {
    /// When it took effect.
    pub at: Timestamp,
    /// The hold.
    pub hold: HoldId,
    /// The meter.
    pub meter: MeterName,
    /// The amount that returned.
    pub amount: Amount,
}

/// Holds ended at their deadlines, unused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountHoldsExpired {
    /// When it took effect.
    pub at: Timestamp,
    /// The holds.
    pub holds: Vec<ExpiredHold>,
}

/// A hold that ended at its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiredHold {
    /// The hold.
    pub hold: HoldId,
    /// The meter.
    pub meter: MeterName,
    /// The amount that returned.
    pub amount: Amount,
}

/// What is available of a meter fell below a part of what is granted: a warning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountThresholdCrossed {
    /// When it took effect.
    pub at: Timestamp,
    /// The meter.
    pub meter: MeterName,
    /// The threshold, in percent of what is granted.
    pub percent: u8,
    /// What is available.
    pub available: Amount,
    /// What is granted.
    pub granted: Amount,
}

/// The number of a top-up in its account, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopUpId(pub u32);

/// When an amount is bought by itself, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopUpRule {
    /// More is bought when less than this is available, not counting what is paid for afterwards.
    pub below: Amount,
    /// The amount that is bought; a multiple of it where one is not enough.
    pub amount: Amount,
    /// The most that is bought by itself in a calendar month; none for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_limit: Option<Amount>,
}

/// The organization changed when an amount is bought by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountTopUpChanged {
    /// When it took effect.
    pub at: Timestamp,
    /// The meter.
    pub meter: MeterName,
    /// The rule from now on; none when nothing is bought by itself any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<TopUpRule>,
    /// The currency in which it is paid.
    pub currency: Currency,
}

/// An amount is to be bought: the payment provider is asked for its price.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountTopUpRequested {
    /// When it took effect.
    pub at: Timestamp,
    /// The top-up.
    pub top_up: TopUpId,
    /// The meter.
    pub meter: MeterName,
    /// The amount.
    pub amount: Amount,
    /// The money for all of it.
    pub price: Amount,
    /// Its currency.
    pub currency: Currency,
}

/// A top-up was paid. What was bought is granted in the same commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountTopUpPaid {
    /// When it took effect.
    pub at: Timestamp,
    /// The top-up.
    pub top_up: TopUpId,
    /// The meter.
    pub meter: MeterName,
    /// The payment, by the name that it has where it was made.
    pub payment: String,
}

/// A top-up was not paid. The next one is requested later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountTopUpDeclined {
    /// When it took effect.
    pub at: Timestamp,
    /// The top-up.
    pub top_up: TopUpId,
    /// The meter.
    pub meter: MeterName,
    /// The reason, as the payment provider says it.
    pub reason: String,
    /// The first moment at which another one may be requested.
    pub retry_at: Timestamp,
}
