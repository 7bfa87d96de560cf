//! Top-ups: when little is left, more is bought by itself, one top-up at a time, by a rule of the organization's own. The
//! request is decided in the commit after which little is left; what was paid for is granted in the commit that says so.

use orgstream_events::{
    AccountEvent, AccountGranted, AccountTopUpChanged, AccountTopUpDeclined, AccountTopUpPaid, AccountTopUpRequested,
    Amount, BucketId, BucketSource, Currency, MeterName, Month, Timestamp, TopUpId, TopUpRule,
};
use serde::{Deserialize, Serialize};

use super::{Account, AccountError, Bucket, ChangeTopUp, DeclineTopUp, MAX_BUCKETS, PayTopUp, Terms, plus};
use crate::{Aggregate, text::Faults};

/// The pause after a top-up that was declined, in milliseconds. It doubles with each one.
const PAUSE_MS: i64 = 3_600_000;
/// The most doublings of it: a bit more than five days.
const MAX_DOUBLINGS: u32 = 7;
const MILLION: u64 = 1_000_000;
/// The longest reason of the payment provider, in characters. What is longer is cut where it is received.
pub const MAX_DECLINE_REASON: usize = 200;

/// The top-ups of one meter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUps {
    /// The rule; none when nothing is bought by itself.
    pub rule: Option<TopUpRule>,
    /// The currency of the prices when the rule was made.
    pub currency: Currency,
    /// The one that is to be paid.
    pub open: Option<OpenTopUp>,
    /// The first moment at which another one may be requested, after one that was declined.
    pub retry_at: Option<Timestamp>,
    /// The number of those that were declined since the last that was paid, or another rule.
    declined: u32,
    /// When the last one was declined.
    declined_at: Option<Timestamp>,
    /// The month of the last request, and what was requested in it and not declined.
    month: Option<(Month, Amount)>,
}

/// A top-up that is to be paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTopUp {
    /// Its number.
    pub id: TopUpId,
    /// The amount.
    pub amount: Amount,
    /// The money for all of it.
    pub price: Amount,
    /// Its currency.
    pub currency: Currency,
    /// When it was requested.
    pub requested_at: Timestamp,
}

impl TopUps {
    fn requested_in(&self, month: Month) -> Amount {
        self.month.filter(|(known, _)| *known == month).map_or(Amount::ZERO, |(_, amount)| amount)
    }
}

impl Account {
    /// Returns the top-ups of a meter.
    pub fn top_ups(&self, meter: &MeterName) -> Option<&TopUps> {
        self.top_ups.get(meter)
    }

    /// Returns the top-ups that are to be paid, by meter.
    pub fn open_top_ups(&self) -> impl Iterator<Item = (&MeterName, &OpenTopUp)> {
        self.top_ups.iter().filter_map(|(meter, top_ups)| Some((meter, top_ups.open.as_ref()?)))
    }

    /// Whether more of a meter is bought by itself.
    pub fn has_top_ups(&self) -> bool {
        self.top_ups.values().any(|top_ups| top_ups.rule.is_some())
    }

    /// Returns a meter of which a top-up is due, though no command has requested it: a pause has ended, or a month.
    pub fn meter_to_top_up(&self, now: Timestamp, terms: &Terms) -> Option<&MeterName> {
        self.top_ups.keys().find(|meter| self.top_up_due(meter, Amount::ZERO, now, terms).is_some())
    }

    /// Returns the request that is due when this amount is not available any more.
    pub(super) fn top_up_due(
        &self,
        meter: &MeterName,
        taken: Amount,
        now: Timestamp,
        terms: &Terms,
    ) -> Option<AccountEvent> {
        let top_ups = self.top_ups.get(meter)?;
        let rule = top_ups.rule.filter(|_| top_ups.open.is_none() && top_ups.retry_at.is_none_or(|at| at <= now))?;
        let gap = rule.below.minus(self.paid_for(meter, now).less(taken)).filter(|gap| !gap.is_zero())?;
        let money = terms.meters.get(meter)?.top_up_price_per_million;
        if money.is_zero() || self.buckets.len() >= MAX_BUCKETS || terms.require_billing(now) {
            return None;
        }
        let one = rule.amount.micros();
        let most = rule
            .monthly_limit
            .map_or(u64::MAX, |limit| limit.less(top_ups.requested_in(Month::of(now))).micros() / one.max(1));
        // However little is missing, it costs something.
        let worth = (least_price().micros() * MILLION * MILLION).div_ceil(money.micros().max(1));
        let times = gap.micros().max(worth).div_ceil(one.max(1)).min(most);
        let amount = Amount::from_micros(one.checked_mul(times)?).filter(|amount| !amount.is_zero())?;
        // What is granted of a meter is one amount, whatever it is granted for.
        self.granted(meter).plus(amount)?;
        let price = amount.priced(money).filter(|price| *price >= least_price())?;
        Some(AccountEvent::TopUpRequested(AccountTopUpRequested {
            at: now,
            top_up: TopUpId(self.last_top_up.checked_add(1)?),
            meter: meter.clone(),
            amount,
            price,
            currency: top_ups.currency.clone(),
        }))
    }

    /// Returns what is available and need not be paid for afterwards.
    fn paid_for(&self, meter: &MeterName, now: Timestamp) -> Amount {
        let usable = self.buckets.values().filter(|bucket| bucket.is_usable(meter, now));
        let before = usable.filter(|bucket| bucket.source != BucketSource::Overage);
        before.map(Bucket::left).fold(Amount::ZERO, plus)
    }

    /// Returns the events of a change of the rule, and of the request that it leads to.
    pub(super) fn change_top_up(
        &self,
        command: ChangeTopUp,
        currency: Currency,
        now: Timestamp,
        terms: &Terms,
    ) -> Result<Vec<AccountEvent>, AccountError> {
        let ChangeTopUp { meter, rule } = command;
        self.known(&meter, terms)?;
        let is_sold = terms.meters.get(&meter).is_some_and(|terms| !terms.top_up_price_per_million.is_zero());
        if rule.is_some() && !is_sold {
            return Err(AccountError::NotSold { meter, plan: terms.plan.clone() });
        }
        let known = self.top_ups.get(&meter);
        let is_same = known.map_or(rule.is_none(), |known| known.rule == rule && known.currency == currency);
        if is_same {
            return Ok(Vec::new());
        }
        let changed = AccountEvent::TopUpChanged(AccountTopUpChanged { at: now, meter: meter.clone(), rule, currency });
        let mut account = self.clone();
        account.apply(&changed);
        let requested = account.top_up_due(&meter, Amount::ZERO, now, terms);
        Ok([changed].into_iter().chain(requested).collect())
    }

    /// Returns the events of a payment: it was paid, and what was bought is granted.
    pub(super) fn pay_top_up(&self, command: PayTopUp, now: Timestamp) -> Result<Vec<AccountEvent>, AccountError> {
        let PayTopUp { top_up, payment } = command;
        let (meter, open) = self.open_top_up(top_up)?;
        let paid = AccountTopUpPaid { at: now, top_up, meter: meter.clone(), payment };
        let granted = AccountGranted {
            at: now,
            bucket: BucketId(self.last_bucket + 1),
            meter,
            source: BucketSource::Purchase,
            amount: open.amount,
            from: now,
            until: None,
            plan: None,
            price_per_million: None,
            reason: None,
        };
        Ok(vec![AccountEvent::TopUpPaid(paid), AccountEvent::Granted(granted)])
    }

    /// Returns the event of a refusal to pay.
    pub(super) fn decline_top_up(
        &self,
        command: DeclineTopUp,
        now: Timestamp,
    ) -> Result<Vec<AccountEvent>, AccountError> {
        let DeclineTopUp { top_up, reason } = command;
        let (meter, _) = self.open_top_up(top_up)?;
        let declined = self.top_ups.get(&meter).map_or(0, |top_ups| top_ups.declined);
        let retry_at = after_a_decline(now, declined);
        let declined = AccountTopUpDeclined { at: now, top_up, meter, reason, retry_at };
        Ok(vec![AccountEvent::TopUpDeclined(declined)])
    }

    fn open_top_up(&self, id: TopUpId) -> Result<(MeterName, OpenTopUp), AccountError> {
        let mut open = self.open_top_ups().filter(|(_, open)| open.id == id);
        open.next().map(|(meter, open)| (meter.clone(), open.clone())).ok_or(AccountError::TopUpNotOpen(id))
    }

    pub(super) fn apply_top_up(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::TopUpChanged(AccountTopUpChanged { at, meter, rule, currency }) => {
                self.at = *at;
                let top_ups = self.top_ups.entry(meter.clone()).or_default();
                (top_ups.rule, top_ups.currency, top_ups.declined) = (*rule, currency.clone(), 0);
                // However often the rule is changed, there is an hour between two attempts.
                top_ups.retry_at = top_ups
                    .declined_at
                    .map(|declined_at| after_a_decline(declined_at, 0))
                    .filter(|retry_at| at < retry_at);
            }
            AccountEvent::TopUpRequested(AccountTopUpRequested { at, top_up, meter, amount, price, currency }) => {
                (self.at, self.last_top_up) = (*at, top_up.0);
                let top_ups = self.top_ups.entry(meter.clone()).or_default();
                let month = Month::of(*at);
                let requested = top_ups.requested_in(month).plus(*amount).unwrap_or(Amount::MAX);
                top_ups.month = Some((month, requested));
                let currency = currency.clone();
                top_ups.open =
                    Some(OpenTopUp { id: *top_up, amount: *amount, price: *price, currency, requested_at: *at });
            }
            AccountEvent::TopUpPaid(AccountTopUpPaid { at, meter, .. }) => {
                self.at = *at;
                let top_ups = self.top_ups.entry(meter.clone()).or_default();
                (top_ups.open, top_ups.retry_at, top_ups.declined, top_ups.declined_at) = (None, None, 0, None);
            }
            AccountEvent::TopUpDeclined(AccountTopUpDeclined { at, meter, retry_at, .. }) => {
                self.at = *at;
                let top_ups = self.top_ups.entry(meter.clone()).or_default();
                let open = top_ups.open.take();
                (top_ups.retry_at, top_ups.declined_at) = (Some(*retry_at), Some(*at));
                top_ups.declined = top_ups.declined.saturating_add(1);
                let requested = open.map(|open| (Month::of(open.requested_at), open.amount));
                if let (Some((month, amount)), Some((known, sum))) = (requested, &mut top_ups.month)
                    && month == *known
                {
                    *sum = sum.less(amount);
                }
            }
            _ => {}
        }
    }
}

/// Returns the least price of a top-up: what a provider collects must be worth more than collecting it.
fn least_price() -> Amount {
    Amount::units(1)
}

/// Returns the first moment of the next attempt after one that was declined at a moment, and so many before it.
fn after_a_decline(at: Timestamp, before: u32) -> Timestamp {
    Timestamp::from_unix_ms(at.unix_ms() + (PAUSE_MS << before.min(MAX_DOUBLINGS)))
}

/// Notes what is wrong with a rule, whatever the account has.
pub(super) fn check_rule(rule: &TopUpRule, faults: &mut Faults) {
    let TopUpRule { below, amount, monthly_limit } = rule;
    for (pointer, amount) in [("/rule/below", below), ("/rule/amount", amount)] {
        if amount.is_zero() {
            faults.add(pointer, "out_of_range", "must be more than 0");
        }
    }
    if monthly_limit.is_some_and(|limit| limit < *amount) {
        faults.add("/rule/monthly_limit", "out_of_range", "must be at least the amount that is bought");
    }
}
