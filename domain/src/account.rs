//! An account: what an organization may use of each meter, what is held for it, and what it used. Nothing is used twice.
//!
//! Amounts are in buckets, each with a source and a period. A hold is a promise with a deadline: what is held can be used
//! whatever else happens, and returns if it is not. Everything that follows from the time alone (a month's allowance, the end
//! of a bucket, a late hold) is decided with the next command and in the same commit, so nothing has to run at midnight.

mod commands;
mod error;
mod preview;
#[cfg(test)]
mod tests;
mod top_up;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use orgstream_events::{
    AccountAllowanceChanged, AccountBucketClosed, AccountEvent, AccountExtended, AccountGranted, AccountHoldsExpired,
    AccountReleased, AccountReserved, AccountSettled, AccountThresholdCrossed, AggregateType, Amount, BucketId,
    BucketSource, Currency, Draw, Event, ExpiredHold, HoldId, MeterName, MeterTerms, Month, PlanVersion, Timestamp,
    UsedBy, UsedFor,
};
use serde::{Deserialize, Serialize};

use crate::{Aggregate, DecisionContext, text::Faults};

pub use commands::{
    ChangeTopUp, ChargeUsage, CreditAccount, DeclineTopUp, ExtendHold, PayTopUp, ReleaseHold, RequestTopUp,
    ReserveUsage, SettleHold,
};
pub use error::AccountError;
pub use preview::Part;
pub use top_up::{MAX_DECLINE_REASON, OpenTopUp, TopUps};

/// The maximum number of open holds of an organization, whatever its plan says.
pub const MAX_HOLDS: usize = 1_000;
/// The maximum number of open buckets of an organization.
pub const MAX_BUCKETS: usize = 100;
/// The longest time from a reservation to its deadline, in seconds: a day. After that a month's usage is complete.
pub const MAX_HOLD_SECONDS: u32 = 86_400;
/// The same time where a reservation names none: 15 minutes.
pub const HOLD_SECONDS: u32 = 900;
/// The longest name of a model, in characters.
const MAX_MODEL: usize = 100;
/// The time after the end of a month for which its usage is remembered where it has a price, in days: two years. What is on no
/// invoice by then is not billed any more.
pub const USAGE_DAYS: i64 = 730;
/// The same time for usage without a price, which invoices only show.
const FREE_USAGE_DAYS: i64 = 62;
/// The parts of what is granted at which a warning is due, in percent, from the first on.
const THRESHOLDS: [u8; 3] = [20, 5, 0];
/// The percentage points above a threshold to which a grant must lift what is available before it is warned of again.
const REARMED: u128 = 5;
/// A day, in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// The state of an account.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// The time of the last event. It never goes back.
    at: Timestamp,
    /// The number of the last bucket.
    last_bucket: u32,
    buckets: BTreeMap<BucketId, Bucket>,
    holds: BTreeMap<HoldId, Hold>,
    /// What was used and is held in the last month of each meter.
    months: BTreeMap<MeterName, MonthlyUse>,
    /// The lowest threshold that was warned of, in percent.
    warned: BTreeMap<MeterName, u8>,
    /// What was used, by month: what invoices are made of. It only grows, so that whoever knows what of it was billed knows
    /// what was not.
    used: MonthlyUsage,
    /// The number of the last top-up.
    last_top_up: u32,
    top_ups: BTreeMap<MeterName, TopUps>,
}

/// What was used in a month of one meter, from one source and at one price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeteredUse {
    /// The meter.
    pub meter: MeterName,
    /// Where it came from.
    pub source: BucketSource,
    /// The money for a million units, where it is paid for afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million: Option<Amount>,
    /// The amount.
    pub amount: Amount,
}

/// What was used of an account, by month.
pub type MonthlyUsage = BTreeMap<Month, Vec<MeteredUse>>;

/// An amount of one meter with a source and a period. `granted = left + held + spent`, unless the plan grants less now than was
/// used before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The meter.
    pub meter: MeterName,
    /// Where it comes from.
    pub source: BucketSource,
    /// The amount.
    pub granted: Amount,
    /// What is held of it.
    pub held: Amount,
    /// What was used of it.
    pub spent: Amount,
    /// The money for a million units of it, where it is paid for afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million: Option<Amount>,
    /// The first moment at which it may be used.
    pub from: Timestamp,
    /// The first moment at which it may not be used any more.
    pub until: Option<Timestamp>,
}

impl Bucket {
    /// Returns what is neither held nor used.
    pub fn left(&self) -> Amount {
        self.granted.less(self.held).less(self.spent)
    }

    fn is_usable(&self, meter: &MeterName, at: Timestamp) -> bool {
        self.meter == *meter && self.from <= at && self.until.is_none_or(|until| at < until)
    }

    /// Whether the plan grants it for a month.
    fn is_monthly(&self) -> bool {
        matches!(self.source, BucketSource::Allowance | BucketSource::Overage)
    }

    /// Whether it is of no use any more.
    fn has_ended(&self, at: Timestamp) -> bool {
        let is_over = self.until.is_some_and(|until| until <= at);
        self.held.is_zero() && (is_over || (!self.is_monthly() && self.left().is_zero()))
    }

    /// The order of use: what ends first, what was given before what was paid, and what is still to be paid last.
    fn order(&self) -> (bool, i64, BucketSource) {
        let end = self.until.map_or(i64::MAX, Timestamp::unix_ms);
        (self.source == BucketSource::Overage, end, self.source)
    }
}

/// An amount that is set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The meter.
    pub meter: MeterName,
    /// Its parts by bucket, in the order of use.
    pub draws: Vec<Draw>,
    /// When it was reserved: the moment whose usage it is.
    pub reserved_at: Timestamp,
    /// The moment at which it returns.
    pub deadline: Timestamp,
    /// What it is for.
    pub used_for: UsedFor,
    /// Who asked for it.
    pub by: UsedBy,
}

impl Hold {
    /// Returns the amount: the sum of its parts.
    pub fn amount(&self) -> Amount {
        sum(&self.draws)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MonthlyUse {
    month: Month,
    held: Amount,
    spent: Amount,
}

/// What the organization is entitled to, of which the account decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The plan and its version.
    pub plan: PlanVersion,
    /// What is counted, by its meter.
    pub meters: BTreeMap<MeterName, MeterTerms>,
    /// The most open holds.
    pub concurrency: Option<u32>,
    /// The end of the trial.
    pub trial_ends_at: Option<Timestamp>,
}

impl Terms {
    /// Whether the trial is over, so that nothing is used before a plan is chosen.
    pub fn require_billing(&self, at: Timestamp) -> bool {
        self.trial_ends_at.is_some_and(|end| end <= at)
    }

    /// Returns what is granted of a meter in a month, by its source.
    fn monthly(&self, meter: &MeterName, source: BucketSource, at: Timestamp) -> Amount {
        let terms = self.meters.get(meter).filter(|_| !self.require_billing(at));
        terms.map_or(Amount::ZERO, |terms| match source {
            BucketSource::Allowance => terms.included,
            BucketSource::Overage => terms.overage,
            BucketSource::Grant | BucketSource::Purchase => Amount::ZERO,
        })
    }

    /// Returns the price of what is used from a source, if it has one.
    fn price(&self, meter: &MeterName, source: BucketSource) -> Option<Amount> {
        let terms = self.meters.get(meter).filter(|_| source == BucketSource::Overage)?;
        Some(terms.price_per_million).filter(|price| !price.is_zero())
    }
}

/// A command of an account, with what was looked up for it.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountCommand {
    /// What the organization is entitled to: the same for all commands of a moment.
    pub terms: Arc<Terms>,
    /// The principal whose usage it is.
    pub by: UsedBy,
    /// The command as received.
    pub command: AccountAction,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq)]
pub enum AccountAction {
    /// Holds an amount.
    Reserve(ReserveUsage),
    /// Makes a hold larger or longer.
    Extend(ExtendHold),
    /// Uses what is held, and ends the hold.
    Settle(SettleHold),
    /// Ends a hold unused.
    Release(ReleaseHold),
    /// Uses an amount at once.
    Charge(ChargeUsage),
    /// Grants an amount.
    Credit(CreditAccount),
    /// Changes when more is bought by itself.
    ChangeTopUp {
        /// The command as received.
        command: ChangeTopUp,
        /// The currency of the plan's prices.
        currency: Currency,
    },
    /// Requests a top-up if one is due.
    RequestTopUp(RequestTopUp),
    /// Grants what was bought.
    PayTopUp(PayTopUp),
    /// Ends a top-up that was not paid.
    DeclineTopUp(DeclineTopUp),
}

/// What there is of one meter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeterBalance {
    /// What can be used now.
    pub available: Amount,
    /// What is held.
    pub held: Amount,
    /// What was granted in the buckets that can be used now.
    pub granted: Amount,
    /// What was used of those.
    pub spent: Amount,
    /// What was used or is held in this calendar month, wherever it came from.
    pub used_this_month: Amount,
}

impl Account {
    /// Returns the account as it is at a moment: with everything that follows from the time alone.
    pub fn as_of(&self, now: Timestamp, terms: &Terms) -> Self {
        self.brought_up_to(now.max(self.at), terms).0.into_owned()
    }

    /// Returns the time of the last event.
    pub fn last_change(&self) -> Timestamp {
        self.at
    }

    /// Returns its open buckets, by number.
    pub fn buckets(&self) -> &BTreeMap<BucketId, Bucket> {
        &self.buckets
    }

    /// Returns its open holds.
    pub fn holds(&self) -> &BTreeMap<HoldId, Hold> {
        &self.holds
    }

    /// Returns what was used, by the month in which it was reserved.
    pub fn used(&self) -> &MonthlyUsage {
        &self.used
    }

    /// Returns what there is of a meter at a moment.
    pub fn balance(&self, meter: &MeterName, at: Timestamp) -> MeterBalance {
        let mut balance = MeterBalance { used_this_month: self.used_in_month(meter, at), ..MeterBalance::default() };
        let add = |one: &mut Amount, other| *one = one.plus(other).unwrap_or(Amount::MAX);
        for bucket in self.buckets.values().filter(|bucket| bucket.meter == *meter) {
            add(&mut balance.held, bucket.held);
            if bucket.is_usable(meter, at) {
                add(&mut balance.available, bucket.left());
                add(&mut balance.granted, bucket.granted);
                add(&mut balance.spent, bucket.spent);
            }
        }
        balance
    }

    /// Returns every meter that there is something of, or that the terms name.
    pub fn meters<'a>(&'a self, terms: &'a Terms) -> BTreeSet<&'a MeterName> {
        terms.meters.keys().chain(self.buckets.values().map(|bucket| &bucket.meter)).collect()
    }

    fn used_in_month(&self, meter: &MeterName, at: Timestamp) -> Amount {
        let used = self.months.get(meter).filter(|used| used.month == Month::of(at));
        used.map_or(Amount::ZERO, |used| used.held.plus(used.spent).unwrap_or(Amount::MAX))
    }

    /// Returns the account with everything that follows from the time alone, and the events of that.
    fn brought_up_to(&self, now: Timestamp, terms: &Terms) -> (Cow<'_, Self>, Vec<AccountEvent>) {
        let (mut account, mut events) = (Cow::Borrowed(self), Vec::new());
        let mut happen = |account: &mut Cow<'_, Self>, event: AccountEvent| {
            account.to_mut().apply(&event);
            events.push(event);
        };
        let is_late = |hold: &Hold| hold.deadline <= now;
        if self.holds.values().any(is_late) {
            let late = self.holds.iter().filter(|(_, hold)| is_late(hold));
            let expired =
                late.map(|(id, hold)| ExpiredHold { hold: *id, meter: hold.meter.clone(), amount: hold.amount() });
            let expired = AccountHoldsExpired { at: now, holds: expired.collect() };
            happen(&mut account, AccountEvent::HoldsExpired(expired));
        }
        let ended = account.buckets.iter().filter(|(_, bucket)| bucket.has_ended(now));
        let closed: Vec<_> = ended.map(|(id, bucket)| (*id, bucket.meter.clone(), bucket.left())).collect();
        for (bucket, meter, lapsed) in closed {
            happen(&mut account, AccountEvent::BucketClosed(AccountBucketClosed { at: now, bucket, meter, lapsed }));
        }
        let month = Month::of(now);
        for source in [BucketSource::Allowance, BucketSource::Overage] {
            let meters: Vec<MeterName> = account.meters(terms).into_iter().cloned().collect();
            for meter in meters {
                let granted = terms.monthly(&meter, source, now);
                let of_month = |bucket: &&Bucket| bucket.source == source && bucket.is_usable(&meter, now);
                let known = account.buckets.iter().find(|(_, bucket)| of_month(bucket));
                let plan = terms.plan.clone();
                match known.map(|(id, bucket)| (*id, bucket.clone())) {
                    Some((bucket, known)) => {
                        // What is used and held stays, whatever the plan grants now.
                        let amount = granted.max(known.held.plus(known.spent).unwrap_or(Amount::MAX));
                        // What was held when the plan stopped granting any is used at the price that it had.
                        let price_per_million =
                            if granted.is_zero() { known.price_per_million } else { terms.price(&meter, source) };
                        if (amount, price_per_million) != (known.granted, known.price_per_million) {
                            let changed =
                                AccountAllowanceChanged { at: now, bucket, meter, amount, plan, price_per_million };
                            happen(&mut account, AccountEvent::AllowanceChanged(changed));
                        }
                    }
                    None if !granted.is_zero() => {
                        let granted = AccountGranted {
                            at: now,
                            bucket: BucketId(account.last_bucket + 1),
                            price_per_million: terms.price(&meter, source),
                            meter,
                            source,
                            amount: granted,
                            from: month.start(),
                            until: Some(month.end()),
                            plan: Some(plan),
                            reason: None,
                        };
                        happen(&mut account, AccountEvent::Granted(granted));
                    }
                    None => {}
                }
            }
        }
        (account, events)
    }

    /// Returns the events of a command, where everything that follows from the time alone has happened.
    fn act(&self, command: AccountCommand, now: Timestamp, hold: HoldId) -> Result<Vec<AccountEvent>, AccountError> {
        let AccountCommand { terms, by, command } = command;
        match command {
            AccountAction::Reserve(ReserveUsage { meter, amount, seconds, kind, model }) => {
                self.within_concurrency(&terms)?;
                let draws = self.draw(&meter, amount, now, &terms)?;
                let little_left = self.little_left(&meter, amount, now, &terms);
                let reserved = AccountReserved {
                    at: now,
                    hold,
                    meter,
                    amount,
                    draws,
                    deadline: after(now, seconds.unwrap_or(HOLD_SECONDS)),
                    used_for: UsedFor { kind, model },
                    by,
                };
                Ok([AccountEvent::Reserved(reserved)].into_iter().chain(little_left).collect())
            }
            AccountAction::Charge(ChargeUsage { meter, amount, kind, model }) => {
                let draws = self.draw(&meter, amount, now, &terms)?;
                let little_left = self.little_left(&meter, amount, now, &terms);
                let settled = AccountSettled {
                    at: now,
                    hold: None,
                    reserved_at: now,
                    meter,
                    amount,
                    draws,
                    returned: Amount::ZERO,
                    used_for: UsedFor { kind, model },
                    by,
                };
                Ok([AccountEvent::Settled(settled)].into_iter().chain(little_left).collect())
            }
            AccountAction::Extend(ExtendHold { hold: id, amount, seconds }) => {
                let hold = self.open(id)?;
                let amount = amount.unwrap_or_default();
                let deadline = seconds.map_or(hold.deadline, |seconds| hold.deadline.max(after(now, seconds)));
                if deadline > after(hold.reserved_at, MAX_HOLD_SECONDS) {
                    return Err(AccountError::TooLong { reserved_at: hold.reserved_at });
                }
                if amount.is_zero() && deadline == hold.deadline {
                    return Ok(Vec::new());
                }
                let draws = if amount.is_zero() { Vec::new() } else { self.draw(&hold.meter, amount, now, &terms)? };
                let little_left = self.little_left(&hold.meter, amount, now, &terms);
                let extended = AccountExtended { at: now, hold: id, amount, draws, deadline };
                Ok([AccountEvent::Extended(extended)].into_iter().chain(little_left).collect())
            }
            AccountAction::Settle(SettleHold { hold: id, amount }) => {
                let hold = self.open(id)?;
                let held = hold.amount();
                let Some(returned) = held.minus(amount) else {
                    return Err(AccountError::MoreThanHeld { held, asked: amount });
                };
                Ok(vec![AccountEvent::Settled(AccountSettled {
                    at: now,
                    hold: Some(id),
                    reserved_at: hold.reserved_at,
                    meter: hold.meter.clone(),
                    amount,
                    draws: first_of(&hold.draws, amount),
                    returned,
                    used_for: hold.used_for.clone(),
                    by: hold.by.clone(),
                })])
            }
            AccountAction::Release(ReleaseHold { hold: id }) => {
                let hold = self.open(id)?;
                let (meter, amount) = (hold.meter.clone(), hold.amount());
                Ok(vec![AccountEvent::Released(AccountReleased { at: now, hold: id, meter, amount })])
            }
            AccountAction::Credit(CreditAccount { meter, amount, expires_at, reason }) => {
                self.known(&meter, &terms)?;
                if self.buckets.len() >= MAX_BUCKETS {
                    return Err(AccountError::TooManyBuckets);
                }
                if expires_at.is_some_and(|end| end <= now) {
                    let mut faults = Faults::default();
                    faults.add("/expires_at", "in_the_past", format!("must be later than now, {now}"));
                    return Err(AccountError::Invalid(faults.into_vec()));
                }
                if self.granted(&meter).plus(amount).is_none() {
                    return Err(AccountError::TooMuch { meter });
                }
                Ok(vec![AccountEvent::Granted(AccountGranted {
                    at: now,
                    bucket: BucketId(self.last_bucket + 1),
                    meter,
                    source: BucketSource::Grant,
                    amount,
                    from: now,
                    until: expires_at,
                    plan: None,
                    price_per_million: None,
                    reason: Some(reason),
                })])
            }
            AccountAction::ChangeTopUp { command, currency } => self.change_top_up(command, currency, now, &terms),
            AccountAction::RequestTopUp(RequestTopUp { meter }) => {
                self.known(&meter, &terms)?;
                Ok(self.top_up_due(&meter, Amount::ZERO, now, &terms).into_iter().collect())
            }
            AccountAction::PayTopUp(command) => self.pay_top_up(command, now),
            AccountAction::DeclineTopUp(command) => self.decline_top_up(command, now),
        }
    }

    fn open(&self, id: HoldId) -> Result<&Hold, AccountError> {
        self.holds.get(&id).ok_or(AccountError::HoldNotOpen(id))
    }

    fn known(&self, meter: &MeterName, terms: &Terms) -> Result<(), AccountError> {
        let known = self.meters(terms);
        if known.contains(meter) {
            return Ok(());
        }
        Err(AccountError::UnknownMeter { meter: meter.clone(), known: known.into_iter().cloned().collect() })
    }

    /// Returns what was granted of a meter in all open buckets.
    fn granted(&self, meter: &MeterName) -> Amount {
        let of_meter = self.buckets.values().filter(|bucket| bucket.meter == *meter);
        of_meter.map(|bucket| bucket.granted).fold(Amount::ZERO, plus)
    }

    fn within_concurrency(&self, terms: &Terms) -> Result<(), AccountError> {
        let most = terms.concurrency.map_or(MAX_HOLDS, |limit| (limit as usize).min(MAX_HOLDS));
        if self.holds.len() < most {
            return Ok(());
        }
        let free_at = self.holds.values().map(|hold| hold.deadline).min().unwrap_or(self.at);
        Err(AccountError::Concurrency { most, free_at })
    }

    /// Returns the parts of an amount by bucket, in the order of use, or why it may not be used.
    fn draw(
        &self,
        meter: &MeterName,
        amount: Amount,
        now: Timestamp,
        terms: &Terms,
    ) -> Result<Vec<Draw>, AccountError> {
        if let Some(end) = terms.trial_ends_at.filter(|end| *end <= now) {
            return Err(AccountError::BillingRequired { plan: terms.plan.clone(), since: end });
        }
        self.known(meter, terms)?;
        let month_ends = Month::of(now).end();
        if let Some(cap) = terms.meters.get(meter).and_then(|terms| terms.cap) {
            let used = self.used_in_month(meter, now);
            if used.plus(amount).is_none_or(|used| used > cap) {
                let (meter, required) = (meter.clone(), amount);
                return Err(AccountError::CapReached { meter, required, cap, used, resets_at: month_ends });
            }
        }
        let mut usable: Vec<(BucketId, &Bucket)> = self
            .buckets
            .iter()
            .map(|(id, bucket)| (*id, bucket))
            .filter(|(_, bucket)| bucket.is_usable(meter, now))
            .collect();
        usable.sort_by_key(|(id, bucket)| (bucket.order(), *id));
        let (mut missing, mut draws) = (amount, Vec::new());
        for (bucket, known) in usable {
            let part = known.left().min(missing);
            if !part.is_zero() {
                draws.push(Draw { bucket, amount: part });
                missing = missing.less(part);
            }
        }
        if missing.is_zero() {
            return Ok(draws);
        }
        let monthly = [BucketSource::Allowance, BucketSource::Overage].map(|source| terms.monthly(meter, source, now));
        Err(AccountError::Insufficient {
            meter: meter.clone(),
            required: amount,
            available: amount.less(missing),
            resets_at: monthly.iter().any(|amount| !amount.is_zero()).then_some(month_ends),
        })
    }

    /// Returns the warning and the top-up that are due when this amount is not available any more.
    fn little_left(
        &self,
        meter: &MeterName,
        taken: Amount,
        now: Timestamp,
        terms: &Terms,
    ) -> impl Iterator<Item = AccountEvent> + use<> {
        self.warning(meter, taken, now).into_iter().chain(self.top_up_due(meter, taken, now, terms))
    }

    /// Returns the warning that is due when this amount is not available any more.
    fn warning(&self, meter: &MeterName, taken: Amount, now: Timestamp) -> Option<AccountEvent> {
        let MeterBalance { available, granted, .. } = self.balance(meter, now);
        let available = available.less(taken);
        let warned = self.warned.get(meter).copied().unwrap_or(u8::MAX);
        let is_below =
            |percent: u8| u128::from(available.micros()) * 100 <= u128::from(granted.micros()) * u128::from(percent);
        // Nothing is below a part of nothing.
        let crossed =
            THRESHOLDS.into_iter().filter(|percent| *percent < warned && !granted.is_zero() && is_below(*percent));
        let percent = crossed.min()?;
        let meter = meter.clone();
        Some(AccountEvent::ThresholdCrossed(AccountThresholdCrossed { at: now, meter, percent, available, granted }))
    }

    /// Forgets warnings of thresholds that what is available is well above, from the lowest one on.
    fn rearm(&mut self, meter: &MeterName) {
        let Some(warned) = self.warned.get(meter).copied() else { return };
        let MeterBalance { available, granted, .. } = self.balance(meter, self.at);
        let is_above = |percent: u8| {
            let least = u128::from(granted.micros()) * (u128::from(percent) + REARMED);
            u128::from(available.micros()) * 100 >= least
        };
        let mut known = THRESHOLDS.into_iter().rev().filter(|percent| *percent >= warned);
        match known.find(|percent| !is_above(*percent)) {
            Some(percent) => self.warned.insert(meter.clone(), percent),
            None => self.warned.remove(meter),
        };
    }

    fn change(&mut self, draws: &[Draw], mut change: impl FnMut(&mut Bucket, Amount)) {
        for draw in draws {
            if let Some(bucket) = self.buckets.get_mut(&draw.bucket) {
                change(bucket, draw.amount);
            }
        }
    }

    /// Counts usage in the month of `at`, which is the moment of its reservation.
    fn count(&mut self, meter: &MeterName, at: Timestamp, change: impl FnOnce(&mut MonthlyUse)) {
        let month = Month::of(at);
        let new = MonthlyUse { month, held: Amount::ZERO, spent: Amount::ZERO };
        let used = self.months.entry(meter.clone()).or_insert_with(|| new.clone());
        if used.month < month {
            *used = new;
        }
        if used.month == month {
            change(used);
        }
    }

    /// Adds to what was used in the month of `at`, which is the moment of its reservation.
    fn bill(&mut self, draws: &[Draw], at: Timestamp) {
        let month = Month::of(at);
        if !self.used.contains_key(&month) {
            let is_kept = |month: &Month, days| month.end().unix_ms() > self.at.unix_ms() - days * DAY_MS;
            self.used.retain(|month, uses| {
                if !is_kept(month, FREE_USAGE_DAYS) {
                    uses.retain(|used| used.price_per_million.is_some());
                }
                is_kept(month, USAGE_DAYS) && !uses.is_empty()
            });
        }
        for Draw { bucket, amount } in draws {
            let Some(Bucket { meter, source, price_per_million, .. }) = self.buckets.get(bucket) else { continue };
            let uses = self.used.entry(month).or_default();
            let is_same = |used: &&mut MeteredUse| {
                (&used.meter, used.source, used.price_per_million) == (meter, *source, *price_per_million)
            };
            match uses.iter_mut().find(is_same) {
                Some(used) => used.amount = plus(used.amount, *amount),
                None => uses.push(MeteredUse {
                    meter: meter.clone(),
                    source: *source,
                    price_per_million: *price_per_million,
                    amount: *amount,
                }),
            }
        }
    }

    /// Ends a hold, and returns what was held.
    fn end(&mut self, id: HoldId) {
        let Some(hold) = self.holds.remove(&id) else { return };
        self.change(&hold.draws, |bucket, part| bucket.held = bucket.held.less(part));
        let amount = hold.amount();
        self.count(&hold.meter, hold.reserved_at, |used| used.held = used.held.less(amount));
    }
}

fn plus(one: Amount, other: Amount) -> Amount {
    one.plus(other).unwrap_or(Amount::MAX)
}

fn sum(draws: &[Draw]) -> Amount {
    draws.iter().fold(Amount::ZERO, |sum, draw| plus(sum, draw.amount))
}

/// Returns the first parts, as far as they are the amount.
fn first_of(draws: &[Draw], amount: Amount) -> Vec<Draw> {
    let mut missing = amount;
    let taken = draws.iter().map(|draw| {
        let part = draw.amount.min(missing);
        missing = missing.less(part);
        Draw { bucket: draw.bucket, amount: part }
    });
    taken.filter(|draw| !draw.amount.is_zero()).collect()
}

fn after(moment: Timestamp, seconds: u32) -> Timestamp {
    Timestamp::from_unix_ms(moment.unix_ms() + i64::from(seconds) * 1_000)
}

impl Aggregate for Account {
    type Command = AccountCommand;
    type Event = AccountEvent;
    type Error = AccountError;
    const TYPE: AggregateType = AggregateType::Account;
    const SHAPE: u16 = 3;
    // Commands of several callers share a commit, of which only the commands say which are there.
    const KEEPS_EVERY_COMMAND: bool = true;

    fn apply(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::Granted(event) => {
                self.at = event.at;
                self.last_bucket = event.bucket.0;
                let bucket = Bucket {
                    meter: event.meter.clone(),
                    source: event.source,
                    granted: event.amount,
                    held: Amount::ZERO,
                    spent: Amount::ZERO,
                    price_per_million: event.price_per_million,
                    from: event.from,
                    until: event.until,
                };
                self.buckets.insert(event.bucket, bucket);
                self.rearm(&event.meter);
            }
            AccountEvent::AllowanceChanged(event) => {
                self.at = event.at;
                if let Some(bucket) = self.buckets.get_mut(&event.bucket) {
                    bucket.granted = event.amount;
                    bucket.price_per_million = event.price_per_million;
                }
                self.rearm(&event.meter);
            }
            AccountEvent::BucketClosed(event) => {
                self.at = event.at;
                self.buckets.remove(&event.bucket);
            }
            AccountEvent::Reserved(event) => {
                self.at = event.at;
                self.change(&event.draws, |bucket, part| bucket.held = plus(bucket.held, part));
                self.count(&event.meter, event.at, |used| used.held = plus(used.held, event.amount));
                let hold = Hold {
                    meter: event.meter.clone(),
                    draws: event.draws.clone(),
                    reserved_at: event.at,
                    deadline: event.deadline,
                    used_for: event.used_for.clone(),
                    by: event.by.clone(),
                };
                self.holds.insert(event.hold, hold);
            }
            AccountEvent::Extended(event) => {
                self.at = event.at;
                self.change(&event.draws, |bucket, part| bucket.held = plus(bucket.held, part));
                let Some(hold) = self.holds.get_mut(&event.hold) else { return };
                hold.deadline = event.deadline;
                for draw in &event.draws {
                    match hold.draws.iter_mut().find(|known| known.bucket == draw.bucket) {
                        Some(known) => known.amount = plus(known.amount, draw.amount),
                        None => hold.draws.push(*draw),
                    }
                }
                let (meter, reserved_at) = (hold.meter.clone(), hold.reserved_at);
                self.count(&meter, reserved_at, |used| used.held = plus(used.held, event.amount));
            }
            AccountEvent::Settled(event) => {
                self.at = event.at;
                if let Some(hold) = event.hold {
                    self.end(hold);
                }
                self.change(&event.draws, |bucket, part| bucket.spent = plus(bucket.spent, part));
                self.bill(&event.draws, event.reserved_at);
                self.count(&event.meter, event.reserved_at, |used| used.spent = plus(used.spent, event.amount));
            }
            AccountEvent::Released(event) => {
                self.at = event.at;
                self.end(event.hold);
            }
            AccountEvent::HoldsExpired(event) => {
                self.at = event.at;
                for expired in &event.holds {
                    self.end(expired.hold);
                }
            }
            AccountEvent::ThresholdCrossed(event) => {
                self.at = event.at;
                self.warned.insert(event.meter.clone(), event.percent);
            }
            AccountEvent::TopUpChanged(_)
            | AccountEvent::TopUpRequested(_)
            | AccountEvent::TopUpPaid(_)
            | AccountEvent::TopUpDeclined(_) => self.apply_top_up(event),
        }
    }

    fn decide(&self, command: AccountCommand, context: &DecisionContext) -> Result<Vec<AccountEvent>, AccountError> {
        command.command.check()?;
        // Clocks of processes differ; the account's never goes back.
        let now = context.now.max(self.at);
        let (account, mut events) = self.brought_up_to(now, &command.terms);
        let own = account.act(command, now, HoldId::derive(context.command_id))?;
        if own.is_empty() {
            return Ok(Vec::new());
        }
        events.extend(own);
        Ok(events)
    }

    fn wrap(event: AccountEvent) -> Event {
        Event::Account(event)
    }

    fn event_of(event: &Event) -> Option<&AccountEvent> {
        if let Event::Account(event) = event { Some(event) } else { None }
    }
}

impl AccountAction {
    /// Refuses what is malformed, whatever the account has.
    pub fn check(&self) -> Result<(), AccountError> {
        let mut faults = Faults::default();
        let mut used_for = |model: &Option<String>| {
            if let Some(model) = model {
                faults.length("/model", model, 1, MAX_MODEL);
                faults.lines("/model", model);
            }
        };
        match self {
            Self::Reserve(ReserveUsage { model, seconds, .. }) => {
                used_for(model);
                seconds_in_range(*seconds, &mut faults);
            }
            Self::Charge(ChargeUsage { model, amount, .. }) => {
                used_for(model);
                not_zero(*amount, &mut faults);
            }
            Self::Extend(ExtendHold { amount, seconds, .. }) => {
                seconds_in_range(*seconds, &mut faults);
                if amount.is_none() && seconds.is_none() {
                    faults.add("/amount", "required", "give an amount or seconds");
                }
            }
            Self::Credit(CreditAccount { amount, reason, .. }) => {
                not_zero(*amount, &mut faults);
                faults.reason("/reason", reason);
            }
            Self::ChangeTopUp { command: ChangeTopUp { rule, .. }, .. } => {
                if let Some(rule) = rule {
                    top_up::check_rule(rule, &mut faults);
                }
            }
            Self::PayTopUp(PayTopUp { payment, .. }) => faults.name_elsewhere("/payment", payment),
            Self::DeclineTopUp(DeclineTopUp { reason, .. }) => faults.reason("/reason", reason),
            Self::Settle(_) | Self::Release(_) | Self::RequestTopUp(_) => {}
        }
        faults.none_or(AccountError::Invalid)
    }
}

fn seconds_in_range(seconds: Option<u32>, faults: &mut Faults) {
    if seconds.is_some_and(|seconds| !(1..=MAX_HOLD_SECONDS).contains(&seconds)) {
        faults.add("/seconds", "out_of_range", format!("must be 1 to {MAX_HOLD_SECONDS}"));
    }
}

fn not_zero(amount: Amount, faults: &mut Faults) {
    if amount.is_zero() {
        faults.add("/amount", "out_of_range", "must be more than 0");
    }
}
