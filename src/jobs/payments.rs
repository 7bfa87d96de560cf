//! The loop that tells the payment provider what the log says: customers, final invoices, void ones, top-ups, and ends of billing.
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
    NoteInvoiceWithdrawn, PayTopUp,
    account::{MAX_DECLINE_REASON, OpenTopUp},
    invoice::ProviderStep,
};
use orgstream_events::{AggregateType, Chain, MeterName, OrgId, TopUpId};
use orgstream_stream::{Log, StreamError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::payments::{Charge, Collected, Collection, Item, Payment, PaymentError, PaymentProvider},
    clock::now,
    commands::{
        handler::CommandHandler,
        request::{Accepted, Caller, CommandError, Request},
    },
};

/// The polling interval.
const EVERY: Duration = Duration::from_secs(5);
/// The pause after a failure, doubled with each, and the longest.
const PAUSE: Duration = Duration::from_secs(30);
const MAX_PAUSE: Duration = Duration::from_hours(1);
/// The number of organizations that are seen to concurrently.
const MAX_CONCURRENCY: usize = 4;
/// The most steps for one organization in one round: a customer, and some invoices.
const MAX_STEPS: usize = 20;
/// The time after which a top-up that is neither paid nor declined is taken back, in milliseconds: a day.
const PENDING_MS: i64 = 86_400_000;
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
    /// When the provider is asked again, and after which pause.
    pause: Option<(Instant, Duration)>,
}

impl Known {
    fn is_due(&self, lengths: [u64; 2], now: Instant) -> bool {
        self.pause.map_or(lengths != self.lengths, |(at, _)| at <= now)
    }

    fn failed(&mut self, now: Instant) -> Duration {
        let pause = self.pause.map_or(PAUSE, |(_, pause)| (pause * 2).min(MAX_PAUSE));
        self.pause = Some((now + pause, pause));
        pause
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
    for shard in log.shards() {
        for (nth, aggregate) in [AggregateType::Invoice, AggregateType::Account].into_iter().enumerate() {
            for (org, length) in log.lengths_of(shard, aggregate).await? {
                if let Some(place) = lengths.entry(org).or_default().get_mut(nth) {
                    *place = length;
                }
            }
        }
    }
    lengths.retain(|org, lengths| seen.0.entry(*org).or_default().is_due(*lengths, now));
    let mut steps = stream::iter(lengths)
        .map(|(org, lengths)| async move { (org, lengths, take_steps(handler, provider, org).await) })
        .buffer_unordered(MAX_CONCURRENCY);
    while let Some((org, lengths, taken)) = steps.next().await {
        let known = seen.0.entry(org).or_default();
        match taken {
            Ok(is_all) => {
                known.pause = (!is_all).then_some((now + PAUSE, PAUSE));
                known.lengths = lengths;
            }
            Err(error) => {
                let pause = known.failed(now);
                counter!("orgstream_payment_failures_total").increment(1);
                tracing::warn!(
                    org.id = %org, error = %Chain(&error), pause_s = pause.as_secs(),
                    "the payment provider is told again later"
                );
            }
        }
    }
    Ok(())
}

/// Takes what is due for one organization. False if something is left that nothing will report.
async fn take_steps(handler: &CommandHandler, provider: &dyn PaymentProvider, org: OrgId) -> Result<bool, StepError> {
    for _ in 0..MAX_STEPS {
        let Some(invoices) = handler.invoices_of(org).await?.map(|state| state.invoices) else { return Ok(true) };
        let note = match invoices.next_step() {
            Some(step) => take(handler, provider, org, step).await?,
            None => {
                let Some(state) = handler.account_of(org).await? else { return Ok(true) };
                let mut open = state.account.open_top_ups();
                let Some((meter, top_up)) = open.next() else { return Ok(true) };
                let charged = match invoices.customer() {
                    Some(customer) => charge(handler, provider, org, customer, meter, top_up).await?,
                    None => Some(take(handler, provider, org, ProviderStep::Customer).await?),
                };
                let Some(note) = charged else { return Ok(false) };
                note
            }
        };
        match handler.handle(&Caller::program(org, NAME), note).await {
            // Another process was quicker, and the provider made it once.
            Ok(_) | Err(CommandError::Contention) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
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
            let what = Collected { org, item: Item::Invoice(number) };
            let description = Collection::describe_invoice(number, month);
            let id = provider.push_invoice(&Collection { what, customer, money: total, currency, description }).await?;
            NoteInvoicePushed { number, id }.into()
        }
        ProviderStep::Withdraw { number, id } => {
            provider.void(&id).await?;
            NoteInvoiceWithdrawn { number }.into()
        }
        ProviderStep::Release { customer } => {
            provider.cancel(&customer).await?;
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
    customer: &str,
    meter: &MeterName,
    top_up: OpenTopUp,
) -> Result<Option<Request>, StepError> {
    let OpenTopUp { id, amount, price, requested_at } = top_up;
    let what = Collected { org, item: Item::TopUp(id) };
    let description = Collection::describe_top_up(meter, amount);
    let (customer, currency) = (customer.to_owned(), handler.currency().clone());
    let collection = Collection { what, customer, money: price, currency, description };
    Ok(match provider.charge(&collection).await? {
        Charge::Paid(id) => Some(paid(Payment { what, id })),
        Charge::Declined(code) => Some(declined(id, &code)),
        Charge::Pending(there) if requested_at.unix_ms() + PENDING_MS <= now().unix_ms() => {
            provider.void(&there).await?;
            Some(declined(id, "not paid within a day"))
        }
        Charge::Pending(_) => None,
    })
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

/// Notes a payment that the provider reports.
pub async fn note(handler: &CommandHandler, payment: Payment) -> Result<Accepted, CommandError> {
    handler.handle(&Caller::program(payment.what.org, NAME), paid(payment)).await
}
