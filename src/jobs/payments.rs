//! The loop that tells the payment provider what the log says: customers, invoices, top-ups, and ends of billing.
//!
//! The log is the list of what is to be done: each step that the provider has taken is an event, and what has none is done again.
//! So nothing is lost while the provider is down, and any number of processes may run it; the provider makes each thing once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use metrics::counter;
use orgstream_domain::{
    Command, DeclineTopUp, LinkBillingCustomer, MarkInvoicePaid, NoteBillingCustomerReleased, NoteInvoicePushed,
    NoteInvoiceWithdrawn, PayTopUp, RequestTopUp,
    account::{MAX_DECLINE_REASON, OpenTopUp},
    invoice::{Invoices, ProviderStep},
};
use orgstream_events::{AggregateType, Chain, MeterName, OrgId, TopUpId};
use orgstream_stream::{Log, StreamError};
use rand::seq::SliceRandom;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::payments::{Charge, Collection, Item, Payable, Payment, PaymentError, PaymentProvider, Withdrawal},
    clock::now,
    commands::{
        accounts::AccountState,
        handler::CommandHandler,
        request::{Caller, CommandError, Request},
    },
};

/// The polling interval.
const EVERY: Duration = Duration::from_secs(5);
/// The pause after a failure, doubled with each, and the longest.
const PAUSE: Duration = Duration::from_secs(30);
const MAX_PAUSE: Duration = Duration::from_hours(1);
/// The time after which an organization with a rule for top-ups is looked at though nothing changed: a pause may have ended, or a
/// month.
const TOP_UPS: Duration = Duration::from_secs(60);
/// The time after which the provider is asked about invoices that it collects: a report may have been lost.
const ASKED: Duration = Duration::from_hours(6);
/// The number of organizations that are seen to concurrently.
const MAX_CONCURRENCY: usize = 8;
/// The most steps for one organization in one round.
const MAX_STEPS: usize = 20;
/// The time after which a top-up that is neither paid nor declined is withdrawn, in milliseconds: a day.
const PENDING_MS: i64 = 86_400_000;
/// The code of a top-up of an organization that is being deleted, which needs none.
const BEING_DELETED: &str = "organization_being_deleted";
/// The code of a command to an organization that has ended.
const DELETED: &str = "organization_deleted";
/// The name of the program as the caller of these commands.
const NAME: &str = "payments";

/// The reason why a step was not taken.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Provider(#[from] PaymentError),
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// What a process knows of the organizations' invoices and accounts.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<OrgId, Known>);

#[derive(Debug, Default)]
struct Known {
    /// The messages of both that were seen to.
    lengths: [u64; 2],
    /// When it is looked at again though nothing changed.
    again: Option<Instant>,
    /// The pause after a failure: until it is over, nothing is done.
    pause: Option<(Instant, Duration)>,
    /// When the provider was asked about what it collects.
    asked: Option<Instant>,
}

impl Known {
    fn is_due(&self, lengths: [u64; 2], now: Instant) -> bool {
        match self.pause {
            Some((until, _)) => until <= now,
            None => lengths != self.lengths || self.again.is_some_and(|at| at <= now),
        }
    }

    fn wait(&mut self, now: Instant) -> Duration {
        let pause = self.pause.map_or(PAUSE, |(_, pause)| (pause * 2).min(MAX_PAUSE));
        self.pause = Some((now + pause, pause));
        pause
    }

    fn is_to_ask(&self, now: Instant) -> bool {
        self.asked.is_none_or(|asked| asked + ASKED <= now)
    }
}

/// How an organization was left.
#[derive(Debug, Default)]
struct Left {
    /// The first error. The other steps were taken all the same.
    error: Option<StepError>,
    /// Whether something is left to do, or a payment is under way.
    is_unfinished: bool,
    /// Whether something may become due by the time alone.
    has_top_ups: bool,
    /// Whether the provider collects something.
    has_collected: bool,
}

impl Left {
    fn take<T>(&mut self, taken: Result<T, impl Into<StepError>>) -> Option<T> {
        taken.map_err(|error| self.error.get_or_insert(error.into())).ok()
    }
}

/// Tells the provider until `stop`.
pub async fn run(log: &Log, handler: &CommandHandler, provider: &dyn PaymentProvider, stop: CancellationToken) {
    let mut seen = Seen::default();
    while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
        match stop.run_until_cancelled(round(log, handler, provider, Instant::now(), &mut seen)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "what is to be collected cannot be looked for at the moment");
            }
        }
    }
}

/// Takes the steps that are due, of every organization whose invoices or account have changed.
pub async fn round(
    log: &Log,
    handler: &CommandHandler,
    provider: &dyn PaymentProvider,
    now: Instant,
    seen: &mut Seen,
) -> Result<(), StreamError> {
    let mut lengths = BTreeMap::<OrgId, [u64; 2]>::new();
    let mut missing = None;
    for shard in log.shards() {
        for (nth, aggregate) in [AggregateType::Invoice, AggregateType::Account].into_iter().enumerate() {
            // The organizations of the other shards do not wait for this one.
            match log.lengths_of(shard, aggregate).await {
                Ok(found) => {
                    for (org, length) in found {
                        if let Some(place) = lengths.entry(org).or_default().get_mut(nth) {
                            *place = length;
                        }
                    }
                }
                Err(error) => missing = Some(error),
            }
        }
    }
    lengths.retain(|org, lengths| seen.0.entry(*org).or_default().is_due(*lengths, now));
    // Several processes begin at different places, and so share the work.
    let mut due: Vec<_> = lengths.into_iter().collect();
    due.shuffle(&mut rand::rng());
    let due: Vec<_> =
        due.into_iter().map(|(org, lengths)| (org, lengths, seen.0.entry(org).or_default().is_to_ask(now))).collect();
    let mut steps = stream::iter(due)
        .map(|(org, lengths, asks)| async move { (org, lengths, asks, see_to(handler, provider, org, asks).await) })
        .buffer_unordered(MAX_CONCURRENCY);
    while let Some((org, lengths, asks, left)) = steps.next().await {
        let known = seen.0.entry(org).or_default();
        let Left { error, is_unfinished, has_top_ups, has_collected } = left;
        if asks {
            known.asked = Some(now);
        }
        if let Some(error) = error {
            let pause = known.wait(now);
            counter!("orgstream_payment_failures_total").increment(1);
            tracing::warn!(
                org.id = %org, error = %Chain(&error), pause_s = pause.as_secs(),
                "a step at the payment provider failed, and is taken again later"
            );
        } else if is_unfinished {
            known.wait(now);
        } else {
            (known.pause, known.lengths) = (None, lengths);
            let again = [(has_top_ups, TOP_UPS), (has_collected, ASKED)];
            known.again = again.into_iter().filter(|(is, _)| *is).map(|(_, after)| now + after).min();
        }
    }
    missing.map_or(Ok(()), Err)
}

/// Takes what is due for one organization: a step that fails keeps none of the others from being taken.
async fn see_to(handler: &CommandHandler, provider: &dyn PaymentProvider, org: OrgId, asks: bool) -> Left {
    let mut left = Left::default();
    if let Err(error) = top_up(handler, provider, org, &mut left).await {
        left.take(Err::<(), _>(error));
    }
    if let Err(error) = tell(handler, provider, org, asks, &mut left).await {
        left.take(Err::<(), _>(error));
    }
    left
}

/// Collects the top-ups that are open, after requesting one that no command has requested.
async fn top_up(
    handler: &CommandHandler,
    provider: &dyn PaymentProvider,
    org: OrgId,
    left: &mut Left,
) -> Result<(), StepError> {
    let Some(AccountState { account, entitlements, .. }) = handler.account_of(org).await? else { return Ok(()) };
    left.has_top_ups = account.has_top_ups();
    let terms = entitlements.terms();
    let meter =
        left.has_top_ups.then(|| account.as_of(now(), &terms).meter_to_top_up(now(), &terms).cloned()).flatten();
    if let Some(meter) = meter {
        note_step(handler, org, Command::from(RequestTopUp { meter }).into()).await?;
        // It is collected with the next round, which sees the event.
    }
    if account.open_top_ups().next().is_none() {
        return Ok(());
    }
    let Some(invoices) = with_customer(handler, provider, org, |_| true).await? else { return Ok(()) };
    let Some(customer) = invoices.customer() else { return Ok(()) };
    for (meter, open) in account.open_top_ups() {
        match left.take(charge(handler, provider, org, customer.to_owned(), meter, open).await) {
            Some(Some(note)) => {
                left.take(note_step(handler, org, note).await);
            }
            Some(None) => left.is_unfinished = true,
            None => {}
        }
    }
    Ok(())
}

/// Returns an organization's invoices, after linking a customer where there is none and `is_needed` says so.
async fn with_customer(
    handler: &CommandHandler,
    provider: &dyn PaymentProvider,
    org: OrgId,
    is_needed: impl FnOnce(&Invoices) -> bool,
) -> Result<Option<Invoices>, StepError> {
    let read = async || handler.invoices_of(org).await.map(|state| state.map(|state| state.invoices));
    let Some(invoices) = read().await? else { return Ok(None) };
    if invoices.customer().is_some() || !is_needed(&invoices) {
        return Ok(Some(invoices));
    }
    let step = take(handler, provider, org, ProviderStep::Customer).await?;
    note_step(handler, org, step).await?;
    Ok(read().await?)
}

/// Tells the provider of invoices, and asks it about those that it collects.
async fn tell(
    handler: &CommandHandler,
    provider: &dyn PaymentProvider,
    org: OrgId,
    asks: bool,
    left: &mut Left,
) -> Result<(), StepError> {
    let is_owed = |invoices: &Invoices| !invoices.steps(1).is_empty();
    let Some(invoices) = with_customer(handler, provider, org, is_owed).await? else { return Ok(()) };
    let steps = invoices.steps(MAX_STEPS);
    left.is_unfinished |= steps.len() == MAX_STEPS;
    for step in steps {
        let Some(note) = left.take(take(handler, provider, org, step).await) else { continue };
        left.take(note_step(handler, org, note).await);
    }
    left.has_collected = invoices.collected().next().is_some();
    for (number, id) in invoices.collected().filter(|_| asks).take(MAX_STEPS) {
        if left.take(provider.is_paid(id).await) == Some(true) {
            let what = Payable { org, item: Item::Invoice(number) };
            left.take(note_step(handler, org, paid(Payment { what, id: id.to_owned() })).await);
        }
    }
    Ok(())
}

/// Appends what the provider has done.
async fn note_step(handler: &CommandHandler, org: OrgId, note: Request) -> Result<(), StepError> {
    match handler.handle(&Caller::program(org, NAME), note).await {
        Ok(_) | Err(CommandError::Contention) => Ok(()),
        // Another process was quicker, and the provider made it once.
        Err(CommandError::Rejected(rejection))
            if ["top_up_not_open", "invoice_settled", BEING_DELETED, DELETED].contains(&rejection.code) =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes a step at the provider, and returns the command that notes it.
async fn take(
    handler: &CommandHandler,
    provider: &dyn PaymentProvider,
    org: OrgId,
    step: ProviderStep,
) -> Result<Request, StepError> {
    let note: Command = match step {
        ProviderStep::Customer => {
            let name = handler.profile(org).await?.map_or_else(|| org.to_string(), |profile| profile.name);
            let customer = provider.customer(org, &name).await?;
            LinkBillingCustomer { customer }.into()
        }
        ProviderStep::Push { number, customer, month, total, currency } => {
            let what = Payable { org, item: Item::Invoice(number) };
            let description = Collection::describe_invoice(number, month);
            let id = provider.push_invoice(&Collection { what, customer, money: total, currency, description }).await?;
            NoteInvoicePushed { number, id }.into()
        }
        ProviderStep::Withdraw { number, id } => {
            let what = Payable { org, item: Item::Invoice(number) };
            if provider.withdraw(&what, id.as_deref()).await? == Withdrawal::Paid {
                unmatched(&what, "it was paid before it could be withdrawn");
            }
            NoteInvoiceWithdrawn { number }.into()
        }
        ProviderStep::Release { customer, ended_at } => {
            provider.release(&customer, ended_at).await?;
            NoteBillingCustomerReleased { customer }.into()
        }
    };
    Ok(note.into())
}

/// Collects a top-up, and returns the command that notes what became of it; none while that is open.
async fn charge(
    handler: &CommandHandler,
    provider: &dyn PaymentProvider,
    org: OrgId,
    customer: String,
    meter: &MeterName,
    top_up: &OpenTopUp,
) -> Result<Option<Request>, StepError> {
    let OpenTopUp { id, amount, price, currency, requested_at } = top_up.clone();
    if currency != *handler.currency() {
        return Ok(Some(declined(id, "the currency has changed: set the rule again")));
    }
    let what = Payable { org, item: Item::TopUp(id) };
    let description = Collection::describe_top_up(meter, amount);
    let is_late = requested_at.unix_ms() + PENDING_MS <= now().unix_ms();
    let collection = Collection { what, customer, money: price, currency, description };
    let there = match provider.charge(&collection).await {
        Ok(Charge::Paid(id)) => return Ok(Some(paid(Payment { what, id }))),
        Ok(Charge::Declined(code)) => return Ok(Some(declined(id, &code))),
        Ok(Charge::Pending(there)) => Some(there),
        Err(_) if is_late => None,
        Err(error) => return Err(error.into()),
    };
    if !is_late {
        return Ok(None);
    }
    Ok(Some(match provider.withdraw(&what, there.as_deref()).await? {
        Withdrawal::Done => declined(id, "not paid within a day"),
        Withdrawal::Paid => paid(Payment { what, id: there.unwrap_or_else(|| what.to_string()) }),
    }))
}

fn declined(top_up: TopUpId, code: &str) -> Request {
    let reason = code.chars().filter(|char| !char.is_control()).take(MAX_DECLINE_REASON).collect();
    Command::from(DeclineTopUp { top_up, reason }).into()
}

/// Returns the command that notes a payment. The payment is the command, so that it is noted once, whoever reports it.
fn paid(Payment { what, id }: Payment) -> Request {
    let key = format!("payment:{id}");
    let command: Command = match what.item {
        Item::Invoice(number) => MarkInvoicePaid { number, payment: id }.into(),
        Item::TopUp(top_up) => PayTopUp { top_up, payment: id }.into(),
    };
    Request { idempotency_key: Some(key), ..Request::from(command) }
}

/// Notes a payment that the provider reports. One of what is not open any more is for an operator to pay back.
pub async fn note(handler: &CommandHandler, payment: Payment) -> Result<(), CommandError> {
    let what = payment.what;
    match handler.handle(&Caller::program(what.org, NAME), paid(payment)).await {
        Ok(_) => Ok(()),
        // Its last invoice is paid at the provider, and has no log any more to be noted in.
        Err(CommandError::Rejected(rejection)) if rejection.code == DELETED => {
            tracing::info!(org.id = %what.org, paid = %what, "an organization that was deleted has paid");
            Ok(())
        }
        Err(error @ (CommandError::Rejected(_) | CommandError::NoOrganization(_) | CommandError::KeyReused)) => {
            unmatched(&what, &Chain(&error).to_string());
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Says that money came for nothing.
fn unmatched(what: &Payable, why: &str) {
    counter!("orgstream_payments_unmatched_total").increment(1);
    tracing::error!(
        org.id = %what.org, paid = %what, why,
        "the payment provider has a payment of what is not open: look there whether to pay it back"
    );
}
