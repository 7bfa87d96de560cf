//! Accounts at the boundaries of months: from several processes, in whatever time zone, and with usage that comes late.
#![cfg(test)]

use std::{collections::BTreeMap, process::Command};

use orgstream_domain::{
    Aggregate, ChargeUsage, CloseMonth, DecisionContext, ReserveUsage, SettleHold,
    account::{Account, AccountAction, AccountCommand, AccountError, Terms},
    invoice::{BillingTerms, InvoiceCommand, Invoices},
    plan::PlanFee,
};
use orgstream_events::{
    AccountEvent, Actor, ActorType, AggregateId, Amount, BucketSource, CommandId, CommitDraft, Context, Currency,
    HoldId, InvoiceEvent, MeterName, MeterTerms, Month, OrgId, PlanName, PlanVersion, Salt, Timestamp, UsedBy,
};
use proptest::prelude::*;

const HOUR_MS: i64 = 3_600_000;
/// What is included in a month, and the size of a use, in units.
const INCLUDED: u64 = 10;
/// Set in a child, which prints what the parent compares.
const CHILD: &str = "ORGSTREAM_TEST_PRINT";

fn tokens() -> MeterName {
    "tokens".parse().unwrap()
}

fn amount(text: &str) -> Amount {
    text.parse().unwrap()
}

fn org() -> OrgId {
    OrgId::fresh(1, [1; 10])
}

fn command_id(number: usize) -> CommandId {
    CommandId::from_idempotency_key(org(), &number.to_string())
}

fn plan() -> PlanVersion {
    PlanVersion { plan: PlanName::default(), version: 1 }
}

/// So many tokens are included, and so many more cost 2 a million.
fn terms(included: Amount, overage: Amount) -> Terms {
    let tokens_of = MeterTerms { included, overage, price_per_million: amount("2"), ..MeterTerms::default() };
    Terms { plan: plan(), meters: BTreeMap::from([(tokens(), tokens_of)]), concurrency: None, trial_ends_at: None }
}

fn decide(
    account: &Account,
    terms: &Terms,
    number: usize,
    now: Timestamp,
    command: AccountAction,
) -> Result<Vec<AccountEvent>, AccountError> {
    let by = UsedBy { actor_type: ActorType::ApiKey, id: "key_1".to_owned() };
    let context = DecisionContext { now, command_id: command_id(number), org: org() };
    account.decide(AccountCommand { terms: terms.clone().into(), by, command }, &context)
}

fn take_in(account: &mut Account, events: &[AccountEvent]) {
    for event in events {
        account.apply(event);
    }
}

fn charge(text: &str) -> AccountAction {
    AccountAction::Charge(ChargeUsage { meter: tokens(), amount: amount(text), kind: None, model: None })
}

fn reserve(text: &str, seconds: u32) -> AccountAction {
    let (meter, amount, seconds) = (tokens(), amount(text), Some(seconds));
    AccountAction::Reserve(ReserveUsage { meter, amount, seconds, kind: None, model: None })
}

fn used_in(account: &Account, month: Month) -> u64 {
    account.used().get(&month).into_iter().flatten().map(|used| used.amount.micros()).sum()
}

/// A process: what it has read of the log, and how far its clock is off, in milliseconds.
#[derive(Default)]
struct Process {
    account: Account,
    read: usize,
    off: i64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    // Four processes with clocks of their own serve one account over the end of a month. Each decides by what it has read, and
    // the log refuses what was decided by less than all of it.
    #[test]
    fn no_use_is_lost_or_in_two_months_from_several_processes(
        calls in proptest::collection::vec((0..4_usize, 0..40_i64), 30..80),
        clocks in proptest::array::uniform4(-5..5_i64),
    ) {
        let month: Month = "2027-02".parse().unwrap();
        let (terms, end) = (terms(Amount::from_micros(INCLUDED).unwrap(), Amount::ZERO), month.end().unix_ms());
        let mut processes = clocks.map(|off| Process { off, ..Process::default() });
        let (mut log, mut now, mut accepted) = (Vec::<Vec<AccountEvent>>::new(), end - 400, 0);
        for (number, (process, pause)) in calls.into_iter().enumerate() {
            now += pause;
            let process = &mut processes[process];
            let moment = Timestamp::from_unix_ms(now + process.off);
            loop {
                let decided = decide(&process.account, &terms, number, moment, charge("0.000001"));
                // A refusal counts as little as an event before everything was read.
                if process.read == log.len() {
                    if let Ok(events) = decided {
                        log.push(events);
                        accepted += 1;
                    }
                    break;
                }
                for events in &log[process.read..] {
                    take_in(&mut process.account, events);
                }
                process.read = log.len();
            }
        }
        let mut folded = Account::default();
        for events in &log {
            take_in(&mut folded, events);
        }
        let (before, after) = (used_in(&folded, month), used_in(&folded, month.next()));
        prop_assert_eq!(before + after, accepted, "each use is in one month");
        prop_assert!(before <= INCLUDED && after <= INCLUDED, "{} and {}", before, after);
        // The month of a use is that of the account's clock, which never goes back.
        let mut months: Vec<Month> = log.iter().flatten().filter_map(|event| match event {
            AccountEvent::Settled(event) => Some(Month::of(event.reserved_at)),
            _ => None,
        }).collect();
        prop_assert_eq!(months.len() as u64, accepted);
        let sorted = { let mut sorted = months.clone(); sorted.sort_unstable(); sorted };
        prop_assert_eq!(&months, &sorted);
        months.dedup();
        prop_assert!(months.len() <= 2);
    }
}

/// What a command's events are in the log, in hexadecimal.
fn bytes(number: usize, version_before: u64, at: Timestamp, events: Vec<AccountEvent>) -> String {
    let draft = CommitDraft {
        org: org(),
        aggregate: AggregateId::Account(org()),
        version_before,
        command_id: command_id(number),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: at,
        recorded_at: at,
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events: events.into_iter().map(Account::wrap).collect(),
    };
    let commit = draft.seal(|| Salt([7; 32])).unwrap().encode().unwrap();
    commit.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a year of commands makes of an account, hour by hour around each end of a month and each change of clocks, as bytes.
fn a_year() -> String {
    let (terms, mut account, mut lines) = (terms(amount("100"), amount("50")), Account::default(), String::new());
    let mut version = 0;
    let months = (1..=12).map(|month| format!("2026-{month:02}").parse::<Month>().unwrap().end().unix_ms());
    // Clocks change in Juneau and in Europe, and nowhere in an account.
    let changes = ["2026-03-08T10:00:00Z", "2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-11-01T10:00:00Z"];
    let changes = changes.iter().map(|text| text.parse::<Timestamp>().unwrap().unix_ms());
    let mut moments: Vec<i64> = months
        .chain(changes)
        .flat_map(|at| (-14..=14).flat_map(move |hour| [at + hour * HOUR_MS - 1, at + hour * HOUR_MS]))
        .collect();
    moments.sort_unstable();
    for (number, at) in moments.into_iter().enumerate() {
        let command = if number % 3 == 0 { reserve("7", 7_200) } else { charge("3.5") };
        match decide(&account, &terms, number, Timestamp::from_unix_ms(at), command) {
            Ok(events) => {
                take_in(&mut account, &events);
                lines += &bytes(number, version, Timestamp::from_unix_ms(at), events.clone());
                version += events.len() as u64;
            }
            Err(error) => lines += &error.to_string(),
        }
        lines.push('\n');
    }
    lines + &serde_json::to_string(&account).unwrap()
}

#[test]
fn the_same_events_follow_in_every_time_zone() {
    if std::env::var_os(CHILD).is_some() {
        println!("{CHILD}{}", a_year().replace('\n', "\u{1}"));
        return;
    }
    let of_child = |zone: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "the_same_events_follow_in_every_time_zone", "--nocapture"]);
        let output = child.env("TZ", zone).env(CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once(CHILD)).unwrap_or_else(|| panic!("{text}"));
        line.1.replace('\u{1}', "\n")
    };
    let here = a_year();
    assert!(here.lines().count() > 500 && here.contains("more at 2026-04-01T00:00:00.000Z"), "{here}");
    for zone in ["UTC", "America/Juneau", "Pacific/Kiritimati"] {
        assert!(of_child(zone) == here, "another result in {zone}");
    }
}

#[test]
fn late_usage_is_on_one_invoice_or_refused_with_what_it_was_held_for() {
    let month: Month = "2026-03".parse().unwrap();
    let at = |after_the_end: i64| Timestamp::from_unix_ms(month.end().unix_ms() + after_the_end);
    let terms = terms(Amount::ZERO, amount("1000000"));
    let (mut account, mut invoices) = (Account::default(), Invoices::default());
    // Three runs that are under way at the end of the month, as long as a hold may last.
    for number in 0..3 {
        let events = decide(&account, &terms, number, at(-1), reserve("1000", 86_400)).unwrap();
        take_in(&mut account, &events);
    }
    let settle = |account: &mut Account, number: usize, now: Timestamp| {
        let hold = HoldId::derive(command_id(number));
        let command = AccountAction::Settle(SettleHold { hold, amount: amount("900") });
        decide(account, &terms, 10 + number, now, command).map(|events| take_in(account, &events))
    };
    let billing = BillingTerms {
        plan: plan(),
        since: at(-40 * 24 * HOUR_MS),
        fees: vec![PlanFee { at: Timestamp::from_unix_ms(0), monthly_fee: Amount::ZERO }],
        currency: Currency::default(),
    };
    let mut billed = Vec::new();
    let mut close = |account: &Account, invoices: &mut Invoices, of: Month, now: Timestamp| {
        let command = CloseMonth { month: of };
        let command = InvoiceCommand::Close { command, terms: billing.clone(), used: account.used().clone() };
        let context = DecisionContext { now, command_id: command_id(100), org: org() };
        for event in invoices.decide(command, &context).unwrap() {
            invoices.apply(&event);
            if let InvoiceEvent::Finalized(event) = event {
                billed.extend(event.lines.iter().map(|line| (event.number, line.month, line.quantity)));
            }
        }
    };
    close(&account, &mut invoices, month, at(0));
    // An hour after the end it is still usage of the month.
    settle(&mut account, 0, at(HOUR_MS)).unwrap();
    close(&account, &mut invoices, month, at(2 * HOUR_MS));
    // A day and an hour, or forty days, after it nothing is held any more.
    for (number, late) in [(1, 25 * HOUR_MS), (2, 40 * 24 * HOUR_MS)] {
        close(&account, &mut invoices, month, at(late));
        assert!(matches!(settle(&mut account, number, at(late)), Err(AccountError::HoldNotOpen(_))));
    }
    // What is used then belongs to that moment, and its month.
    let events = decide(&account, &terms, 20, at(40 * 24 * HOUR_MS), charge("5")).unwrap();
    take_in(&mut account, &events);
    let may = month.next().next();
    close(&account, &mut invoices, may, Timestamp::from_unix_ms(may.end().unix_ms() + 25 * HOUR_MS));
    let quantities: Vec<_> = billed.iter().map(|(number, of, quantity)| (number.0, *of, *quantity)).collect();
    assert_eq!(quantities, [(1, month, amount("900")), (2, may, amount("5"))]);
    let all: u64 = account.used().values().flatten().map(|used| used.amount.micros()).sum();
    assert_eq!(all, amount("905").micros());
    assert!(account.used().values().flatten().all(|used| used.source == BucketSource::Overage));
}
