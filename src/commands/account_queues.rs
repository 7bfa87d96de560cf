//! The commands that wait for an organization's account: decided one after the other, and appended together as one commit.
//!
//! An account is one subject, so each commit waits for the one before it to be on disk. The busier an account is, the more
//! commands share a commit, and no other organization waits for more than that one. One process serves an account where they know
//! of each other (`account_peers.rs`). Two may: the expected sequence lets one of them append, and the other decides again.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use futures_util::future::join_all;
use metrics::counter;
use orgstream_domain::{
    Aggregate, Place,
    account::{Account, AccountAction, AccountCommand, AccountError, Terms},
};
use orgstream_events::{
    AggregateId, CommandId, Commit, Event, Fingerprint, MAX_COMMIT_BYTES, MAX_EVENTS_PER_COMMIT, Salt, Timestamp,
    UsedBy, cause,
};
use orgstream_stream::{AppendError, Freshness, Placement};
use tokio::sync::oneshot;

use super::{
    account_peers::{AccountPeers, Sent},
    aggregates::{Aggregates, unreadable_success},
    cache::{Cached, Loaded, PriorResult},
    handler::CommandContext,
    patience::Patience,
    request::{Accepted, Caller, CommandError, Request},
};
use crate::{
    org_queues::{OrgQueues, Turn},
    tenant_cache::Scoped,
};

/// Commands in one commit, at most.
const TOGETHER: usize = 250;
/// Bytes of events, and their number, from which on no further command is added to a commit.
const BYTES: usize = MAX_COMMIT_BYTES / 2;
const EVENTS: usize = MAX_EVENTS_PER_COMMIT / 2;
/// Commands that wait for one account, at most.
pub(super) const WAITING: usize = 10_000;
/// Callers of a commit whose rights are looked up at the same time, at most.
const LOOKUPS: usize = 16;

/// Why a command is not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The account refuses it.
    Account(AccountError),
    /// Another reason.
    Other(CommandError),
}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        Self::Other(error)
    }
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Account(error) => Self::Rejected(error.into()),
            Refusal::Other(error) => error,
        }
    }
}

/// What became of a command.
pub(super) type Answer = Result<Accepted, Refusal>;

/// A command that waits, with what is needed to answer it.
struct Waiting {
    context: OwnedContext,
    action: AccountAction,
    answer: oneshot::Sender<Answer>,
}

/// The queues of a process, one for each account that has commands waiting.
#[derive(Clone)]
pub(super) struct AccountQueues {
    aggregates: Arc<Aggregates>,
    queues: OrgQueues<Waiting>,
    /// The other processes; none where there are none.
    peers: Option<Arc<AccountPeers>>,
}

impl AccountQueues {
    pub(super) fn new(aggregates: Arc<Aggregates>) -> Self {
        Self { aggregates, queues: OrgQueues::new(WAITING), peers: None }
    }

    /// Sends the commands of an account to the process that serves it.
    pub(super) fn with_peers(self, peers: Arc<AccountPeers>) -> Self {
        Self { peers: Some(peers), ..self }
    }

    pub(super) fn peers(&self) -> Option<&Arc<AccountPeers>> {
        self.peers.as_ref()
    }

    pub(super) fn aggregates(&self) -> &Aggregates {
        &self.aggregates
    }

    /// Carries out a command of the account, here or in the process that serves it. It ends although its caller goes away.
    pub(super) async fn carry_out(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        action: AccountAction,
    ) -> Result<Accepted, CommandError> {
        // What is malformed takes no place among those that wait.
        action.check().map_err(|error| CommandError::Rejected(error.into()))?;
        let mut may_be_there = false;
        // A rule of top-ups has the currency of the process that it came to.
        let is_sent = !matches!(action, AccountAction::ChangeTopUp { .. });
        if let Some(peers) = self.peers.as_ref().filter(|_| is_sent) {
            match peers.carry_out(attempt, placement.org).await {
                Sent::Answered(answer) => return Ok((*answer)?),
                Sent::Uncertain => may_be_there = true,
                Sent::Not => {}
            }
        }
        match self.carry_out_here(OwnedContext::of(attempt), placement, action).await {
            // The other process may still carry it out, once there is more: this refusal is not the last word.
            Err(Refusal::Account(error)) if may_be_there => {
                let uncertain =
                    cause(format!("the process that serves the account may still carry it out; here: {error}"));
                Err(CommandError::Unavailable(uncertain))
            }
            answer => Ok(answer?),
        }
    }

    /// Carries out a command in this process.
    pub(super) async fn carry_out_here(
        &self,
        context: OwnedContext,
        placement: &Placement,
        action: AccountAction,
    ) -> Answer {
        let (answer, answered) = oneshot::channel();
        let entered = self.queues.enter(placement.org, Waiting { context, action, answer });
        if let Some(turn) = entered.map_err(|_| CommandError::Contention)? {
            let server = Server { aggregates: Arc::clone(&self.aggregates), placement: placement.clone() };
            tokio::spawn(server.run(turn));
        }
        let stopped = |_| CommandError::Unavailable(cause("the queue of the account has stopped"));
        answered.await.map_err(stopped)?
    }
}

/// The task that serves one queue.
struct Server {
    aggregates: Arc<Aggregates>,
    placement: Placement,
}

/// What became of a command in a round.
enum Outcome {
    /// It was carried out before, or its caller may not send it.
    Final(Answer),
    /// It appends nothing, which is true if the account is what the round began with.
    Nothing(Answer),
    /// These events are to be appended, with the ones of the others.
    Events(Vec<Event>),
    /// It is decided in the next round.
    Later,
}

/// Commands that are not answered, and the error that hinders them.
type Unanswered = (Vec<Waiting>, CommandError);

/// The decisions of a round, in the order of the commands.
struct Round {
    outcomes: Vec<Outcome>,
    commit: Option<Commit>,
}

impl Server {
    async fn run(self, mut turn: Turn<Waiting>) {
        // Nothing is done for callers who went away before it was begun.
        while let Some(waiting) = turn.next(|waiting| !waiting.answer.is_closed(), |_| TOGETHER) {
            if let Err((waiting, error)) = self.serve(waiting).await {
                Account::cache(self.aggregates().caches_of()).remove(&self.key());
                for waiting in waiting {
                    waiting.answer(Err(of_all(&error).into()));
                }
            }
        }
    }

    fn aggregates(&self) -> &Aggregates {
        &self.aggregates
    }

    fn aggregate(&self) -> AggregateId {
        AggregateId::Account(self.placement.org)
    }

    fn key(&self) -> Scoped<AggregateId> {
        Scoped::new(self.placement.org, self.aggregate())
    }

    async fn load(&self) -> Result<Arc<Loaded<Account>>, CommandError> {
        self.aggregates().load::<Account>(&self.placement, &self.aggregate(), Freshness::Leader).await
    }

    /// Answers all of these commands, or returns those that are left with the error that hinders them.
    async fn serve(&self, mut waiting: Vec<Waiting>) -> Result<(), Unanswered> {
        macro_rules! or_fail {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err(error) => return Err((waiting, CommandError::from(error))),
                }
            };
        }
        let cached = Account::cache(self.aggregates().caches_of()).get(&self.key());
        // What is cached may be behind another process. A commit that the stream accepts proves that it was not.
        let mut is_certain = cached.is_none();
        let mut loaded = match cached {
            Some(loaded) => loaded,
            None => or_fail!(self.load().await),
        };
        let (mut patience, mut is_last, mut was_there) = (Patience::new(), false, false);
        // The longer a round takes, the likelier another process appends meanwhile: after each conflict it has half as many.
        let mut size = TOGETHER;
        let mut reused = None;
        while !waiting.is_empty() {
            let terms = Arc::new(or_fail!(self.aggregates().entitlements(&self.placement).await).terms());
            let Round { outcomes, commit } = or_fail!(self.decide(&waiting, (size, reused), &loaded, &terms).await);
            let Some(commit) = commit else {
                waiting = settle(waiting, outcomes, is_certain);
                if !waiting.is_empty() {
                    loaded = or_fail!(self.load().await);
                    is_certain = true;
                }
                continue;
            };
            if is_last {
                // What was decided after events that are not appended is not true.
                waiting = settle(waiting, outcomes, false);
                return Err((waiting, CommandError::Contention));
            }
            let trace = waiting.iter().find_map(|waiting| waiting.context.caller.trace.as_deref());
            match self.aggregates().log().append(&self.placement, &commit, loaded.seq, trace).await {
                Ok(appended) if !appended.replayed => {
                    counter!("orgstream_account_commits_total").increment(1);
                    (waiting, loaded) = self.take_in(waiting, outcomes, loaded, appended.seq)?;
                    is_certain = true;
                    (patience, size, was_there) = (Patience::new(), (2 * size).min(TOGETHER), false);
                }
                // An earlier try was stored: what became of each command is in the history.
                Ok(_) if was_there => return Err((waiting, unreadable_success())),
                Ok(_) => {
                    was_there = true;
                    loaded = or_fail!(self.load().await);
                    is_certain = true;
                }
                // The key of a command that is alone is that of a command on something else, unless the history has it.
                Err(AppendError::KeyReused { .. })
                    if commit.following.is_empty() && reused != Some(commit.command_id) =>
                {
                    reused = Some(commit.command_id);
                    loaded = or_fail!(self.load().await);
                    is_certain = true;
                }
                Err(AppendError::Conflict { .. } | AppendError::KeyReused { .. }) => {
                    // An earlier try may have been stored before the conflict: that is looked for once more at the end.
                    is_last = !patience.again().await;
                    size = (size.min(waiting.len()) / 2).max(1);
                    loaded = or_fail!(self.load().await);
                    is_certain = true;
                }
                Err(error) => return Err((waiting, error.into())),
            }
        }
        Ok(())
    }

    /// Returns what is known of a command before it is decided: its earlier answer, or that its caller may not send it.
    async fn known(
        &self,
        one: &Waiting,
        loaded: &Loaded<Account>,
        reused: Option<CommandId>,
    ) -> Result<Option<Answer>, CommandError> {
        let attempt = one.context.borrowed();
        let known = match self.aggregates().earlier(&attempt, &self.placement, &self.aggregate(), loaded).await {
            Ok(None) if reused == Some(attempt.command_id) => Err(CommandError::KeyReused),
            Ok(None) => attempt.confirm().await.map(|()| None),
            known => known,
        };
        match known {
            Ok(accepted) => Ok(accepted.map(Ok)),
            Err(error) if error.is_certain() => Ok(Some(Err(error.into()))),
            Err(error) => Err(error),
        }
    }

    /// Decides the commands one after the other, each after the events of those before it: so many, and the others later.
    async fn decide(
        &self,
        waiting: &[Waiting],
        (size, reused): (usize, Option<CommandId>),
        loaded: &Loaded<Account>,
        terms: &Arc<Terms>,
    ) -> Result<Round, CommandError> {
        let mut ids = HashSet::with_capacity(size.min(waiting.len()));
        let has_turn = |one: &Waiting| ids.len() < size && ids.insert(one.context.command_id);
        let turns: Vec<bool> = waiting.iter().map(has_turn).collect();
        let mut known = VecDeque::with_capacity(ids.len());
        let with_turn: Vec<&Waiting> =
            waiting.iter().zip(&turns).filter_map(|(one, has_turn)| has_turn.then_some(one)).collect();
        for some in with_turn.chunks(LOOKUPS) {
            known.extend(join_all(some.iter().map(|one| self.known(one, loaded, reused))).await);
        }
        let (org, aggregate) = (self.placement.org, self.aggregate());
        let (mut account, mut version, mut bytes) = (loaded.state.clone(), loaded.version, 0);
        let (mut outcomes, mut commits) = (Vec::with_capacity(waiting.len()), Vec::new());
        for (one, has_turn) in waiting.iter().zip(turns) {
            let known = if has_turn { known.pop_front() } else { None };
            let is_full = bytes >= BYTES || version - loaded.version >= EVENTS as u64;
            let Some(known) = known.filter(|_| !is_full) else {
                outcomes.push(Outcome::Later);
                continue;
            };
            if let Some(answer) = known? {
                outcomes.push(Outcome::Final(answer));
                continue;
            }
            let attempt = one.context.borrowed();
            if let Some(expected) = attempt.request.expected_version
                && expected != version
            {
                let conflict = CommandError::VersionConflict { expected, actual: version };
                outcomes.push(Outcome::Nothing(Err(conflict.into())));
                continue;
            }
            let (actor_type, id) = attempt.by();
            let by = UsedBy { actor_type, id };
            let command = AccountCommand { terms: Arc::clone(terms), by, command: one.action.clone() };
            match account.decide(command, &attempt.decision_context(org)) {
                Err(error) => outcomes.push(Outcome::Nothing(Err(Refusal::Account(error)))),
                Ok(events) if events.is_empty() => {
                    let unchanged = attempt.unchanged(org, &aggregate, version, loaded.seq);
                    outcomes.push(Outcome::Nothing(Ok(unchanged)));
                }
                Ok(events) => {
                    for event in &events {
                        account.apply(event);
                    }
                    let events: Vec<Event> = events.into_iter().map(Account::wrap).collect();
                    let draft = attempt.draft(org, aggregate.clone(), version, events.clone());
                    let commit = draft.seal(|| Salt(rand::random())).map_err(AppendError::from)?;
                    (version, bytes) = (version + events.len() as u64, bytes + commit.size());
                    commits.push(commit);
                    outcomes.push(Outcome::Events(events));
                }
            }
        }
        Ok(Round { outcomes, commit: Commit::of_several(commits) })
    }

    /// Takes in the events that are stored at `seq`, and answers all commands but those that come later, which are returned.
    fn take_in(
        &self,
        waiting: Vec<Waiting>,
        outcomes: Vec<Outcome>,
        loaded: Arc<Loaded<Account>>,
        seq: u64,
    ) -> Result<(Vec<Waiting>, Arc<Loaded<Account>>), Unanswered> {
        let aggregate = self.aggregate();
        let fold = |loaded: &mut Loaded<Account>| -> Vec<Option<PriorResult>> {
            let fold_one = |(waiting, outcome): (&Waiting, &Outcome)| {
                let Outcome::Events(events) = outcome else { return None };
                let OwnedContext { caller, command_id, fingerprint, now, .. } = &waiting.context;
                let place = Place { seq, actor: &caller.actor, recorded_at: *now };
                Some(loaded.fold(*command_id, *fingerprint, place, events.iter()))
            };
            waiting.iter().zip(&outcomes).map(fold_one).collect()
        };
        let (loaded, results) = match self.aggregates().advance(&self.placement, &aggregate, loaded, fold) {
            Ok(advanced) => advanced,
            Err(error) => return Err((waiting, error)),
        };
        let settled =
            outcomes.into_iter().zip(results).zip(&waiting).map(|((outcome, result), waiting)| match result {
                Some(done) => {
                    let attempt = waiting.context.borrowed();
                    Outcome::Final(Ok(attempt.accepted(self.placement.org, &aggregate, done, false)))
                }
                None => outcome,
            });
        let settled = settled.collect();
        Ok((settle(waiting, settled, true), loaded))
    }
}

/// Answers the commands whose outcome is known, and returns the others.
fn settle(waiting: Vec<Waiting>, outcomes: Vec<Outcome>, is_certain: bool) -> Vec<Waiting> {
    let mut left = Vec::new();
    for (waiting, outcome) in waiting.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Final(answer) => waiting.answer(answer),
            Outcome::Nothing(answer) if is_certain => waiting.answer(answer),
            Outcome::Nothing(_) | Outcome::Events(_) | Outcome::Later => left.push(waiting),
        }
    }
    left
}

impl Waiting {
    fn answer(self, answer: Answer) {
        // The caller may have gone away.
        let _ = self.answer.send(answer);
    }
}

/// The error of a commit, for each of its commands.
fn of_all(error: &CommandError) -> CommandError {
    match error {
        CommandError::Contention => CommandError::Contention,
        CommandError::NoOrganization(org) => CommandError::NoOrganization(*org),
        CommandError::Unavailable(reason) => CommandError::Unavailable(Arc::clone(reason)),
        CommandError::HistoryLost(reason) => CommandError::HistoryLost(Arc::clone(reason)),
        CommandError::Internal(reason) => CommandError::Internal(Arc::clone(reason)),
        other => CommandError::Internal(cause(other.to_string())),
    }
}

/// The state of one command's execution, without its borrows.
pub(super) struct OwnedContext {
    pub(super) caller: Caller,
    pub(super) request: Request,
    pub(super) command_id: CommandId,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) now: Timestamp,
}

impl OwnedContext {
    fn of(attempt: &CommandContext<'_>) -> Self {
        let CommandContext { caller, request, command_id, fingerprint, now } = attempt;
        let (caller, request) = ((*caller).clone(), (*request).clone());
        Self { caller, request, command_id: *command_id, fingerprint: *fingerprint, now: *now }
    }

    fn borrowed(&self) -> CommandContext<'_> {
        let Self { caller, request, command_id, fingerprint, now } = self;
        CommandContext { caller, request, command_id: *command_id, fingerprint: *fingerprint, now: *now }
    }
}
