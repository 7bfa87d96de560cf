use std::collections::BTreeMap;

use orgstream_events::{ActorType, CommandId, OrgId, PlanName, TopUpId, TopUpRule};
use proptest::prelude::*;

use super::*;
use crate::{RejectionKind, testing::rejection};

fn meter(name: &str) -> MeterName {
    name.parse().unwrap()
}

fn amount(text: &str) -> Amount {
    text.parse().unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn terms(meters: &[(&str, &str, &str, Option<&str>)]) -> Terms {
    let meters = meters.iter().map(|(name, included, overage, cap)| {
        let (included, overage, cap) = (amount(included), amount(overage), cap.map(amount));
        (meter(name), MeterTerms { included, overage, cap, ..MeterTerms::default() })
    });
    let plan = PlanVersion { plan: PlanName::default(), version: 1 };
    Terms { plan, meters: meters.collect(), concurrency: None, trial_ends_at: None }
}

/// An account that remembers all that happened to it.
#[derive(Clone)]
struct Book {
    account: Account,
    events: Vec<AccountEvent>,
    commands: u64,
}

impl Book {
    fn new() -> Self {
        Self { account: Account::default(), events: Vec::new(), commands: 0 }
    }

    fn command_id(number: u64) -> CommandId {
        CommandId::from_idempotency_key(OrgId::fresh(1, [1; 10]), &number.to_string())
    }

    /// Sends a command at a time, and takes in what follows.
    fn send(
        &mut self,
        now: Timestamp,
        terms: &Terms,
        command: AccountAction,
    ) -> Result<Vec<AccountEvent>, AccountError> {
        self.commands += 1;
        let context =
            DecisionContext { now, command_id: Self::command_id(self.commands), org: OrgId::fresh(1, [1; 10]) };
        let by = UsedBy { actor_type: ActorType::ApiKey, id: "key_1".to_owned() };
        let events = self.account.decide(AccountCommand { terms: Arc::new(terms.clone()), by, command }, &context)?;
        for event in &events {
            self.account.apply(event);
        }
        self.events.extend(events.clone());
        Ok(events)
    }

    /// The hold of the last command.
    fn hold(&self) -> HoldId {
        HoldId::derive(Self::command_id(self.commands))
    }

    fn available(&self, now: Timestamp, terms: &Terms, name: &str) -> Amount {
        self.account.as_of(now, terms).balance(&meter(name), now).available
    }
}

fn reserve(name: &str, text: &str) -> AccountAction {
    AccountAction::Reserve(ReserveUsage {
        meter: meter(name),
        amount: amount(text),
        seconds: None,
        kind: None,
        model: None,
    })
}

fn charge(name: &str, text: &str) -> AccountAction {
    AccountAction::Charge(ChargeUsage { meter: meter(name), amount: amount(text), kind: None, model: None })
}

fn credit(name: &str, text: &str, expires_at: Option<&str>) -> AccountAction {
    let reason = "test".to_owned();
    let expires_at = expires_at.map(time);
    AccountAction::Credit(CreditAccount { meter: meter(name), amount: amount(text), expires_at, reason })
}

fn settle(hold: HoldId, text: &str) -> AccountAction {
    AccountAction::Settle(SettleHold { hold, amount: amount(text) })
}

fn release(hold: HoldId) -> AccountAction {
    AccountAction::Release(ReleaseHold { hold })
}

const NOON: &str = "2026-03-10T12:00:00Z";

#[test]
fn what_is_held_is_not_available_and_what_was_not_needed_returns() {
    let (mut book, terms, now) = (Book::new(), terms(&[("tokens", "100", "0", None)]), time(NOON));
    assert_eq!(book.available(now, &terms, "tokens"), amount("100"));
    book.send(now, &terms, reserve("tokens", "70")).unwrap();
    let hold = book.hold();
    assert_eq!(book.available(now, &terms, "tokens"), amount("30"));
    let refused = rejection(book.send(now, &terms, reserve("tokens", "30.000001")));
    assert_eq!((refused.code, refused.kind), ("insufficient_balance", RejectionKind::PaymentRequired));
    let figures: BTreeMap<_, _> = refused.figures.into_iter().collect();
    assert_eq!((figures["required"].as_str(), figures["available"].as_str()), ("30.000001", "30"));
    assert_eq!(figures["resets_at"], "2026-04-01T00:00:00.000Z");
    let refused = rejection(book.send(now, &terms, settle(hold, "70.000001")));
    assert_eq!(refused.code, "more_than_held");
    book.send(now, &terms, settle(hold, "50")).unwrap();
    assert_eq!(book.available(now, &terms, "tokens"), amount("50"));
    // A hold ends once.
    for again in [settle(hold, "50"), settle(hold, "10"), release(hold)] {
        assert_eq!(rejection(book.send(now, &terms, again)).code, "hold_not_open");
    }
    assert_eq!(book.available(now, &terms, "tokens"), amount("50"));
}

#[test]
fn s5_41_the_allowance_of_a_month_is_new_to_the_millisecond_and_nothing_is_carried_over() {
    let terms = terms(&[("tokens", "100000", "0", None)]);
    for year in 2023..=2028 {
        for month in 1..=12 {
            let month: Month = format!("{year}-{month:02}").parse().unwrap();
            let last = Timestamp::from_unix_ms(month.end().unix_ms() - 1);
            let mut book = Book::new();
            book.send(last, &terms, charge("tokens", "60000")).unwrap();
            assert_eq!(book.available(last, &terms, "tokens"), amount("40000"));
            // Nobody ran at midnight.
            assert_eq!(book.available(month.end(), &terms, "tokens"), amount("100000"), "{month}");
            book.send(month.end(), &terms, charge("tokens", "100000")).unwrap();
            let refused = rejection(book.send(month.end(), &terms, charge("tokens", "0.000001")));
            assert_eq!(refused.code, "insufficient_balance");
            let lapsed = book.events.iter().find_map(|event| match event {
                AccountEvent::BucketClosed(event) => Some(event.lapsed),
                _ => None,
            });
            assert_eq!(lapsed, Some(amount("40000")));
        }
    }
}

#[test]
fn a_hold_counts_in_the_month_that_it_was_reserved_in() {
    let (mut book, terms) = (Book::new(), terms(&[("tokens", "100", "0", Some("100"))]));
    let (before, after) = (time("2026-03-31T23:59:59.999Z"), time("2026-04-01T00:00:00Z"));
    book.send(before, &terms, reserve("tokens", "100")).unwrap();
    let hold = book.hold();
    assert_eq!(book.available(after, &terms, "tokens"), amount("100"));
    book.send(after, &terms, charge("tokens", "100")).unwrap();
    let settled = book.send(after, &terms, settle(hold, "60")).unwrap();
    let Some(AccountEvent::Settled(settled)) = settled.last() else { panic!("{settled:?}") };
    assert_eq!(settled.reserved_at, before);
    // What was not needed of the earlier month lapses.
    assert_eq!(book.available(after, &terms, "tokens"), Amount::ZERO);
    assert_eq!(rejection(book.send(after, &terms, charge("tokens", "1"))).code, "usage_cap_reached");
}

#[test]
fn a_hold_returns_at_its_deadline_and_a_read_knows_it() {
    let (mut book, terms, now) = (Book::new(), terms(&[("ecu", "10", "0", None)]), time(NOON));
    book.send(now, &terms, reserve("ecu", "10")).unwrap();
    let hold = book.hold();
    let late = after(now, HOLD_SECONDS);
    let just_before = Timestamp::from_unix_ms(late.unix_ms() - 1);
    assert_eq!(book.available(just_before, &terms, "ecu"), Amount::ZERO);
    assert_eq!(book.available(late, &terms, "ecu"), amount("10"));
    let mut in_time = book.clone();
    in_time.send(just_before, &terms, settle(hold, "10")).unwrap();
    assert_eq!(rejection(book.send(late, &terms, settle(hold, "10"))).code, "hold_not_open");
    book.send(late, &terms, reserve("ecu", "10")).unwrap();
    assert!(book.events.iter().any(|event| matches!(event, AccountEvent::HoldsExpired(_))));
}

#[test]
fn s5_38_after_the_trial_nothing_is_used_until_a_plan_is_chosen_and_what_is_held_completes() {
    let (mut book, mut trial, now) = (Book::new(), terms(&[("tokens", "100", "0", None)]), time(NOON));
    trial.trial_ends_at = Some(after(now, 60));
    book.send(now, &trial, reserve("tokens", "10")).unwrap();
    let hold = book.hold();
    let over = after(now, 60);
    for command in [reserve("tokens", "1"), charge("tokens", "1"), reserve("tokens", "0")] {
        let refused = rejection(book.send(over, &trial, command));
        assert_eq!((refused.code, refused.kind.status()), ("billing_required", 402));
    }
    book.send(over, &trial, settle(hold, "10")).unwrap();
    let paid = Terms { trial_ends_at: None, ..trial };
    book.send(over, &paid, charge("tokens", "90")).unwrap();
    assert_eq!(rejection(book.send(over, &paid, charge("tokens", "1"))).code, "insufficient_balance");
}

#[test]
fn s3_31_so_many_holds_are_open_and_no_more() {
    let (mut book, mut terms, now) = (Book::new(), terms(&[("ecu", "0", "0", None)]), time(NOON));
    terms.concurrency = Some(5);
    let mut holds = Vec::new();
    for _ in 0..5 {
        book.send(now, &terms, reserve("ecu", "0")).unwrap();
        holds.push(book.hold());
    }
    let refused = rejection(book.send(now, &terms, reserve("ecu", "0")));
    assert_eq!((refused.code, refused.kind.status()), ("hold_limit_exceeded", 429));
    assert_eq!(refused.retry_at, Some(after(now, HOLD_SECONDS)));
    book.send(now, &terms, release(holds[0])).unwrap();
    book.send(now, &terms, reserve("ecu", "0")).unwrap();
    assert_eq!(rejection(book.send(now, &terms, reserve("ecu", "0"))).code, "hold_limit_exceeded");
    // Those whose owner is gone are free at their deadlines.
    let late = after(now, HOLD_SECONDS);
    for _ in 0..5 {
        book.send(late, &terms, reserve("ecu", "0")).unwrap();
    }
    assert_eq!(rejection(book.send(late, &terms, reserve("ecu", "0"))).code, "hold_limit_exceeded");
}

#[test]
fn what_ends_first_is_used_first_and_what_is_paid_afterwards_last() {
    let (mut book, terms, now) = (Book::new(), terms(&[("ecu", "10", "100", None)]), time(NOON));
    book.send(now, &terms, credit("ecu", "10", None)).unwrap();
    book.send(now, &terms, credit("ecu", "10", Some("2026-03-20T00:00:00Z"))).unwrap();
    let events = book.send(now, &terms, charge("ecu", "35")).unwrap();
    let Some(AccountEvent::Settled(settled)) = events.first() else { panic!("{events:?}") };
    let sources: Vec<_> =
        settled.draws.iter().map(|draw| (book.account.buckets[&draw.bucket].source, draw.amount)).collect();
    assert_eq!(
        sources,
        [
            (BucketSource::Grant, amount("10")),
            (BucketSource::Allowance, amount("10")),
            (BucketSource::Grant, amount("10")),
            (BucketSource::Overage, amount("5")),
        ]
    );
}

#[test]
fn expiry_takes_its_own_bucket_only_and_to_the_millisecond() {
    let (mut book, terms, now) = (Book::new(), terms(&[("ecu", "0", "0", None)]), time(NOON));
    book.send(now, &terms, credit("ecu", "10", Some("2026-03-20T00:00:00Z"))).unwrap();
    book.send(now, &terms, credit("ecu", "7", None)).unwrap();
    assert_eq!(book.available(time("2026-03-19T23:59:59.999Z"), &terms, "ecu"), amount("17"));
    let end = time("2026-03-20T00:00:00Z");
    assert_eq!(book.available(end, &terms, "ecu"), amount("7"));
    assert_eq!(rejection(book.send(end, &terms, charge("ecu", "8"))).code, "insufficient_balance");
    let past = rejection(book.send(end, &terms, credit("ecu", "1", Some("2026-03-20T00:00:00Z"))));
    assert_eq!(past.errors[0].pointer, "/expires_at");
}

#[test]
fn s3_30_a_cap_counts_what_is_used_and_held_wherever_it_came_from() {
    let (mut book, terms, now) = (Book::new(), terms(&[("tokens", "5", "0", Some("10"))]), time(NOON));
    book.send(now, &terms, credit("tokens", "100", None)).unwrap();
    book.send(now, &terms, charge("tokens", "6")).unwrap();
    book.send(now, &terms, reserve("tokens", "4")).unwrap();
    let hold = book.hold();
    let refused = rejection(book.send(now, &terms, charge("tokens", "0.5")));
    assert_eq!((refused.code, refused.kind.status()), ("usage_cap_reached", 429));
    assert_eq!(refused.retry_at, Some(time("2026-04-01T00:00:00Z")));
    book.send(now, &terms, settle(hold, "3")).unwrap();
    book.send(now, &terms, charge("tokens", "1")).unwrap();
    assert_eq!(rejection(book.send(now, &terms, charge("tokens", "0.5"))).code, "usage_cap_reached");
    book.send(time("2026-04-01T00:00:00Z"), &terms, charge("tokens", "10")).unwrap();
}

#[test]
fn a_change_of_the_plan_changes_the_allowance_and_not_what_was_used() {
    let (mut book, small, now) = (Book::new(), terms(&[("tokens", "100", "0", None)]), time(NOON));
    book.send(now, &small, charge("tokens", "80")).unwrap();
    let large = terms(&[("tokens", "1000", "0", None)]);
    assert_eq!(book.available(now, &large, "tokens"), amount("920"));
    book.send(now, &large, charge("tokens", "120")).unwrap();
    // Less than was used is nothing, and no debt.
    assert_eq!(book.available(now, &small, "tokens"), Amount::ZERO);
    assert_eq!(rejection(book.send(now, &small, charge("tokens", "1"))).code, "insufficient_balance");
    let none = terms(&[]);
    assert_eq!(rejection(book.send(now, &none, charge("tokens", "1"))).code, "insufficient_balance");
    assert_eq!(book.available(time("2026-04-01T00:00:00Z"), &small, "tokens"), amount("100"));
}

#[test]
fn warnings_come_once_until_a_credit_lifts_the_balance() {
    let (mut book, terms, now) = (Book::new(), terms(&[("ecu", "100", "0", None)]), time(NOON));
    let warnings = |book: &Book| {
        let warned = book.events.iter().filter_map(|event| match event {
            AccountEvent::ThresholdCrossed(event) => Some(event.percent),
            _ => None,
        });
        warned.collect::<Vec<_>>()
    };
    book.send(now, &terms, charge("ecu", "79")).unwrap();
    assert_eq!(warnings(&book), [] as [u8; 0]);
    // Around the threshold for a week.
    for _ in 0..50 {
        book.send(now, &terms, reserve("ecu", "2")).unwrap();
        book.send(now, &terms, release(book.hold())).unwrap();
    }
    assert_eq!(warnings(&book), [20]);
    book.send(now, &terms, charge("ecu", "21")).unwrap();
    assert_eq!(warnings(&book), [20, 0]);
    // Too little to be warned of anew, except of nothing at all.
    book.send(now, &terms, credit("ecu", "8", None)).unwrap();
    book.send(now, &terms, charge("ecu", "8")).unwrap();
    assert_eq!(warnings(&book), [20, 0, 0]);
    book.send(now, &terms, credit("ecu", "100", None)).unwrap();
    book.send(now, &terms, charge("ecu", "70")).unwrap();
    assert_eq!(warnings(&book), [20, 0, 0, 20]);
}

#[test]
fn malformed_commands_are_refused_with_the_field() {
    let (mut book, terms, now) = (Book::new(), terms(&[("ecu", "10", "0", None)]), time(NOON));
    let with = |seconds, model: Option<&str>| {
        let model = model.map(str::to_owned);
        AccountAction::Reserve(ReserveUsage { meter: meter("ecu"), amount: amount("1"), seconds, kind: None, model })
    };
    let hold = HoldId::derive(Book::command_id(9));
    for (command, pointer) in [
        (charge("ecu", "0"), "/amount"),
        (credit("ecu", "0", None), "/amount"),
        (with(Some(0), None), "/seconds"),
        (with(Some(86_401), None), "/seconds"),
        (with(None, Some("")), "/model"),
        (with(None, Some("a\0b")), "/model"),
        (charge("gold", "1"), "/meter"),
        (credit("gold", "1", None), "/meter"),
        (AccountAction::Extend(ExtendHold { hold, amount: None, seconds: None }), "/amount"),
    ] {
        let refused = rejection(book.send(now, &terms, command.clone()));
        assert_eq!((refused.code, refused.errors[0].pointer.as_str()), ("validation_error", pointer), "{command:?}");
    }
    book.send(now, &terms, credit("ecu", &Amount::MAX.less(amount("10")).to_string(), None)).unwrap();
    assert_eq!(rejection(book.send(now, &terms, credit("ecu", "1", None))).errors[0].pointer, "/amount");
}

#[test]
fn a_hold_becomes_larger_and_longer_within_a_day() {
    let (mut book, terms, now) = (Book::new(), terms(&[("ecu", "10", "0", None)]), time(NOON));
    book.send(now, &terms, reserve("ecu", "4")).unwrap();
    let hold = book.hold();
    let extend =
        |text: Option<&str>, seconds| AccountAction::Extend(ExtendHold { hold, amount: text.map(amount), seconds });
    book.send(now, &terms, extend(Some("6"), Some(3_600))).unwrap();
    assert_eq!(rejection(book.send(now, &terms, extend(Some("1"), None))).code, "insufficient_balance");
    let later = after(now, 3_599);
    assert_eq!(rejection(book.send(later, &terms, extend(None, Some(86_400)))).errors[0].pointer, "/seconds");
    assert_eq!(book.send(later, &terms, extend(None, Some(1))).unwrap(), []);
    book.send(later, &terms, settle(hold, "10")).unwrap();
    assert_eq!(book.available(later, &terms, "ecu"), Amount::ZERO);
}

#[test]
fn a_preview_is_the_decision_and_changes_nothing() {
    let (mut book, terms, now) = (Book::new(), terms(&[("ecu", "10", "100", None)]), time(NOON));
    book.send(now, &terms, credit("ecu", "10", Some("2026-03-20T00:00:00Z"))).unwrap();
    let before = book.account.clone();
    let by = UsedBy { actor_type: ActorType::ApiKey, id: "key_1".to_owned() };
    let preview = |book: &Book, text: &str| {
        let AccountAction::Reserve(reserve) = reserve("ecu", text) else { unreachable!() };
        book.account.preview(reserve, terms.clone(), by.clone(), OrgId::fresh(1, [1; 10]), now)
    };
    let parts = preview(&book, "25").unwrap();
    let shown: Vec<_> =
        parts.iter().map(|part| (part.source, part.amount.to_string(), part.left.to_string())).collect();
    let part = |source, amount: &str, left: &str| (source, amount.to_owned(), left.to_owned());
    assert_eq!(
        shown,
        [
            part(BucketSource::Grant, "10", "0"),
            part(BucketSource::Allowance, "10", "0"),
            part(BucketSource::Overage, "5", "95"),
        ]
    );
    let refused = rejection(preview(&book, "120.000001"));
    assert_eq!((refused.code, book.account.clone()), ("insufficient_balance", before));
    let events = book.send(now, &terms, reserve("ecu", "25")).unwrap();
    let Some(AccountEvent::Reserved(reserved)) = events.iter().find(|event| matches!(event, AccountEvent::Reserved(_)))
    else {
        panic!("{events:?}")
    };
    let drawn: Vec<_> = reserved.draws.iter().map(|draw| draw.amount).collect();
    assert_eq!(drawn, parts.iter().map(|part| part.amount).collect::<Vec<_>>());
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let (mut book, terms) = (Book::new(), terms(&[("tokens", "10", "0", None)]));
    book.send(time("2026-04-01T00:00:00Z"), &terms, charge("tokens", "10")).unwrap();
    let earlier = time("2026-03-31T23:59:00Z");
    assert_eq!(rejection(book.send(earlier, &terms, charge("tokens", "1"))).code, "insufficient_balance");
}

/// What may happen to an account, in any order and at any time.
#[derive(Debug, Clone)]
enum Step {
    Reserve { meter: usize, micros: u64, seconds: u32 },
    Charge { meter: usize, micros: u64 },
    Credit { meter: usize, micros: u64, seconds: Option<u32> },
    Settle { hold: usize, percent: u64 },
    Release { hold: usize },
    Extend { hold: usize, micros: u64, seconds: u32 },
}

fn steps() -> impl Strategy<Value = Vec<(i64, usize, Step)>> {
    let (meter, micros) = (0..2_usize, prop_oneof![0..3_000_u64, 0..60_000_u64]);
    let step = prop_oneof![
        4 => (meter.clone(), micros.clone(), 1..4_000_u32).prop_map(|(meter, micros, seconds)| Step::Reserve { meter, micros, seconds }),
        2 => (meter.clone(), micros.clone()).prop_map(|(meter, micros)| Step::Charge { meter, micros }),
        1 => (meter, micros.clone(), prop::option::of(1..5_000_000_u32))
            .prop_map(|(meter, micros, seconds)| Step::Credit { meter, micros, seconds }),
        3 => (0..8_usize, 0..130_u64).prop_map(|(hold, percent)| Step::Settle { hold, percent }),
        1 => (0..8_usize).prop_map(|hold| Step::Release { hold }),
        1 => (0..8_usize, micros, 0..90_000_u32).prop_map(|(hold, micros, seconds)| Step::Extend { hold, micros, seconds }),
    ];
    // Mostly seconds pass, at times weeks, and at times a clock goes back.
    let passes = prop_oneof![6 => 0..2_000_i64, 2 => 0..2_000_000_i64, 1 => 0..3_000_000_000_i64, 1 => -100_000..0_i64];
    prop::collection::vec((passes, 0..3_usize, step), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens and whenever: nothing is used twice, nothing is lost, and every refusal is right.
    #[test]
    fn every_unit_is_in_one_place(steps in steps()) {
        let names = ["tokens", "ecu"];
        let plans = [
            terms(&[("tokens", "0.05", "0", None), ("ecu", "0.01", "0.02", None)]),
            terms(&[("tokens", "0.02", "0", Some("0.03")), ("ecu", "0", "0", None)]),
            Terms { concurrency: Some(3), ..terms(&[("ecu", "0.04", "0", Some("0.05"))]) },
        ];
        let mut book = Book::new();
        let mut now = time("2026-01-30T00:00:00Z");
        let mut holds: Vec<HoldId> = Vec::new();
        for (passes, plan, step) in steps {
            now = Timestamp::from_unix_ms(now.unix_ms() + passes);
            let terms = &plans[plan];
            let hold = |number: usize| holds.iter().rev().nth(number).copied().unwrap_or(HoldId::fresh(1, [9; 10]));
            let micros = |micros| Amount::from_micros(micros).unwrap();
            let command = match step {
                Step::Reserve { meter: number, micros: size, seconds } => AccountAction::Reserve(ReserveUsage {
                    meter: meter(names[number]), amount: micros(size), seconds: Some(seconds), kind: None, model: None,
                }),
                Step::Charge { meter: number, micros: size } => AccountAction::Charge(ChargeUsage {
                    meter: meter(names[number]), amount: micros(size), kind: None, model: None,
                }),
                Step::Credit { meter: number, micros: size, seconds } => AccountAction::Credit(CreditAccount {
                    meter: meter(names[number]),
                    amount: micros(size),
                    expires_at: seconds.map(|seconds| after(now.max(book.account.last_change()), seconds)),
                    reason: "x".to_owned(),
                }),
                Step::Settle { hold: number, percent } => {
                    let id = hold(number);
                    let held = book.account.holds().get(&id).map_or(Amount::ZERO, Hold::amount);
                    AccountAction::Settle(SettleHold { hold: id, amount: micros(held.micros() * percent / 100) })
                }
                Step::Release { hold: number } => release(hold(number)),
                Step::Extend { hold: number, micros: size, seconds } => AccountAction::Extend(ExtendHold {
                    hold: hold(number), amount: Some(micros(size)), seconds: Some(seconds.max(1)),
                }),
            };
            let before = book.account.as_of(now, terms);
            let effective = now.max(before.last_change());
            let result = book.send(now, terms, command.clone());
            match (&result, &command) {
                (Ok(_), AccountAction::Reserve(reserved)) => {
                    let had = before.balance(&reserved.meter, effective).available;
                    prop_assert!(had >= reserved.amount, "{} of {had}", reserved.amount);
                    holds.push(book.hold());
                }
                (Ok(_), AccountAction::Charge(charged)) => {
                    prop_assert!(before.balance(&charged.meter, effective).available >= charged.amount);
                }
                (Err(AccountError::Insufficient { required, available, meter, .. }), _) => {
                    prop_assert!(available < required);
                    prop_assert_eq!(*available, before.balance(meter, effective).available);
                }
                (Err(AccountError::CapReached { required, cap, used, .. }), _) => {
                    prop_assert!(used.plus(*required).unwrap() > *cap);
                }
                _ => {}
            }
            check(&book)?;
        }
    }
}

/// The account is what its events say, counted anew and in another way.
fn check(book: &Book) -> Result<(), TestCaseError> {
    let mut folded = Account::default();
    for event in &book.events {
        folded.apply(event);
    }
    prop_assert_eq!(&folded, &book.account);
    let stored = rmp_serde::to_vec_named(&folded).unwrap();
    prop_assert_eq!(rmp_serde::from_slice::<Account>(&stored).unwrap(), folded);
    let mut buckets: BTreeMap<BucketId, (Amount, Amount, Amount, Option<Amount>)> = BTreeMap::new();
    let mut open: BTreeMap<HoldId, Vec<Draw>> = BTreeMap::new();
    let mut at = Timestamp::default();
    for event in &book.events {
        let (time, draws, used) = match event {
            AccountEvent::Granted(event) => {
                buckets.insert(event.bucket, (event.amount, Amount::ZERO, Amount::ZERO, None));
                (event.at, vec![], false)
            }
            AccountEvent::AllowanceChanged(event) => {
                buckets.get_mut(&event.bucket).unwrap().0 = event.amount;
                (event.at, vec![], false)
            }
            AccountEvent::BucketClosed(event) => {
                let bucket = buckets.get_mut(&event.bucket).unwrap();
                prop_assert!(bucket.1.is_zero() && bucket.3.is_none());
                prop_assert_eq!(bucket.0.less(bucket.2), event.lapsed);
                bucket.3 = Some(event.lapsed);
                (event.at, vec![], false)
            }
            AccountEvent::Reserved(event) => {
                prop_assert_eq!(sum(&event.draws), event.amount);
                prop_assert!(open.insert(event.hold, event.draws.clone()).is_none());
                (event.at, event.draws.clone(), false)
            }
            AccountEvent::Extended(event) => {
                prop_assert_eq!(sum(&event.draws), event.amount);
                open.get_mut(&event.hold).unwrap().extend(&event.draws);
                (event.at, event.draws.clone(), false)
            }
            AccountEvent::Settled(event) => {
                prop_assert_eq!(sum(&event.draws), event.amount);
                let held = event.hold.map_or_else(Vec::new, |hold| open.remove(&hold).unwrap());
                if event.hold.is_some() {
                    prop_assert_eq!(sum(&held), plus(event.amount, event.returned));
                }
                for draw in held {
                    let bucket = buckets.get_mut(&draw.bucket).unwrap();
                    bucket.1 = bucket.1.minus(draw.amount).unwrap();
                }
                (event.at, event.draws.clone(), true)
            }
            AccountEvent::Released(event) => {
                for draw in open.remove(&event.hold).unwrap() {
                    let bucket = buckets.get_mut(&draw.bucket).unwrap();
                    bucket.1 = bucket.1.minus(draw.amount).unwrap();
                }
                (event.at, vec![], false)
            }
            AccountEvent::HoldsExpired(event) => {
                for expired in &event.holds {
                    for draw in open.remove(&expired.hold).unwrap() {
                        let bucket = buckets.get_mut(&draw.bucket).unwrap();
                        bucket.1 = bucket.1.minus(draw.amount).unwrap();
                    }
                }
                (event.at, vec![], false)
            }
            AccountEvent::ThresholdCrossed(event) => (event.at, vec![], false),
            AccountEvent::TopUpChanged(event) => (event.at, vec![], false),
            AccountEvent::TopUpRequested(event) => (event.at, vec![], false),
            AccountEvent::TopUpPaid(event) => (event.at, vec![], false),
            AccountEvent::TopUpDeclined(event) => (event.at, vec![], false),
        };
        for draw in draws {
            let bucket = buckets.get_mut(&draw.bucket).unwrap();
            prop_assert!(bucket.3.is_none(), "a bucket that was closed is used");
            let place = if used { &mut bucket.2 } else { &mut bucket.1 };
            *place = place.plus(draw.amount).unwrap();
            prop_assert!(bucket.1.plus(bucket.2).unwrap() <= bucket.0, "more is used and held than was granted");
        }
        prop_assert!(time >= at);
        at = time;
    }
    for (id, (granted, held, spent, lapsed)) in buckets {
        match book.account.buckets.get(&id) {
            Some(bucket) => {
                prop_assert_eq!((bucket.granted, bucket.held, bucket.spent), (granted, held, spent));
                prop_assert_eq!(granted, plus(plus(bucket.left(), held), spent));
            }
            None => prop_assert_eq!(granted, plus(spent, lapsed.unwrap())),
        }
    }
    prop_assert_eq!(open.len(), book.account.holds.len());
    Ok(())
}

fn selling(price: &str) -> Terms {
    let mut terms = terms(&[("tokens", "1000", "0", None)]);
    terms.meters.get_mut(&meter("tokens")).unwrap().top_up_price_per_million = amount(price);
    terms
}

fn top_up(below: &str, text: &str, limit: Option<&str>) -> AccountAction {
    let rule = TopUpRule { below: amount(below), amount: amount(text), monthly_limit: limit.map(amount) };
    change_top_up(Some(rule))
}

fn change_top_up(rule: Option<TopUpRule>) -> AccountAction {
    let command = ChangeTopUp { meter: meter("tokens"), rule };
    AccountAction::ChangeTopUp { command, currency: Currency::default() }
}

fn pay(number: u32) -> AccountAction {
    AccountAction::PayTopUp(PayTopUp { top_up: TopUpId(number), payment: format!("pi_{number}") })
}

fn decline(number: u32) -> AccountAction {
    AccountAction::DeclineTopUp(DeclineTopUp { top_up: TopUpId(number), reason: "card_declined".to_owned() })
}

/// The top-ups that events request: number, amount and price.
fn requested(events: &[AccountEvent]) -> Vec<(u32, String, String)> {
    let requests = events.iter().filter_map(|event| match event {
        AccountEvent::TopUpRequested(event) => Some((event.top_up.0, event.amount, event.price)),
        _ => None,
    });
    requests.map(|(number, amount, price)| (number, amount.to_string(), price.to_string())).collect()
}

#[test]
fn one_top_up_fills_the_gap_and_the_next_is_requested_when_little_is_left_again() {
    let (mut book, terms, now) = (Book::new(), selling("20000"), time(NOON));
    assert_eq!(requested(&book.send(now, &terms, top_up("200", "300", None)).unwrap()), []);
    assert_eq!(
        requested(&book.send(now, &terms, charge("tokens", "800")).unwrap()),
        [],
        "200 are left, which is not less"
    );
    let asked = requested(&book.send(now, &terms, charge("tokens", "0.5")).unwrap());
    assert_eq!(asked, [(1, "300".to_owned(), "6".to_owned())]);
    // One is open at a time, however little is left.
    assert_eq!(requested(&book.send(now, &terms, charge("tokens", "199.5")).unwrap()), []);
    book.send(now, &terms, pay(1)).unwrap();
    assert_eq!(book.available(now, &terms, "tokens"), amount("300"));
    for again in [pay(1), decline(1), pay(2)] {
        assert_eq!(rejection(book.send(now, &terms, again)).code, "top_up_not_open");
    }
    // A gap that one does not fill.
    let rule = top_up("1000", "300", None);
    assert_eq!(requested(&book.send(now, &terms, rule).unwrap()), [(2, "900".to_owned(), "18".to_owned())]);
    book.send(now, &terms, pay(2)).unwrap();
    assert_eq!(book.available(now, &terms, "tokens"), amount("1200"));
    // What is paid for afterwards is used last, and does not count.
    let mut later = terms.clone();
    later.meters.get_mut(&meter("tokens")).unwrap().overage = amount("1000000");
    let asked = requested(&book.send(now, &later, charge("tokens", "201")).unwrap());
    assert_eq!(asked, [(3, "300".to_owned(), "6".to_owned())]);
    book.send(now, &terms, pay(3)).unwrap();
    // What was bought does not lapse with the month, and is used after what is included.
    let april = time("2026-04-01T00:00:00Z");
    assert_eq!(book.available(april, &terms, "tokens"), amount("2299"));
    book.send(april, &terms, charge("tokens", "1000")).unwrap();
    assert_eq!(book.available(april, &terms, "tokens"), amount("1299"));
}

#[test]
fn after_a_decline_there_is_one_attempt_an_hour_at_most_and_twice_as_long_each_time() {
    let (mut book, terms) = (Book::new(), selling("20000"));
    let at = |minutes: i64| Timestamp::from_unix_ms(time(NOON).unix_ms() + minutes * 60_000);
    book.send(at(0), &terms, top_up("1500", "1000", None)).unwrap();
    assert_eq!(book.account.open_top_ups().count(), 1, "1,000 are available");
    book.send(at(0), &terms, decline(1)).unwrap();
    let mut attempts = Vec::new();
    for minute in 1..=60 * 24 {
        if let [(number, ..)] = requested(&book.send(at(minute), &terms, charge("tokens", "0.1")).unwrap()).as_slice() {
            attempts.push(minute);
            book.send(at(minute), &terms, decline(*number)).unwrap();
        }
    }
    assert_eq!(attempts, [60, 180, 420, 900]);
    let known = book.account.top_ups(&meter("tokens")).unwrap();
    assert_eq!(known.retry_at, Some(at(900 + 16 * 60)), "it is seen");
    // Another rule is another attempt; however often it is changed, there is an hour between two of them.
    assert_eq!(requested(&book.send(at(1_441), &terms, top_up("1400", "1000", None)).unwrap()).len(), 1);
    book.send(at(1_441), &terms, decline(6)).unwrap();
    for minute in 1_442..1_501 {
        let rule = top_up(&minute.to_string(), "1000", None);
        assert_eq!(requested(&book.send(at(minute), &terms, rule).unwrap()), []);
    }
    assert_eq!(requested(&book.send(at(1_501), &terms, charge("tokens", "0.1")).unwrap()).len(), 1);
    book.send(at(1_501), &terms, decline(7)).unwrap();
    // Where nothing can be used any more, it is requested all the same.
    let left = book.available(at(1_502), &terms, "tokens").to_string();
    book.send(at(1_502), &terms, charge("tokens", &left)).unwrap();
    let request = || AccountAction::RequestTopUp(RequestTopUp { meter: meter("tokens") });
    assert_eq!(book.account.meter_to_top_up(at(1_503), &terms), None);
    assert_eq!(requested(&book.send(at(1_503), &terms, request()).unwrap()), []);
    assert_eq!(book.account.meter_to_top_up(at(1_561), &terms), Some(&meter("tokens")));
    assert_eq!(requested(&book.send(at(1_561), &terms, request()).unwrap()).len(), 1);
    // One that is paid ends the pause.
    book.send(at(1_562), &terms, pay(8)).unwrap();
    assert_eq!(book.account.top_ups(&meter("tokens")).unwrap().retry_at, None);
}

#[test]
fn no_more_is_bought_in_a_month_than_its_limit() {
    let (mut book, terms, now) = (Book::new(), selling("20000"), time(NOON));
    let asked = requested(&book.send(now, &terms, top_up("2000", "400", Some("1000"))).unwrap());
    assert_eq!(asked[0].1, "800", "the gap is 1,000, of which 800 are whole amounts within the limit");
    book.send(now, &terms, pay(1)).unwrap();
    assert_eq!(requested(&book.send(now, &terms, charge("tokens", "1800")).unwrap()), []);
    let april = time("2026-04-01T00:00:00Z");
    assert_eq!(requested(&book.send(april, &terms, charge("tokens", "1")).unwrap())[0].1, "800");
    // What was declined is not counted.
    book.send(april, &terms, decline(2)).unwrap();
    let later = time("2026-04-01T01:00:00Z");
    assert_eq!(requested(&book.send(later, &terms, charge("tokens", "1")).unwrap())[0].1, "800");
}

#[test]
fn what_is_not_sold_is_not_bought_and_a_rule_is_checked() {
    let (mut book, now) = (Book::new(), time(NOON));
    let unsold = selling("0");
    assert_eq!(rejection(book.send(now, &unsold, top_up("1", "1", None))).code, "top_up_not_sold");
    let terms = selling("20000");
    for (rule, pointer) in [
        (top_up("0", "1", None), "/rule/below"),
        (top_up("1", "0", None), "/rule/amount"),
        (top_up("1", "2", Some("1")), "/rule/monthly_limit"),
    ] {
        assert_eq!(crate::testing::fields(book.send(now, &terms, rule))[0].0, pointer);
    }
    book.send(now, &terms, top_up("500", "100", None)).unwrap();
    // The plan sells none any more; what is open may still be paid.
    assert_eq!(requested(&book.send(now, &unsold, charge("tokens", "900")).unwrap()), []);
    book.send(now, &unsold, change_top_up(None)).unwrap();
    assert_eq!(requested(&book.send(now, &terms, charge("tokens", "10")).unwrap()), []);
}

#[test]
fn however_little_is_bought_it_costs_something() {
    let (mut book, terms, now) = (Book::new(), selling("2"), time(NOON));
    // Fewer than half a million tokens cost less than 1.
    let asked = requested(&book.send(now, &terms, top_up("1000.5", "2400", None)).unwrap());
    assert_eq!(asked, [(1, "501600".to_owned(), "1.0032".to_owned())]);
    let (mut book, limited) = (Book::new(), top_up("1000.5", "2400", Some("480000")));
    assert_eq!(requested(&book.send(now, &terms, limited).unwrap()), [], "the limit does not allow so many");
}
