//! Access events on their way into the log: denials, refused keys, recorded reads.
//!
//! Recording an event never fails and never delays its request: the event waits in a bounded queue. Events that find no room
//! are counted and lost, as are those that wait when the process is killed. Events that must be in the log before anything
//! is shown, of an export or an operator's read, are written by [`AccessLog::write_down`], which fails its request with it.
//!
//! A flood of a thousand attempts does not become a thousand events. Of the same event by the same actor in the same org,
//! [`EACH`] a minute are written individually; further ones are counted, and become one access event at the minute's end. Of
//! audit log reads none is written individually: such events would be what the reader reads next. They become one access
//! event a minute.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use metrics::counter;
use orgstream_events::{
    AccessDenied, AccessEvent, Actor, ActorType, AggregateId, Auth, AuthMethod, Chain, CommandId, CommitDraft, Event,
    IsolationFailed, KeyRefused, OrgId, PLATFORM_ORG, Position, Salt, UserId, cause,
};
use orgstream_projections::{BoundOrg, Database, DbError, IsolationViolation, deletions::DeletionStep, members};
use orgstream_stream::{AppendError, Expected, Log};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{interval, timeout},
};

use super::{problem::Problem, submit::Origin};
use crate::{
    auth::{Access, AuthError, Operator, Principal, session::ActiveSession},
    clock::now,
    commands::request::CommandError,
};

/// The maximum number of access events that wait to be written.
const WAITING: usize = 4_096;
/// The maximum number of access events that are being written at the same time.
const MAX_CONCURRENCY: usize = 16;
/// The number of identical events per minute that are written individually.
pub const EACH: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// The maximum number of floods that are counted at the same time; of further ones only the first access events are kept.
const FLOODS: usize = 10_000;
/// The maximum time that the end of a process waits for unwritten events.
const GRACE: Duration = Duration::from_secs(5);
/// The longest text of a caller's that is repeated.
const MAX_ASKED: usize = 80;

/// The log that an access event belongs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Org(OrgId),
    /// The log of a person's first organization, if there is one.
    HomeOf(UserId),
}

#[derive(Debug, Clone)]
struct Entry {
    place: Place,
    actor: Actor,
    origin: Origin,
    fact: AccessEvent,
}

enum Message {
    Entry(Box<Entry>),
    Flush(oneshot::Sender<()>),
}

/// The writer of access events, which are no commands. One per process.
pub struct AccessLog {
    sender: mpsc::Sender<Message>,
    log: Log,
    db: Database,
}

/// The request that was denied.
#[derive(Debug, Clone, Copy)]
pub struct DeniedRequest<'a> {
    /// The type of resource: `records`, `members`, …
    pub target: &'a str,
    /// The organization as the caller named it.
    pub asked: Option<&'a str>,
}

impl DeniedRequest<'_> {
    fn denied(self, origin: &Origin, problem: &Problem) -> AccessEvent {
        AccessEvent::Denied(AccessDenied {
            code: problem.code.to_owned(),
            route: origin.route.clone(),
            target: self.target.to_owned(),
            asked: self.asked.map(|asked| asked.chars().take(MAX_ASKED).collect()),
            repeated: 1,
        })
    }
}

impl AccessLog {
    /// Starts to write recorded events.
    pub fn start(log: Log, db: Database) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(report_isolation_violations(db.isolation_violations(), sender.downgrade()));
        tokio::spawn(Writer { log: log.clone(), db: db.clone(), floods: HashMap::new() }.run(receiver));
        Self { sender, log, db }
    }

    /// Records an access event of `actor` in `org`. It will be in the log soon.
    pub fn record(&self, org: BoundOrg, actor: &Actor, origin: &Origin, fact: AccessEvent) {
        self.send(Place::Org(org.org()), actor.clone(), origin, fact);
    }

    /// Writes an access event and waits for it. For events that must be in the log before anything is shown.
    pub async fn write_down(
        &self,
        org: BoundOrg,
        actor: &Actor,
        origin: &Origin,
        fact: AccessEvent,
    ) -> Result<Position, Problem> {
        count(&fact);
        if is_closed(&self.db, org.org()).await? {
            return Err(Problem::not_found());
        }
        Ok(append(&self.log, org.org(), actor.clone(), origin.clone(), fact).await?)
    }

    /// Records the denial of a request for an organization that is not the caller's, or for platform data.
    ///
    /// It is recorded in the log of the caller's own organization and in the platform's, and not in that of the requested
    /// one, which would learn of an unrelated party, and whose existence that party could infer.
    pub fn denied(&self, principal: &Principal, origin: &Origin, attempt: DeniedRequest<'_>, problem: &Problem) {
        if !matches!(problem.status, 403 | 404) {
            return;
        }
        let fact = attempt.denied(origin, problem);
        let home = match principal {
            Principal::Operator(_) => None,
            Principal::Key { org, .. }
            | Principal::Sso { org, .. }
            | Principal::User { session: Some(ActiveSession { org: Some(org), .. }), .. } => Some(Place::Org(*org)),
            Principal::User { user, .. } => Some(Place::HomeOf(*user)),
        };
        for place in home.into_iter().chain([Place::Org(PLATFORM_ORG)]) {
            self.send(place, principal.actor(), origin, fact.clone());
        }
    }

    /// Records the denial of a request inside the caller's organization. An operator is in none.
    pub fn not_allowed(&self, access: &Access, origin: &Origin, attempt: DeniedRequest<'_>, problem: &Problem) {
        if access.is_operator() {
            return self.denied(&Principal::Operator(Operator::Token), origin, attempt, problem);
        }
        if matches!(problem.status, 403 | 429) || problem.is_over_quota() {
            self.record(access.bound(), access.actor(), origin, attempt.denied(origin, problem));
        }
    }

    /// Records that a person could not join an organization because of a quota. Inside it they are nobody yet.
    pub fn not_joined(&self, org: BoundOrg, origin: &Origin, problem: &Problem) {
        if problem.is_over_quota() {
            let actor = Actor { actor_type: ActorType::Anonymous, id: "anonymous".to_owned(), auth: None };
            let attempt = DeniedRequest { target: "members", asked: None };
            self.record(org, &actor, origin, attempt.denied(origin, problem));
        }
    }

    /// Returns the answer to a refused credential. If it identifies a key, the event is recorded for the key's organization.
    pub fn refused(&self, error: AuthError, origin: &Origin) -> Problem {
        if let AuthError::KeyRefused { org, id, public_id, code } = &error {
            // A caller that does not know the secret is not the key.
            let actor = if *code == "wrong_secret" {
                Actor { actor_type: ActorType::Anonymous, id: "anonymous".to_owned(), auth: None }
            } else {
                let key_id = Some(public_id.to_string());
                let auth = Auth { method: AuthMethod::ApiKey, key_id, session_id: None };
                Actor { actor_type: ActorType::ApiKey, id: id.to_string(), auth: Some(auth) }
            };
            let (key_id, public_id, code) = (*id, public_id.clone(), (*code).to_owned());
            let fact = AccessEvent::KeyRefused(KeyRefused { key_id, public_id, code, repeated: 1 });
            self.send(Place::Org(*org), actor, origin, fact);
        }
        error.into()
    }

    /// Waits until all recorded events are written, for at most `GRACE`.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        let flushed = async {
            if self.sender.send(Message::Flush(done)).await.is_ok() {
                let _ = written.await;
            }
        };
        if timeout(GRACE, flushed).await.is_err() {
            tracing::warn!("some facts about access were not written in time");
        }
    }

    fn send(&self, place: Place, actor: Actor, origin: &Origin, fact: AccessEvent) {
        count(&fact);
        let note = Entry { place, actor, origin: origin.clone(), fact };
        if self.sender.try_send(Message::Entry(Box::new(note))).is_err() {
            lost("the queue is full");
        }
    }
}

/// Records isolation violations for the platform, which no other party may learn of.
async fn report_isolation_violations(
    mut isolation_violations: broadcast::Receiver<IsolationViolation>,
    sender: mpsc::WeakSender<Message>,
) {
    loop {
        let IsolationViolation { bound, found, table } = match isolation_violations.recv().await {
            Ok(isolation_violation) => isolation_violation,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => break,
        };
        let fact = AccessEvent::IsolationFailed(IsolationFailed { bound, found, table: table.to_owned() });
        count(&fact);
        counter!("orgstream_isolation_failures_total").increment(1);
        let actor = Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None };
        let note = Entry { place: Place::Org(PLATFORM_ORG), actor, origin: Origin::default(), fact };
        let Some(sender) = sender.upgrade() else { break };
        if sender.send(Message::Entry(Box::new(note))).await.is_err() {
            break;
        }
    }
}

/// Returns what distinguishes two access events of one name.
fn code(fact: &AccessEvent) -> &str {
    match fact {
        AccessEvent::Denied(fact) => &fact.code,
        AccessEvent::KeyRefused(fact) => &fact.code,
        AccessEvent::AuditRead(fact) => &fact.route,
        AccessEvent::SignedIn(_)
        | AccessEvent::OrgSwitched(_)
        | AccessEvent::AuditExported(_)
        | AccessEvent::NatsCredentialsIssued(_)
        | AccessEvent::SecretUsed(_)
        | AccessEvent::BreakGlassOpened(_)
        | AccessEvent::BreakGlassApproved(_)
        | AccessEvent::BreakGlassUsed(_)
        | AccessEvent::BreakGlassClosed(_)
        | AccessEvent::IsolationFailed(_) => "",
    }
}

fn count(fact: &AccessEvent) {
    counter!("orgstream_access_events_total", "fact" => fact.wire().0, "code" => code(fact).to_owned()).increment(1);
}

fn lost(reason: &'static str) {
    counter!("orgstream_access_events_lost_total").increment(1);
    tracing::debug!(reason, "a fact about access was not written down");
}

/// The same event by the same actor in the same org.
type Flood = (Place, String, &'static str, String);

struct Counted {
    since: Instant,
    written: u32,
    more: u64,
    last: Entry,
}

struct Writer {
    log: Log,
    db: Database,
    floods: HashMap<Flood, Counted>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        let mut ticks = interval(Duration::from_secs(1));
        let mut writes = FuturesUnordered::new();
        let mut flushed = Vec::new();
        let mut open = true;
        while open || !writes.is_empty() {
            tokio::select! {
                message = receiver.recv(), if open && writes.len() < MAX_CONCURRENCY => match message {
                    Some(Message::Entry(note)) => writes.extend(self.admit(*note).map(|note| self.write(note))),
                    Some(Message::Flush(done)) => {
                        writes.extend(self.folded(Duration::ZERO).into_iter().map(|note| self.write(note)));
                        flushed.push(done);
                    }
                    None => {
                        open = false;
                        writes.extend(self.folded(Duration::ZERO).into_iter().map(|note| self.write(note)));
                    }
                },
                _ = ticks.tick(), if open => {
                    writes.extend(self.folded(WINDOW).into_iter().map(|note| self.write(note)));
                }
                Some(()) = writes.next(), if !writes.is_empty() => {}
            }
            if writes.is_empty() {
                for done in flushed.drain(..) {
                    // The caller may have given up waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    /// Returns the event, if it is to be written individually.
    fn admit(&mut self, mut note: Entry) -> Option<Entry> {
        if note.fact.repeated().is_none() {
            return Some(note);
        }
        let each = if matches!(note.fact, AccessEvent::AuditRead(_)) { 0 } else { EACH };
        let key = (note.place, note.actor.id.clone(), note.fact.wire().0, code(&note.fact).to_owned());
        if self.floods.len() >= FLOODS && !self.floods.contains_key(&key) {
            lost("too many floods at once");
            return None;
        }
        let begun = || Counted { since: Instant::now(), written: 0, more: 0, last: note.clone() };
        let flood = self.floods.entry(key).or_insert_with(begun);
        if flood.written < each {
            flood.written += 1;
            return Some(note);
        }
        if let (AccessEvent::AuditRead(read), AccessEvent::AuditRead(before)) = (&mut note.fact, &flood.last.fact)
            && read.query != before.query
        {
            // The reads were for several things.
            read.query = None;
        }
        flood.more += 1;
        flood.last = note;
        None
    }

    /// Ends the floods that are older than `age`. The events that were only counted become one entry for each flood.
    fn folded(&mut self, age: Duration) -> Vec<Entry> {
        let ended = self.floods.extract_if(|_, flood| flood.since.elapsed() >= age).map(|(_, flood)| flood);
        let folded = ended.filter(|flood| flood.more > 0).map(|mut flood| {
            if let Some(repeated) = flood.last.fact.repeated() {
                *repeated = flood.more;
            }
            flood.last
        });
        folded.collect()
    }

    fn write(&self, note: Entry) -> impl Future<Output = ()> + use<> {
        let (log, db) = (self.log.clone(), self.db.clone());
        async move {
            let Entry { place, actor, origin, fact } = note;
            let written = match place {
                // What is unknown of it is written down.
                Place::Org(org) if is_closed(&db, org).await.unwrap_or_default() => Ok(()),
                Place::Org(org) => append(&log, org, actor, origin, fact).await.map(|_| ()),
                Place::HomeOf(user) => match home(&db, user, &actor).await {
                    Ok(Some((org, actor))) => append(&log, org, actor, origin, fact).await.map(|_| ()),
                    Ok(None) => Ok(()),
                    Err(error) => Err(CommandError::Unavailable(cause(error))),
                },
            };
            if let Err(error) = written {
                tracing::warn!(error = %Chain(&error), "a fact about access could not be written down");
                lost("it could not be written");
            }
        }
    }
}

/// Whether an organization has ended, or is about to: nothing is written down in it any more.
async fn is_closed(db: &Database, org: OrgId) -> Result<bool, DbError> {
    Ok(org != PLATFORM_ORG && db.deletion_step(org).await?.is_some_and(DeletionStep::is_closed))
}

/// Returns the first organization of a person, and their member there: their identity outside is not disclosed.
async fn home(db: &Database, user: UserId, outside: &Actor) -> Result<Option<(OrgId, Actor)>, DbError> {
    let Some(org) = db.orgs_of_user(user).await?.into_iter().next() else { return Ok(None) };
    let mut tx = db.read(BoundOrg::proven_by_credential(org)).await?;
    let member = members::get_by_user(&mut tx, user).await?;
    Ok(member.map(|member| {
        let actor = Actor { actor_type: ActorType::Member, id: member.id.to_string(), auth: outside.auth.clone() };
        (org, actor)
    }))
}

async fn append(
    log: &Log,
    org: OrgId,
    actor: Actor,
    origin: Origin,
    fact: AccessEvent,
) -> Result<Position, CommandError> {
    let placement = log.placement(org).await?.ok_or(CommandError::NoOrganization(org))?;
    let now = now();
    let draft = CommitDraft {
        org,
        aggregate: AggregateId::Access(org),
        version_before: 0,
        command_id: CommandId::fresh(now.unix_ms(), rand::random()),
        fingerprint: None,
        actor,
        occurred_at: now,
        recorded_at: now,
        causation_id: None,
        correlation_id: None,
        request_id: origin.request_id,
        context: origin.context,
        events: vec![Event::Access(fact)],
    };
    let commit = draft.seal(|| Salt(rand::random())).map_err(AppendError::from)?;
    let appended = log.append(&placement, &commit, Expected::Any, origin.trace.as_deref()).await?;
    Ok(Position { org, seq: appended.seq })
}
