//! Commands of accounts between the processes of the API: each account has one process, by a hash, which is sent the commands
//! of the others, so that they share commits instead of competing for them.
//!
//! It is a hint, and the expected sequence of an append is the fence. A command that is not answered is decided by the process
//! that it came to: under the same id, so that it has one effect. Commands and answers are signed as commits are, for the one
//! subject that they are sent to, so that access to the broker is not enough to send one.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use metrics::counter;
use orgstream_domain::{Command, Scopes, account::AccountError};
use orgstream_events::{
    Actor, AggregateId, Chain, CommandId, Context, CorrelationId, EventId, Fingerprint, OrgId, Position, Role,
    Timestamp,
};
use orgstream_stream::Log;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    account_queues::{AccountQueues, Answer, OwnedContext, Refusal, WAITING},
    accounts::action_of,
    handler::CommandContext,
    request::{Accepted, Caller, CommandError, Request, Right},
};
use crate::{
    auth::{Authenticator, PrincipalReference},
    clock::now,
    peers::Peers,
};

/// How long an answer is waited for. The process that is to give it does not begin later.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a process is sent nothing after it did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// The largest command or answer, in bytes.
const MAX_BYTES: usize = 64 << 10;

fn commands_to(process: Uuid) -> String {
    format!("orgstream.api.account.{}", process.simple())
}

fn answers_to(process: Uuid) -> String {
    format!("orgstream.api.answer.{}", process.simple())
}

/// A command on its way to another process.
#[derive(Debug, Serialize, Deserialize)]
struct Forwarded {
    /// The process that waits for the answer, and its number for it.
    from: Uuid,
    number: u64,
    /// The moment at which it is not waited for any more.
    expires_at: Timestamp,
    org: OrgId,
    actor: Actor,
    /// The principal, whose right is looked up again; none for the program itself.
    principal: Option<PrincipalReference>,
    context: Context,
    request_id: Option<String>,
    trace: Option<String>,
    command_id: CommandId,
    fingerprint: Option<Fingerprint>,
    now: Timestamp,
    expected_version: Option<u64>,
    occurred_at: Option<Timestamp>,
    causation_id: Option<EventId>,
    correlation_id: Option<CorrelationId>,
    /// The command, as in a request's body.
    command: serde_json::Value,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Accepted {
        version: u64,
        seq: u64,
        events: Vec<String>,
        replayed: bool,
    },
    Refused(AccountError),
    VersionConflict {
        expected: u64,
        actual: u64,
    },
    Contention,
    KeyReused,
    /// The process that it came to decides it. Nothing was done here.
    Declined,
    /// The process that it came to finds out what became of it: it may have been carried out, or may still be.
    Uncertain,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        match answer {
            Ok(Accepted { version, position, events, replayed, .. }) => {
                Self::Accepted { version, seq: position.seq, events, replayed }
            }
            Err(Refusal::Account(error)) => Self::Refused(error),
            Err(Refusal::Other(CommandError::VersionConflict { expected, actual })) => {
                Self::VersionConflict { expected, actual }
            }
            Err(Refusal::Other(CommandError::Contention)) => Self::Contention,
            Err(Refusal::Other(CommandError::KeyReused)) => Self::KeyReused,
            Err(Refusal::Other(_)) => Self::Uncertain,
        }
    }
}

impl Reply {
    /// Returns the answer to a command; none where it is not decided.
    fn about(self, command_id: CommandId, org: OrgId) -> Option<Answer> {
        Some(match self {
            Self::Accepted { version, seq, events, replayed } => Ok(Accepted {
                command_id,
                aggregate: AggregateId::Account(org),
                version,
                position: Position { org, seq },
                events,
                records: Vec::new(),
                hold: None,
                replayed,
                token: None,
            }),
            Self::Refused(error) => Err(Refusal::Account(error)),
            Self::VersionConflict { expected, actual } => {
                Err(CommandError::VersionConflict { expected, actual }.into())
            }
            Self::Contention => Err(CommandError::Contention.into()),
            Self::KeyReused => Err(CommandError::KeyReused.into()),
            Self::Declined | Self::Uncertain => return None,
        })
    }
}

/// What became of a command that another process serves.
pub(super) enum Sent {
    /// It was decided there.
    Answered(Box<Answer>),
    /// It is to be decided here, though it may have been carried out there, or may still be.
    Uncertain,
    /// It is to be decided here.
    Not,
}

/// What comes in place of an answer, or the answer.
enum Heard {
    Reply(Reply),
    NobodyThere,
}

/// The other processes. One per process of the API.
pub struct AccountPeers {
    log: Log,
    peers: Peers,
    /// Whether answers are heard.
    is_listening: AtomicBool,
    last: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Heard>>>,
    /// The processes that did not answer, and when.
    silent: Mutex<HashMap<Uuid, Instant>>,
}

/// The place of a command that waits for an answer, which ends with it.
struct Place<'a> {
    peers: &'a AccountPeers,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.peers.waiting().remove(&self.number);
    }
}

/// The time in which answers are heard. Whoever still waits for one then does not any more.
struct Listening<'a>(&'a AccountPeers);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.is_listening.store(false, Ordering::Release);
        self.0.waiting().clear();
    }
}

impl AccountPeers {
    /// Sends commands to `peers`, once answers are heard.
    pub fn new(log: Log, peers: Peers) -> Self {
        let (is_listening, last) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { log, peers, is_listening, last, waiting: Mutex::default(), silent: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Heard>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a command carried out by the process that serves the account, if that is another one.
    pub(super) async fn carry_out(&self, attempt: &CommandContext<'_>, org: OrgId) -> Sent {
        let Some(server) = self.peers.server_of(org) else { return Sent::Not };
        if !self.is_listening.load(Ordering::Acquire) || !self.log.is_connected() || self.is_silent(server) {
            return Sent::Not;
        }
        let (outcome, sent) = self.ask(server, attempt, org).await;
        counter!("orgstream_account_forwards_total", "outcome" => outcome).increment(1);
        sent
    }

    async fn ask(&self, server: Uuid, attempt: &CommandContext<'_>, org: OrgId) -> (&'static str, Sent) {
        let (heard, answer) = oneshot::channel();
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiting = self.waiting();
            if waiting.len() >= WAITING {
                return ("busy", Sent::Not);
            }
            waiting.insert(number, heard);
        }
        let _place = Place { peers: self, number };
        let Some(command) = self.sealed(&commands_to(server), &Forwarded::new(attempt, self.peers.me(), number)) else {
            return ("too_large", Sent::Not);
        };
        let mut losses = self.log.losses();
        let answers = format!("{}.{number}", answers_to(self.peers.me()));
        // A connection that is lost and not yet known to be takes no more at some point.
        let sent = self.log.client().publish_with_reply(commands_to(server), answers, command.into());
        if !matches!(timeout(PATIENCE, sent).await, Ok(Ok(()))) {
            return ("unreachable", Sent::Uncertain);
        }
        let lost = async {
            if losses.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        let heard = tokio::select! {
            heard = timeout(PATIENCE, answer) => heard,
            () = self.peers.gone(server) => return ("unreachable", Sent::Uncertain),
            () = lost => return ("unreachable", Sent::Uncertain),
        };
        match heard {
            Ok(Ok(Heard::Reply(Reply::Uncertain))) => ("declined", Sent::Uncertain),
            Ok(Ok(Heard::Reply(reply))) => match reply.about(attempt.command_id, org) {
                Some(answer) => ("answered", Sent::Answered(Box::new(answer))),
                None => ("declined", Sent::Not),
            },
            Ok(Ok(Heard::NobodyThere)) => {
                self.note_silence(server);
                ("unreachable", Sent::Not)
            }
            // This process stops.
            Ok(Err(_)) => ("unreachable", Sent::Uncertain),
            Err(_) => {
                self.note_silence(server);
                ("late", Sent::Uncertain)
            }
        }
    }

    fn is_silent(&self, process: Uuid) -> bool {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.get(&process).is_some_and(|since| since.elapsed() < PAUSE)
    }

    fn note_silence(&self, process: Uuid) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, since| since.elapsed() < PAUSE);
        silent.insert(process, Instant::now());
    }

    /// Returns the bytes of what is sent to a subject; none where they are too many.
    fn sealed(&self, subject: &str, content: &impl Serialize) -> Option<Vec<u8>> {
        let content = rmp_serde::to_vec_named(content).ok().filter(|content| content.len() <= MAX_BYTES)?;
        self.log.keys().sign(subject, None, &content).ok()
    }

    /// Returns what was sent to a subject; none where no process of ours has signed it for that.
    fn opened<T: DeserializeOwned>(&self, message: &Message) -> Option<T> {
        let content = self.log.keys().verify(message.subject.as_str(), None, &message.payload);
        let opened = content.ok().and_then(|content| rmp_serde::from_slice(content).ok());
        if opened.is_none() {
            counter!("orgstream_account_forwards_refused_total", "reason" => "not_authentic").increment(1);
        }
        opened
    }

    fn take_answer(&self, message: &Message) {
        let number = message.subject.as_str().rsplit('.').next().and_then(|number| number.parse().ok());
        let Some(number) = number else { return };
        let heard = if message.status == Some(StatusCode::NO_RESPONDERS) {
            Heard::NobodyThere
        } else {
            let Some(reply) = self.opened(message) else { return };
            Heard::Reply(reply)
        };
        if let Some(waiting) = self.waiting().remove(&number) {
            // It may have ended in this moment.
            let _ = waiting.send(heard);
        }
    }

    async fn answer(&self, to: &Forwarded, reply: &Reply) {
        let subject = format!("{}.{}", answers_to(to.from), to.number);
        // One that is too large is found by its command's id.
        let Some(bytes) = self.sealed(&subject, reply).or_else(|| self.sealed(&subject, &Reply::Declined)) else {
            return;
        };
        if let Err(error) = self.log.client().publish(subject, bytes.into()).await {
            tracing::debug!(error = %Chain(&error), "an answer to another process could not be sent");
        }
    }
}

impl Forwarded {
    fn new(attempt: &CommandContext<'_>, from: Uuid, number: u64) -> Self {
        let CommandContext { caller, request, command_id, fingerprint, now } = attempt;
        let patience = i64::try_from(PATIENCE.as_millis()).unwrap_or(i64::MAX);
        Self {
            from,
            number,
            expires_at: Timestamp::from_unix_ms(crate::clock::now().unix_ms().saturating_add(patience)),
            org: caller.org,
            actor: caller.actor.clone(),
            principal: caller.right.as_ref().map(|right| right.access.principal()),
            context: caller.context.clone(),
            request_id: caller.request_id.clone(),
            trace: caller.trace.clone(),
            command_id: *command_id,
            fingerprint: *fingerprint,
            now: *now,
            expected_version: request.expected_version,
            occurred_at: request.occurred_at,
            causation_id: request.causation_id,
            correlation_id: request.correlation_id,
            command: serde_json::to_value(&request.command).unwrap_or_default(),
        }
    }

    /// Returns the command as it came to the other process, with the caller's present rights. None where it has none, or where
    /// that cannot be found out: the other process will.
    async fn context(&self, auth: &Arc<Authenticator>) -> Option<OwnedContext> {
        let request = Request {
            expected_version: self.expected_version,
            occurred_at: self.occurred_at,
            causation_id: self.causation_id,
            correlation_id: self.correlation_id,
            ..Request::from(Command::read(self.command.clone()).ok()?)
        };
        let (mut role, mut scopes, mut right) = (Role::Owner, Scopes::ALL, None);
        if let Some(principal) = &self.principal {
            let access = auth.access_of(principal.clone(), self.org).await.ok()?;
            access.require(request.command.spec().requires.permission()?).ok()?;
            (role, scopes) = (access.role(), access.scopes().clone());
            right = Some(Right { auth: Arc::clone(auth), access });
        }
        let caller = Caller {
            org: self.org,
            actor: self.actor.clone(),
            role,
            scopes,
            proof: None,
            right,
            creator: None,
            context: self.context.clone(),
            request_id: self.request_id.clone(),
            trace: self.trace.clone(),
        };
        let Self { command_id, fingerprint, now, .. } = *self;
        Some(OwnedContext { caller, request, command_id, fingerprint, now })
    }
}

impl AccountQueues {
    /// Carries out the commands that other processes send, and hears their answers, until `stop`.
    pub(super) async fn serve(
        &self,
        peers: &Arc<AccountPeers>,
        auth: &Arc<Authenticator>,
        stop: CancellationToken,
    ) -> Result<(), async_nats::SubscribeError> {
        let (client, me) = (peers.log.client(), peers.peers.me());
        let mut answers = client.subscribe(format!("{}.*", answers_to(me))).await?;
        let mut commands = client.subscribe(commands_to(me)).await?;
        peers.is_listening.store(true, Ordering::Release);
        let listening = Listening(peers);
        let mut under_way = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = under_way.join_next() => {}
                Some(answer) = answers.next() => peers.take_answer(&answer),
                Some(command) = commands.next() => {
                    let Some(forwarded) = peers.opened::<Forwarded>(&command) else { continue };
                    if under_way.len() >= WAITING {
                        // What answers are sent by must not keep commands and answers from being read.
                        if timeout(PAUSE, peers.answer(&forwarded, &refused("busy"))).await.is_err() {
                            tracing::debug!("an answer about a command of an account could not be sent");
                        }
                        continue;
                    }
                    let (queues, peers, auth) = (self.clone(), Arc::clone(peers), Arc::clone(auth));
                    under_way.spawn(async move {
                        let reply = queues.reply_to(&forwarded, &auth).await;
                        peers.answer(&forwarded, &reply).await;
                    });
                }
            }
        }
        drop(listening);
        end(commands).await;
        end(answers).await;
        while under_way.join_next().await.is_some() {}
        Ok(())
    }

    async fn reply_to(&self, forwarded: &Forwarded, auth: &Arc<Authenticator>) -> Reply {
        let left = forwarded.expires_at.unix_ms() - now().unix_ms();
        let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis) else {
            return refused("expired");
        };
        let Some(context) = Box::pin(forwarded.context(auth)).await else { return refused("no_right") };
        let Some(action) = action_of(&context.request.command) else { return refused("no_right") };
        let Ok(placement) = self.aggregates().placement(forwarded.org).await else { return refused("no_place") };
        // What was not begun by then is not begun.
        let carried_out = timeout(left.min(PATIENCE), self.carry_out_here(context, &placement, action)).await;
        carried_out.map_or(Reply::Uncertain, Reply::from)
    }
}

/// Leaves a command to the process that it came to.
fn refused(reason: &'static str) -> Reply {
    counter!("orgstream_account_forwards_refused_total", "reason" => reason).increment(1);
    Reply::Declined
}

/// Ends a subscription. One that is lost with the connection has ended.
async fn end(mut subscription: Subscriber) {
    if let Err(error) = subscription.unsubscribe().await {
        tracing::debug!(error = %Chain(&error), "a subscription could not be ended");
    }
}

#[cfg(test)]
mod tests {
    use orgstream_domain::account::{ChargeUsage, CreditAccount, ExtendHold, ReleaseHold, ReserveUsage, SettleHold};
    use orgstream_events::{HoldId, KeyPublicId, LoginMethod, PLATFORM_ORG, PlanVersion, UserId};

    use super::*;
    use crate::auth::Operator;

    fn sent_and_read<T: Serialize + DeserializeOwned>(content: &T) -> T {
        rmp_serde::from_slice(&rmp_serde::to_vec_named(content).unwrap()).unwrap()
    }

    #[test]
    fn a_command_is_the_same_in_another_process() {
        let hold = HoldId::derive(CommandId::from_idempotency_key(PLATFORM_ORG, "hold"));
        let (meter, amount) = ("ecu".parse().unwrap(), "12.000001".parse().unwrap());
        let kind = Some("evaluation".parse().unwrap());
        let commands: [Command; 6] = [
            ReserveUsage { meter, amount, seconds: Some(7), kind, model: Some("small".to_owned()) }.into(),
            ExtendHold { hold, amount: Some(amount), seconds: None }.into(),
            SettleHold { hold, amount }.into(),
            ReleaseHold { hold }.into(),
            ChargeUsage { meter: "tokens".parse().unwrap(), amount, kind: None, model: None }.into(),
            CreditAccount {
                meter: "ecu".parse().unwrap(),
                amount,
                expires_at: Some(Timestamp::from_unix_ms(1)),
                reason: "paid".to_owned(),
            }
            .into(),
        ];
        for command in commands {
            let mut request = Request::from(command.clone());
            (request.expected_version, request.occurred_at) = (Some(3), Some(Timestamp::from_unix_ms(2)));
            let mut caller = Caller::program(PLATFORM_ORG, "system");
            caller.context.ip = Some("192.0.2.1".to_owned());
            let command_id = CommandId::from_idempotency_key(PLATFORM_ORG, "key");
            let (fingerprint, now) = (Some(Fingerprint([7; 32])), Timestamp::from_unix_ms(4));
            let attempt = CommandContext { caller: &caller, request: &request, command_id, fingerprint, now };
            let forwarded = sent_and_read(&Forwarded::new(&attempt, Uuid::nil(), 5));
            assert_eq!(Command::read(forwarded.command.clone()).unwrap(), command);
            assert_eq!(action_of(&command), action_of(&Command::read(forwarded.command).unwrap()));
            assert_eq!(
                (forwarded.actor, forwarded.context, forwarded.command_id, forwarded.fingerprint, forwarded.now),
                (caller.actor.clone(), caller.context.clone(), command_id, fingerprint, now)
            );
            assert_eq!((forwarded.expected_version, forwarded.occurred_at), (Some(3), request.occurred_at));
        }
    }

    #[test]
    fn an_answer_is_the_same_in_another_process() {
        let command_id = CommandId::from_idempotency_key(PLATFORM_ORG, "key");
        let about = |answer: Answer| {
            let reply = sent_and_read(&Reply::from(answer)).about(command_id, PLATFORM_ORG)?;
            Some(reply.map_err(|refusal| CommandError::from(refusal).to_string()))
        };
        let accepted = Accepted {
            command_id,
            aggregate: AggregateId::Account(PLATFORM_ORG),
            version: 8,
            position: Position { org: PLATFORM_ORG, seq: 9 },
            events: vec!["account.reserved".to_owned()],
            records: Vec::new(),
            hold: None,
            replayed: true,
            token: None,
        };
        assert_eq!(about(Ok(accepted.clone())), Some(Ok(accepted)));
        let (meter, amount) = (|| "tokens".parse().unwrap(), |text: &str| text.parse().unwrap());
        let (at, plan) = (Timestamp::from_unix_ms(6), PlanVersion { plan: "trial".parse().unwrap(), version: 2 });
        let errors = [
            AccountError::BillingRequired { plan, since: at },
            AccountError::UnknownMeter { meter: meter(), known: vec![meter()] },
            AccountError::Insufficient {
                meter: meter(),
                required: amount("7"),
                available: amount("6.5"),
                resets_at: Some(at),
            },
            AccountError::CapReached {
                meter: meter(),
                required: amount("1"),
                cap: amount("2"),
                used: amount("2"),
                resets_at: at,
            },
            AccountError::Concurrency { most: 5, free_at: at },
            AccountError::HoldNotOpen(HoldId::derive(command_id)),
            AccountError::MoreThanHeld { held: amount("1"), asked: amount("2") },
            AccountError::TooManyBuckets,
        ];
        for error in errors {
            let reply = sent_and_read(&Reply::from(Err(Refusal::Account(error.clone()))));
            let Some(Err(Refusal::Account(read))) = reply.about(command_id, PLATFORM_ORG) else { panic!("{error:?}") };
            assert_eq!(read, error);
        }
        for error in [
            CommandError::VersionConflict { expected: 1, actual: 2 },
            CommandError::Contention,
            CommandError::KeyReused,
        ] {
            let text = error.to_string();
            assert_eq!(about(Err(error.into())), Some(Err(text)));
        }
        // What only the other process can say is left to it.
        assert_eq!(about(Err(CommandError::NoOrganization(PLATFORM_ORG).into())), None);
    }

    #[test]
    fn a_principal_is_the_same_in_another_process() {
        let key: KeyPublicId = "GBxCK2BwmHM4".parse().unwrap();
        for principal in [
            PrincipalReference::Key(key),
            PrincipalReference::Operator(Operator::Token),
            PrincipalReference::User {
                user: UserId::from_login("https://issuer.example", "ann"),
                email: Some("ann@example.org".to_owned()),
                method: LoginMethod::oidc(),
                second_factor: true,
                session: None,
            },
        ] {
            assert_eq!(sent_and_read(&principal), principal);
        }
    }
}
