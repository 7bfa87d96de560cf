use std::collections::BTreeMap;

use orgstream_events::{ActorType, CommandId, Draw, MeterTerms, OrgId, PlanName, UsedBy};
use proptest::prelude::*;

use super::*;
use crate::{
    account::{Account, AccountAction, AccountCommand, ChargeUsage, ReserveUsage, SettleHold, Terms},
    plan::PlanFee,
    testing::rejection,
};

fn amount(text: &str) -> Amount {
    text.parse().unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn month(text: &str) -> Month {
    text.parse().unwrap()
}

fn tokens() -> MeterName {
    "tokens".parse().unwrap()
}

/// A million tokens cost 2, and nothing is included.
fn plan(fee: &str) -> BillingTerms {
    BillingTerms {
        plan: PlanVersion { plan: PlanName::default(), version: 1 },
        since: time("2026-01-15T00:00:00Z"),
        fees: vec![PlanFee { at: Timestamp::from_unix_ms(0), monthly_fee: amount(fee) }],
        currency: Currency::default(),
    }
}

fn used(parts: &[(&str, &str, Option<&str>)]) -> MonthlyUsage {
    let mut usage = MonthlyUsage::new();
    for (of, quantity, price) in parts {
        let source = if price.is_some() { BucketSource::Overage } else { BucketSource::Allowance };
        let one =
            MeteredUse { meter: tokens(), source, price_per_million: price.map(amount), amount: amount(quantity) };
        usage.entry(month(of)).or_default().push(one);
    }
    usage
}

/// A plan that had these fees from these moments on.
fn plan_of_fees(fees: &[(&str, &str)]) -> BillingTerms {
    let fees = fees.iter().map(|(at, fee)| PlanFee { at: time(at), monthly_fee: amount(fee) });
    BillingTerms { fees: fees.collect(), ..plan("0") }
}

#[test]
fn a_fee_is_owed_from_the_month_in_which_it_was_published() {
    let terms =
        plan_of_fees(&[("2026-01-01T00:00:00Z", "0"), ("2026-04-15T00:00:00Z", "49"), ("2026-06-01T00:00:00Z", "99")]);
    let invoices = Invoices::default();
    for (of, fee) in [("2026-02", "0"), ("2026-03", "0"), ("2026-04", "49"), ("2026-05", "49"), ("2026-06", "99")] {
        assert_eq!(invoices.fee_of(month(of), &terms), amount(fee), "{of}");
        assert_eq!(invoices.owes(month(of), &terms, &MonthlyUsage::new()), fee != "0", "{of}");
    }
    let mut book = Book::default();
    assert_eq!(book.close("2026-04-16T00:00:00Z", "2026-03", &terms, &MonthlyUsage::new()), []);
}

/// Invoices that remember all that happened to them.
#[derive(Default)]
struct Book {
    invoices: Invoices,
    lines: BTreeMap<InvoiceNumber, InvoiceFinalized>,
}

impl Book {
    fn send(&mut self, now: Timestamp, command: InvoiceCommand) -> Result<Vec<InvoiceEvent>, InvoiceError> {
        let org = OrgId::fresh(1, [1; 10]);
        let context = DecisionContext { now, command_id: CommandId::from_idempotency_key(org, "x"), org };
        let events = self.invoices.decide(command, &context)?;
        for event in &events {
            self.invoices.apply(event);
            if let InvoiceEvent::Finalized(event) = event {
                assert!(self.lines.insert(event.number, event.clone()).is_none(), "{event:?} is final twice");
            }
        }
        Ok(events)
    }

    fn close(&mut self, now: &str, of: &str, terms: &BillingTerms, used: &MonthlyUsage) -> Vec<InvoiceEvent> {
        let command = CloseMonth { month: month(of) };
        self.send(time(now), InvoiceCommand::Close { command, terms: terms.clone(), used: used.clone() }).unwrap()
    }

    fn end(&mut self, now: &str, terms: &BillingTerms, used: &MonthlyUsage) -> Vec<InvoiceEvent> {
        let command = EndBilling { reason: "test".to_owned() };
        self.send(time(now), InvoiceCommand::End { command, terms: terms.clone(), used: used.clone() }).unwrap()
    }

    /// The lines of an invoice: type, month, quantity and amount.
    fn lines(&self, number: u32) -> Vec<(InvoiceLineType, String, String, String)> {
        let lines = self.lines[&InvoiceNumber(number)].lines.iter();
        let texts = |line: &InvoiceLine| (line.month.to_string(), line.quantity.to_string(), line.amount.to_string());
        lines
            .map(|line| {
                let (month, quantity, amount) = texts(line);
                (line.line_type, month, quantity, amount)
            })
            .collect()
    }

    fn status(&self, number: u32) -> InvoiceStatus {
        self.invoices.all()[&InvoiceNumber(number)].status
    }
}

fn line(
    line_type: InvoiceLineType,
    of: &str,
    quantity: &str,
    money: &str,
) -> (InvoiceLineType, String, String, String) {
    (line_type, of.to_owned(), quantity.to_owned(), money.to_owned())
}

const FEE: InvoiceLineType = InvoiceLineType::Fee;
const USAGE: InvoiceLineType = InvoiceLineType::Usage;
const ADJUSTMENT: InvoiceLineType = InvoiceLineType::Adjustment;

#[test]
fn a_month_is_a_draft_for_a_day_and_final_then() {
    let (mut book, terms) = (Book::default(), plan("0"));
    let first = used(&[("2026-03", "500000", None), ("2026-03", "1000000", Some("2"))]);
    let close = CloseMonth { month: month("2026-03") };
    let early = InvoiceCommand::Close { command: close, terms: terms.clone(), used: first.clone() };
    let refused = rejection(book.send(time("2026-03-31T23:59:59.999Z"), early));
    assert_eq!((refused.code, refused.kind.status()), ("month_not_over", 409));
    assert_eq!(refused.figures, [("ends_at", "2026-04-01T00:00:00.000Z".to_owned())]);
    assert_eq!(book.close("2026-04-01T00:00:00Z", "2026-03", &terms, &first).len(), 1);
    assert_eq!(book.status(1), InvoiceStatus::Draft);
    assert_eq!(book.close("2026-04-01T23:59:59.999Z", "2026-03", &terms, &first), []);
    // What was held at the end of the month lands in it.
    let late = used(&[("2026-03", "500000", None), ("2026-03", "1000001", Some("2"))]);
    assert_eq!(book.close("2026-04-02T00:00:00Z", "2026-03", &terms, &late).len(), 1);
    assert_eq!(book.lines(1), [line(USAGE, "2026-03", "500000", "0"), line(USAGE, "2026-03", "1000001", "2.000002")]);
    assert_eq!(book.invoices.all()[&InvoiceNumber(1)].total, amount("2.000002"));
    for now in ["2026-04-02T00:00:00Z", "2026-05-07T00:00:00Z"] {
        assert_eq!(book.close(now, "2026-03", &terms, &late), []);
    }
}

#[test]
fn usage_that_comes_later_is_an_adjustment_on_the_next_invoice_and_on_no_other() {
    let (mut book, terms) = (Book::default(), plan("0"));
    book.close("2026-04-02T00:00:00Z", "2026-03", &terms, &used(&[("2026-03", "1000000", Some("2"))]));
    let later =
        used(&[("2026-03", "1500000", Some("2")), ("2026-04", "1", Some("2")), ("2026-04", "3", Some("1000000"))]);
    book.close("2026-05-02T00:00:00Z", "2026-04", &terms, &later);
    assert_eq!(
        book.lines(2),
        [
            line(ADJUSTMENT, "2026-03", "500000", "1"),
            line(USAGE, "2026-04", "1", "0.000002"),
            line(USAGE, "2026-04", "3", "3"),
        ]
    );
    // A process that has read the account earlier than the others bills nothing again.
    for stale in [used(&[]), used(&[("2026-03", "1200000", Some("2"))]), later] {
        assert_eq!(book.close("2026-06-02T00:00:00Z", "2026-05", &terms, &stale), []);
    }
}

#[test]
fn a_draft_that_nobody_finished_is_final_before_the_next_is_opened() {
    let (mut book, terms) = (Book::default(), plan("10"));
    book.close("2026-03-01T00:00:00Z", "2026-02", &terms, &used(&[]));
    let events = book.close("2026-04-01T00:00:00Z", "2026-03", &terms, &used(&[("2026-03", "1000000", Some("2"))]));
    assert_eq!(events.len(), 2);
    assert_eq!((book.status(1), book.status(2)), (InvoiceStatus::Final, InvoiceStatus::Draft));
    assert_eq!(book.lines(1), [line(FEE, "2026-02", "1", "10")]);
}

#[test]
fn the_fee_of_a_month_is_owed_once_and_not_for_a_time_before_the_plan() {
    let (mut book, terms) = (Book::default(), plan("10"));
    assert_eq!(book.close("2026-01-02T00:00:00Z", "2025-12", &terms, &used(&[])), []);
    book.close("2026-02-01T00:00:00Z", "2026-01", &terms, &used(&[]));
    // Another fee from now on is not that of the month that is over.
    book.close("2026-02-02T00:00:00Z", "2026-01", &plan("99"), &used(&[]));
    assert_eq!(book.lines(1), [line(FEE, "2026-01", "1", "10")]);
    assert_eq!(book.close("2026-02-02T00:00:00Z", "2026-01", &terms, &used(&[])), []);
}

#[test]
fn nothing_is_invoiced_where_nothing_is_owed() {
    let (mut book, terms) = (Book::default(), plan("0"));
    for free in [used(&[]), used(&[("2026-03", "500000", None)]), used(&[("2026-03", "0.1", Some("0.000001"))])] {
        assert_eq!(book.close("2026-04-02T00:00:00Z", "2026-03", &terms, &free), []);
    }
    assert!(!book.invoices.owes(month("2026-03"), &terms, &used(&[("2026-03", "500000", None)])));
    assert!(book.invoices.owes(month("2026-03"), &terms, &used(&[("2026-03", "1", Some("2"))])));
    assert!(!book.invoices.owes(month("2026-02"), &terms, &used(&[("2026-03", "1", Some("2"))])));
    assert!(book.invoices.owes(month("2026-03"), &plan("1"), &used(&[])));
}

#[test]
fn s5_30_the_final_invoice_is_what_is_unbilled_and_comes_once() {
    let (mut book, terms) = (Book::default(), plan("0"));
    book.close("2026-04-02T00:00:00Z", "2026-03", &terms, &used(&[("2026-03", "1000000", Some("2"))]));
    let last = used(&[("2026-03", "1000001", Some("2")), ("2026-04", "250000", Some("2"))]);
    for attempt in 0..20 {
        let events = book.end("2026-04-20T12:00:00Z", &terms, &last);
        assert_eq!(events.len(), if attempt == 0 { 3 } else { 0 }, "{events:?}");
    }
    assert_eq!(book.lines(2), [line(ADJUSTMENT, "2026-03", "1", "0.000002"), line(USAGE, "2026-04", "250000", "0.5")]);
    // What is used after that is on the invoice of its month.
    let after = used(&[("2026-03", "1000001", Some("2")), ("2026-04", "260000", Some("2"))]);
    book.close("2026-05-02T00:00:00Z", "2026-04", &terms, &after);
    assert_eq!(book.lines(3), [line(USAGE, "2026-04", "10000", "0.02")]);
}

#[test]
fn after_the_end_no_fee_is_owed_until_there_is_a_plan_again() {
    let (mut book, terms) = (Book::default(), plan("10"));
    book.close("2026-04-01T00:00:00Z", "2026-03", &terms, &used(&[]));
    // The draft and the month that has begun.
    assert_eq!(book.end("2026-04-01T12:00:00Z", &terms, &used(&[])).len(), 4);
    assert_eq!(book.lines(1), [line(FEE, "2026-03", "1", "10")]);
    assert_eq!(book.lines(2), [line(FEE, "2026-04", "1", "10")]);
    assert_eq!(book.close("2026-05-02T00:00:00Z", "2026-04", &terms, &used(&[])), []);
    assert_eq!(book.close("2026-06-02T00:00:00Z", "2026-05", &terms, &used(&[])), []);
    let again = BillingTerms { since: time("2026-06-10T00:00:00Z"), ..terms };
    book.close("2026-07-02T00:00:00Z", "2026-06", &again, &used(&[]));
    assert_eq!(book.lines(3), [line(FEE, "2026-06", "1", "10")]);
}

#[test]
fn an_invoice_is_paid_or_void_for_good() {
    let (mut book, terms) = (Book::default(), plan("10"));
    let pay = |number, payment: &str| {
        InvoiceCommand::MarkPaid(MarkInvoicePaid { number: InvoiceNumber(number), payment: payment.to_owned() })
    };
    let void =
        |number| InvoiceCommand::Void(VoidInvoice { number: InvoiceNumber(number), reason: "goodwill".to_owned() });
    let now = time("2026-04-03T00:00:00Z");
    book.close("2026-04-01T00:00:00Z", "2026-03", &terms, &used(&[]));
    for early in [pay(1, "p"), void(1)] {
        assert_eq!(rejection(book.send(now, early)).code, "invoice_not_final");
    }
    for nowhere in [pay(2, "p"), void(0)] {
        assert_eq!(rejection(book.send(now, nowhere)).kind.status(), 404);
    }
    assert_eq!(rejection(book.send(now, pay(1, " "))).errors[0].pointer, "/payment");
    book.close("2026-04-02T00:00:00Z", "2026-03", &terms, &used(&[]));
    for attempt in 0..3 {
        assert_eq!(book.send(now, pay(1, "p")).unwrap().len(), usize::from(attempt == 0));
    }
    for other in [pay(1, "q"), void(1)] {
        assert_eq!(rejection(book.send(now, other)).code, "invoice_settled");
    }
    book.close("2026-05-02T00:00:00Z", "2026-04", &terms, &used(&[]));
    for attempt in 0..3 {
        assert_eq!(book.send(now, void(2)).unwrap().len(), usize::from(attempt == 0));
    }
    assert_eq!(rejection(book.send(now, pay(2, "p"))).code, "invoice_settled");
    assert_eq!((book.status(1), book.status(2)), (InvoiceStatus::Paid, InvoiceStatus::Void));
    // What a void invoice had is not billed again.
    assert_eq!(book.close("2026-05-03T00:00:00Z", "2026-04", &terms, &used(&[])), []);
}

/// What may happen to an account and its invoices, in any order and at any time.
#[derive(Debug, Clone)]
enum Step {
    Charge { micros: u64 },
    Reserve { micros: u64 },
    Settle,
    Close { back: u32, stale: bool },
    End,
}

fn steps() -> impl Strategy<Value = Vec<(i64, usize, Step)>> {
    let micros = prop_oneof![0..2_000_u64, 0..900_000_u64];
    let step = prop_oneof![
        4 => micros.clone().prop_map(|micros| Step::Charge { micros }),
        2 => micros.prop_map(|micros| Step::Reserve { micros }),
        2 => Just(Step::Settle),
        4 => (1..3_u32, any::<bool>()).prop_map(|(back, stale)| Step::Close { back, stale }),
        1 => Just(Step::End),
    ];
    let passes = prop_oneof![3 => 0..80_000_000_i64, 2 => 0..600_000_000_i64, 1 => -90_000_000..0_i64];
    prop::collection::vec((passes, 0..3_usize, step), 1..100)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever happens and whenever: what was used is on an invoice or unbilled, to the unit, and lines add up.
    #[test]
    fn lines_and_what_is_unbilled_are_what_was_used(steps in steps()) {
        let org = OrgId::fresh(1, [1; 10]);
        let account_terms = |price: &str| {
            let terms = MeterTerms {
                included: amount("0.3"), overage: amount("5"), price_per_million: amount(price), cap: None,
                top_up_price_per_million: Amount::ZERO,
            };
            let plan = PlanVersion { plan: PlanName::default(), version: 1 };
            Terms { plan, meters: BTreeMap::from([(tokens(), terms)]), concurrency: None, trial_ends_at: None }
        };
        let plans = [
            (account_terms("2000000"), plan("0")), (account_terms("333333.3"), plan("7")), (account_terms("0"), plan("0")),
        ];
        let (mut account, mut book, mut drawn) = (Account::default(), Book::default(), Amount::ZERO);
        let (mut now, mut stale) = (time("2026-01-30T00:00:00Z"), MonthlyUsage::new());
        for (number, (passes, of_plan, step)) in steps.into_iter().enumerate() {
            now = Timestamp::from_unix_ms(now.unix_ms() + passes);
            let (terms, billing) = &plans[of_plan];
            let command = match step {
                Step::Charge { micros } => Some(AccountAction::Charge(ChargeUsage {
                    meter: tokens(), amount: Amount::from_micros(micros).unwrap(), kind: None, model: None,
                })),
                Step::Reserve { micros } => Some(AccountAction::Reserve(ReserveUsage {
                    meter: tokens(), amount: Amount::from_micros(micros).unwrap(), seconds: Some(80_000), kind: None, model: None,
                })),
                Step::Settle => account.holds().iter().next().map(|(hold, held)| {
                    AccountAction::Settle(SettleHold { hold: *hold, amount: held.amount() })
                }),
                Step::Close { .. } | Step::End => None,
            };
            let command_id = CommandId::from_idempotency_key(org, &number.to_string());
            if let Some(command) = command {
                let by = UsedBy { actor_type: ActorType::ApiKey, id: "key_1".to_owned() };
                let command = AccountCommand { terms: terms.clone().into(), by, command };
                for event in account.decide(command, &DecisionContext { now, command_id, org }).unwrap_or_default() {
                    if let orgstream_events::AccountEvent::Settled(event) = &event {
                        drawn = event.draws.iter().map(|Draw { amount, .. }| *amount).fold(drawn, plus);
                    }
                    account.apply(&event);
                }
            }
            let used = account.used().clone();
            match step {
                Step::Close { back, stale: is_stale } => {
                    let mut of = Month::of(now);
                    for _ in 0..back {
                        of = of.previous();
                    }
                    let used = if is_stale { stale.clone() } else { used.clone() };
                    let command = CloseMonth { month: of };
                    let _ = book.send(now, InvoiceCommand::Close { command, terms: billing.clone(), used });
                }
                Step::End => {
                    let command = EndBilling { reason: "x".to_owned() };
                    book.send(now, InvoiceCommand::End { command, terms: billing.clone(), used: used.clone() }).unwrap();
                    // Nothing that was used by now and has a price is left, but what is too little for any money.
                    for (month, uses) in &used {
                        for one in uses.iter().filter(|one| one.price_per_million.is_some()) {
                            let left = book.invoices.unbilled(*month, one).priced(one.price_per_million.unwrap()).unwrap();
                            let is_little = left.micros() <= 1 || *month > Month::of(now);
                            prop_assert!(is_little, "{month}: {one:?} {left}");
                        }
                    }
                }
                Step::Charge { .. } | Step::Reserve { .. } | Step::Settle => stale.clone_from(&used),
            }
            let mut folded: BTreeMap<(Month, BucketSource, Option<Amount>), Amount> = BTreeMap::new();
            let mut numbers = 1..;
            for number in book.invoices.all().keys() {
                prop_assert_eq!(number.0, numbers.next().unwrap());
            }
            for (number, event) in &book.lines {
                let sum = event.lines.iter().map(|line| line.amount).fold(Amount::ZERO, plus);
                prop_assert_eq!(sum, event.total);
                prop_assert_eq!(book.invoices.all()[number].total, event.total);
                prop_assert!(!event.total.is_zero());
                for line in &event.lines {
                    let Some(source) = line.source else { continue };
                    prop_assert_eq!(line.quantity.priced(line.price_per_million.unwrap_or_default()), Some(line.amount));
                    let known = folded.entry((line.month, source, line.price_per_million)).or_default();
                    *known = plus(*known, line.quantity);
                }
            }
            let mut all = Amount::ZERO;
            for (month, uses) in &used {
                for one in uses {
                    let billed = folded.remove(&(*month, one.source, one.price_per_million)).unwrap_or_default();
                    prop_assert_eq!(plus(billed, book.invoices.unbilled(*month, one)), one.amount);
                    all = plus(all, one.amount);
                }
            }
            prop_assert!(all <= drawn);
            let is_free = |key: &(Month, BucketSource, Option<Amount>)| key.2.is_none();
            prop_assert!(folded.keys().all(is_free), "billed and never used: {folded:?}");
        }
    }
}
