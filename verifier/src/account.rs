//! An account, computed again from its events alone: every balance, and whether each event follows from those before it.
//!
//! It shares no code with what decided the events: a verifier that folds with the code of the product would repeat its faults.

use std::{collections::BTreeMap, fmt};

use orgstream_events::{
    AccountEvent, AccountSettled, Amount, AmountSum, BucketId, BucketSource, Draw, HoldId, MeterName, Month, Timestamp,
    TopUpId,
};
use serde::Serialize;

/// An account as its events say it is.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    at: Option<Timestamp>,
    buckets: BTreeMap<BucketId, Bucket>,
    holds: BTreeMap<HoldId, Hold>,
    sums: BTreeMap<MeterName, Sums>,
    months: BTreeMap<(MeterName, Month), AmountSum>,
    /// What is to be paid.
    top_ups: BTreeMap<TopUpId, (MeterName, Amount)>,
    /// What was paid and is to be granted next.
    bought: Option<(MeterName, Amount)>,
}

#[derive(Debug, Clone)]
struct Bucket {
    meter: MeterName,
    granted: Amount,
    held: Amount,
    spent: Amount,
    from: Timestamp,
    until: Option<Timestamp>,
}

impl Bucket {
    fn left(&self) -> Amount {
        self.granted.less(self.held).less(self.spent)
    }
}

#[derive(Debug, Clone)]
struct Hold {
    meter: MeterName,
    parts: BTreeMap<BucketId, Amount>,
    reserved_at: Timestamp,
    deadline: Timestamp,
}

impl Hold {
    fn amount(&self) -> AmountSum {
        sum(self.parts.values().copied())
    }
}

/// What ever happened to one meter.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    granted: AmountSum,
    withdrawn: AmountSum,
    used: AmountSum,
    lapsed: AmountSum,
}

/// The balance of one meter: `granted = used + lapsed + withdrawn + held + left`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// The meter.
    pub meter: MeterName,
    /// All that was ever granted.
    pub granted: AmountSum,
    /// What of that was used.
    pub used: AmountSum,
    /// What of that lapsed at the end of a period.
    pub lapsed: AmountSum,
    /// What of that a smaller plan took back.
    pub withdrawn: AmountSum,
    /// What open holds have.
    pub held: AmountSum,
    /// What is left in open buckets.
    pub left: AmountSum,
    /// What was used in each month (UTC), by the moment of its reservation.
    pub months: BTreeMap<String, AmountSum>,
}

/// A change of the balance of a meter: what is held and left of it together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When it took effect.
    pub at: Timestamp,
    /// The meter.
    pub meter: MeterName,
    /// What happened: `granted`, `increased`, `withdrawn`, `lapsed` or `used`.
    pub what: &'static str,
    /// The source of the amount, where it is granted.
    pub source: Option<BucketSource>,
    /// The amount, which is added or taken away.
    pub amount: AmountSum,
    /// Whether it is added.
    pub added: bool,
    /// The balance afterwards.
    pub balance: AmountSum,
    /// The kind of record that it was used for, as the caller said.
    pub kind: Option<String>,
    /// The model that it was used for, as the caller said.
    pub model: Option<String>,
    /// The principal that used it.
    pub by: Option<String>,
}

/// The reason why an event does not follow from those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn fault<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault(what.into()))
}

fn sum(amounts: impl Iterator<Item = Amount>) -> AmountSum {
    amounts.fold(AmountSum::default(), |sum, amount| sum.plus(amount.into()))
}

impl Ledger {
    /// Takes in the next event, and returns the change of a balance, if it is one. After a fault the account is as the event
    /// says as far as it can be.
    pub fn apply(&mut self, event: &AccountEvent) -> Result<Option<Line>, Fault> {
        if !matches!(event, AccountEvent::Granted(_)) && self.bought.take().is_some() {
            return fault("what was bought is not granted");
        }
        match event {
            AccountEvent::Granted(event) => {
                let meter = event.meter.clone();
                let (granted, from, until) = (event.amount, event.from, event.until);
                let (held, spent) = (Amount::ZERO, Amount::ZERO);
                let bucket = Bucket { meter: meter.clone(), granted, held, spent, from, until };
                let had = self.buckets.insert(event.bucket, bucket);
                self.sums_of(&meter, |sums| sums.granted = sums.granted.plus(granted.into()));
                let line = self.line(event.at, &meter, ("granted", true), granted.into());
                self.pass(event.at)?;
                if had.is_some() {
                    return fault(format!("bucket {} was granted twice", event.bucket.0));
                }
                if event.source == BucketSource::Purchase && self.bought.take() != Some((meter, granted)) {
                    return fault(format!("bucket {} is granted as bought, and was not paid", event.bucket.0));
                }
                Ok(Some(Line { source: Some(event.source), ..line }))
            }
            AccountEvent::AllowanceChanged(event) => {
                self.pass(event.at)?;
                let bucket = self.bucket(event.bucket)?;
                let before = std::mem::replace(&mut bucket.granted, event.amount);
                let taken = sum([bucket.held, bucket.spent].into_iter());
                let (more, less) = (event.amount.less(before), before.less(event.amount));
                let meter = bucket.meter.clone();
                self.sums_of(&meter, |sums| {
                    sums.granted = sums.granted.plus(more.into());
                    sums.withdrawn = sums.withdrawn.plus(less.into());
                });
                if AmountSum::from(event.amount) < taken {
                    return fault("less is granted than is used and held");
                }
                let (change, amount) =
                    if more.is_zero() { (("withdrawn", false), less) } else { (("increased", true), more) };
                Ok(Some(self.line(event.at, &meter, change, amount.into())))
            }
            AccountEvent::BucketClosed(event) => {
                self.pass(event.at)?;
                let Some(bucket) = self.buckets.remove(&event.bucket) else {
                    return fault(format!("bucket {} is closed, and is not open", event.bucket.0));
                };
                let lapsed = bucket.left();
                self.sums_of(&bucket.meter, |sums| sums.lapsed = sums.lapsed.plus(lapsed.into()));
                if !bucket.held.is_zero() || lapsed != event.lapsed {
                    return fault(format!("{} lapse, and {lapsed} are left and {} held", event.lapsed, bucket.held));
                }
                if !lapsed.is_zero() && bucket.until.is_none_or(|until| event.at < until) {
                    return fault(format!("bucket {} lapses before its end", event.bucket.0));
                }
                let line = self.line(event.at, &bucket.meter, ("lapsed", false), lapsed.into());
                Ok((!lapsed.is_zero()).then_some(line))
            }
            AccountEvent::Reserved(event) => {
                self.pass(event.at)?;
                let parts = self.hold(&event.meter, event.amount, &event.draws, event.at)?;
                let (meter, reserved_at, deadline) = (event.meter.clone(), event.at, event.deadline);
                if self.holds.insert(event.hold, Hold { meter, parts, reserved_at, deadline }).is_some() {
                    return fault(format!("{} was reserved twice", event.hold));
                }
                Ok(None)
            }
            AccountEvent::Extended(event) => {
                self.pass(event.at)?;
                let Some(meter) = self.holds.get(&event.hold).map(|hold| hold.meter.clone()) else {
                    return fault(format!("{} is not open", event.hold));
                };
                let parts = self.hold(&meter, event.amount, &event.draws, event.at)?;
                if let Some(hold) = self.holds.get_mut(&event.hold) {
                    hold.deadline = event.deadline;
                    for (bucket, part) in parts {
                        let known = hold.parts.entry(bucket).or_default();
                        *known = known.plus(part).unwrap_or(Amount::MAX);
                    }
                }
                Ok(None)
            }
            AccountEvent::Settled(event) => self.settle(event).map(Some),
            AccountEvent::Released(event) => {
                self.pass(event.at)?;
                self.release(event.hold, event.amount).map(|_| None)
            }
            AccountEvent::HoldsExpired(event) => {
                self.pass(event.at)?;
                for expired in &event.holds {
                    let hold = self.release(expired.hold, expired.amount)?;
                    if hold.deadline > event.at {
                        return fault(format!("{} ends before its deadline, {}", expired.hold, hold.deadline));
                    }
                }
                Ok(None)
            }
            AccountEvent::ThresholdCrossed(event) => self.pass(event.at).map(|()| None),
            AccountEvent::TopUpChanged(event) => self.pass(event.at).map(|()| None),
            AccountEvent::TopUpRequested(event) => {
                self.pass(event.at)?;
                let asked = (event.meter.clone(), event.amount);
                match self.top_ups.insert(event.top_up, asked) {
                    Some(_) => fault(format!("top-up {} was requested twice", event.top_up.0)),
                    None => Ok(None),
                }
            }
            AccountEvent::TopUpPaid(event) => {
                self.pass(event.at)?;
                self.bought = Some(self.end_top_up(event.top_up)?);
                Ok(None)
            }
            AccountEvent::TopUpDeclined(event) => {
                self.pass(event.at)?;
                self.end_top_up(event.top_up).map(|_| None)
            }
        }
    }

    /// Returns the balance of each meter that there ever was something of.
    pub fn balances(&self) -> Vec<Balance> {
        let balance = |(meter, sums): (&MeterName, &Sums)| {
            let of_meter = || self.buckets.values().filter(|bucket| bucket.meter == *meter);
            let months = self.months.iter().filter(|((of, _), _)| of == meter);
            Balance {
                meter: meter.clone(),
                granted: sums.granted,
                used: sums.used,
                lapsed: sums.lapsed,
                withdrawn: sums.withdrawn,
                held: sum(of_meter().map(|bucket| bucket.held)),
                left: sum(of_meter().map(Bucket::left)),
                months: months.map(|((_, month), used)| (month.to_string(), *used)).collect(),
            }
        };
        self.sums.iter().map(balance).collect()
    }

    /// Time does not go back.
    fn pass(&mut self, at: Timestamp) -> Result<(), Fault> {
        let before = self.at.replace(at);
        if before.is_some_and(|before| at < before) {
            fault("its time is before that of the event before it")
        } else {
            Ok(())
        }
    }

    fn end_top_up(&mut self, id: TopUpId) -> Result<(MeterName, Amount), Fault> {
        self.top_ups.remove(&id).ok_or_else(|| Fault(format!("top-up {} is not open", id.0)))
    }

    fn bucket(&mut self, id: BucketId) -> Result<&mut Bucket, Fault> {
        self.buckets.get_mut(&id).ok_or_else(|| Fault(format!("bucket {} is not open", id.0)))
    }

    fn sums_of(&mut self, meter: &MeterName, change: impl FnOnce(&mut Sums)) {
        change(self.sums.entry(meter.clone()).or_default());
    }

    /// Takes parts of an amount out of what is left.
    fn hold(
        &mut self,
        meter: &MeterName,
        amount: Amount,
        draws: &[Draw],
        at: Timestamp,
    ) -> Result<BTreeMap<BucketId, Amount>, Fault> {
        if sum(draws.iter().map(|draw| draw.amount)) != amount.into() {
            return fault(format!("its parts are not {amount} together"));
        }
        let mut parts = BTreeMap::new();
        for draw in draws {
            let bucket = self.bucket(draw.bucket)?;
            let is_usable = bucket.meter == *meter && bucket.from <= at && bucket.until.is_none_or(|until| at < until);
            if !is_usable {
                return fault(format!("bucket {} is not for {meter} at that time", draw.bucket.0));
            }
            if draw.amount > bucket.left() {
                return fault(format!(
                    "bucket {} has {} left, and {} are used",
                    draw.bucket.0,
                    bucket.left(),
                    draw.amount
                ));
            }
            bucket.held = bucket.held.plus(draw.amount).unwrap_or(Amount::MAX);
            let part: &mut Amount = parts.entry(draw.bucket).or_default();
            *part = part.plus(draw.amount).unwrap_or(Amount::MAX);
        }
        Ok(parts)
    }

    /// Ends a hold, whose parts are left again.
    fn release(&mut self, id: HoldId, amount: Amount) -> Result<Hold, Fault> {
        let Some(hold) = self.holds.remove(&id) else { return fault(format!("{id} is not open")) };
        for (bucket, part) in &hold.parts {
            if let Some(bucket) = self.buckets.get_mut(bucket) {
                bucket.held = bucket.held.less(*part);
            }
        }
        if hold.amount() == amount.into() {
            Ok(hold)
        } else {
            fault(format!("{id} has {}, and {amount} return", hold.amount()))
        }
    }

    fn settle(&mut self, event: &AccountSettled) -> Result<Line, Fault> {
        self.pass(event.at)?;
        if sum(event.draws.iter().map(|draw| draw.amount)) != event.amount.into() {
            return fault(format!("its parts are not {} together", event.amount));
        }
        let within = match event.hold {
            Some(id) => {
                let all = event.amount.plus(event.returned).unwrap_or(Amount::MAX);
                let hold = self.release(id, all)?;
                if (&hold.meter, hold.reserved_at) != (&event.meter, event.reserved_at) {
                    return fault(format!("{id} is of another meter or another time"));
                }
                event.draws.iter().all(|draw| hold.parts.get(&draw.bucket).is_some_and(|part| draw.amount <= *part))
            }
            None => {
                self.hold(&event.meter, event.amount, &event.draws, event.at)?;
                for draw in &event.draws {
                    let bucket = self.bucket(draw.bucket)?;
                    bucket.held = bucket.held.less(draw.amount);
                }
                event.reserved_at == event.at
            }
        };
        for draw in &event.draws {
            let bucket = self.bucket(draw.bucket)?;
            bucket.spent = bucket.spent.plus(draw.amount).unwrap_or(Amount::MAX);
        }
        let amount = AmountSum::from(event.amount);
        self.sums_of(&event.meter, |sums| sums.used = sums.used.plus(amount));
        let month = self.months.entry((event.meter.clone(), Month::of(event.reserved_at))).or_default();
        *month = month.plus(amount);
        if !within {
            return fault("it uses what was not held for it");
        }
        let line = self.line(event.at, &event.meter, ("used", false), amount);
        Ok(Line {
            kind: event.used_for.kind.as_ref().map(ToString::to_string),
            model: event.used_for.model.clone(),
            by: Some(event.by.id.clone()),
            ..line
        })
    }

    fn line(&self, at: Timestamp, meter: &MeterName, (what, added): (&'static str, bool), amount: AmountSum) -> Line {
        let of_meter = self.buckets.values().filter(|bucket| bucket.meter == *meter);
        let balance =
            of_meter.fold(AmountSum::default(), |sum, bucket| sum.plus(bucket.held.into()).plus(bucket.left().into()));
        let (source, kind, model, by) = (None, None, None, None);
        Line { at, meter: meter.clone(), what, source, amount, added, balance, kind, model, by }
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{
        AccountBucketClosed, AccountGranted, AccountReleased, AccountReserved, ActorType, UsedBy, UsedFor,
    };

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_774_000_000_000 + seconds * 1_000)
    }

    fn amount(text: &str) -> Amount {
        text.parse().unwrap()
    }

    fn meter() -> MeterName {
        "ecu".parse().unwrap()
    }

    fn by() -> UsedBy {
        UsedBy { actor_type: ActorType::ApiKey, id: "key_1".to_owned() }
    }

    fn draws(text: &str) -> Vec<Draw> {
        vec![Draw { bucket: BucketId(1), amount: amount(text) }]
    }

    fn granted(text: &str) -> AccountEvent {
        AccountEvent::Granted(AccountGranted {
            at: at(0),
            bucket: BucketId(1),
            meter: meter(),
            source: BucketSource::Grant,
            amount: amount(text),
            from: at(0),
            until: Some(at(100)),
            price_per_million: None,
            plan: None,
            reason: None,
        })
    }

    fn hold() -> HoldId {
        HoldId::fresh(1, [1; 10])
    }

    fn reserved(text: &str) -> AccountEvent {
        AccountEvent::Reserved(AccountReserved {
            at: at(1),
            hold: hold(),
            meter: meter(),
            amount: amount(text),
            draws: draws(text),
            deadline: at(50),
            used_for: UsedFor::default(),
            by: by(),
        })
    }

    fn settled(hold: Option<HoldId>, used: &str, returned: &str, reserved_at: Timestamp) -> AccountEvent {
        AccountEvent::Settled(AccountSettled {
            at: at(2),
            hold,
            reserved_at,
            meter: meter(),
            amount: amount(used),
            draws: draws(used),
            returned: amount(returned),
            used_for: UsedFor::default(),
            by: by(),
        })
    }

    fn fold(events: &[AccountEvent]) -> (Ledger, Vec<Line>) {
        let mut ledger = Ledger::default();
        let lines = events.iter().filter_map(|event| ledger.apply(event).unwrap()).collect();
        (ledger, lines)
    }

    #[test]
    fn every_unit_is_somewhere_and_each_change_has_a_line() {
        let closed = AccountBucketClosed { at: at(100), bucket: BucketId(1), meter: meter(), lapsed: amount("2.5") };
        let events = [
            granted("10"),
            reserved("6"),
            settled(Some(hold()), "4", "2", at(1)),
            settled(None, "3.5", "0", at(2)),
            AccountEvent::BucketClosed(closed),
        ];
        let (ledger, lines) = fold(&events[..4]);
        let [balance] = ledger.balances().try_into().unwrap();
        let text = |sum: AmountSum| sum.to_string();
        assert_eq!(
            (text(balance.granted), text(balance.used), text(balance.left)),
            ("10".into(), "7.5".into(), "2.5".into())
        );
        assert_eq!(balance.months.values().map(ToString::to_string).collect::<Vec<_>>(), ["7.5"]);
        assert_eq!(lines.iter().map(|line| line.balance.to_string()).collect::<Vec<_>>(), ["10", "6", "2.5"]);
        let (ledger, lines) = fold(&events);
        let [balance] = ledger.balances().try_into().unwrap();
        assert_eq!((text(balance.lapsed), text(balance.left)), ("2.5".into(), "0".into()));
        assert_eq!(lines.last().map(|line| (line.what, line.balance.to_string())), Some(("lapsed", "0".to_owned())));
    }

    #[test]
    fn what_does_not_follow_is_found() {
        let released = |text: &str| {
            AccountEvent::Released(AccountReleased { at: at(3), hold: hold(), meter: meter(), amount: amount(text) })
        };
        let closed = AccountBucketClosed { at: at(9), bucket: BucketId(1), meter: meter(), lapsed: amount("9") };
        for (events, what) in [
            (vec![granted("10"), granted("10")], "granted twice"),
            (vec![reserved("1")], "bucket 1 is not open"),
            (vec![granted("10"), reserved("10.000001")], "has 10 left"),
            (vec![granted("10"), reserved("6"), reserved("1")], "reserved twice"),
            (vec![granted("10"), reserved("6"), settled(Some(hold()), "6.5", "0", at(1))], "has 6, and 6.5 return"),
            (vec![granted("10"), reserved("6"), settled(Some(hold()), "5", "0", at(1))], "has 6, and 5 return"),
            (vec![granted("10"), reserved("6"), settled(Some(hold()), "5", "1", at(0))], "another time"),
            (vec![granted("10"), settled(Some(hold()), "1", "0", at(1))], "is not open"),
            (vec![granted("10"), settled(None, "11", "0", at(2))], "has 10 left"),
            (vec![granted("10"), reserved("6"), released("5")], "has 6, and 5 return"),
            (vec![granted("10"), reserved("6"), released("6"), released("6")], "is not open"),
            (vec![granted("10"), AccountEvent::BucketClosed(closed)], "9 lapse, and 10 are left"),
            (vec![granted("10"), settled(None, "1", "0", at(2)), reserved("1")], "time is before"),
        ] {
            let (last, before) = events.split_last().unwrap();
            let (mut ledger, _) = fold(before);
            let fault = ledger.apply(last).unwrap_err().to_string();
            assert!(fault.contains(what), "{fault}");
        }
    }
}
