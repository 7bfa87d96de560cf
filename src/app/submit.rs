//! The one entry point for commands, whether they come by HTTP or NATS: permission, idempotency key, handler, outcome.

use std::{
    collections::{HashMap, HashSet},
    hash::RandomState,
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use metrics::counter;
use orgstream_domain::{Command, HourlyLimit, Permission, RevokeApiKey, Scopes};
use orgstream_events::{Actor, ActorType, AggregateId, CommandId, Context, Fingerprint, KeyId, OrgId, PlanName, Role};
use orgstream_projections::{BoundOrg, Database};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    access_log::{AccessLog, DeniedRequest},
    key_lookups::KeyLookups,
    onboarding::FOUNDING,
    problem::Problem,
    waiting::Waiting,
};
use crate::{
    auth::{Access, AuthError, Authenticator},
    commands::{
        handler::{CommandHandler, fingerprint},
        request::{Accepted, Caller, CommandError, Request, Right},
    },
    limits::{
        command_rate::{Admission, Admitted},
        hourly::{Quotas, Taken},
    },
    secret::Secret,
};

/// The maximum number of commands in one request.
pub const MAX_BATCH: usize = 1_000;
/// The maximum number of concurrent commands of one request.
const MAX_CONCURRENCY: usize = 64;
/// The longest stored text of where a key was found.
const MAX_PLACE: usize = 400;

/// The origin of a request, besides its content.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The personal data about the request.
    pub context: Context,
    /// The request id, as in the access log.
    pub request_id: Option<String>,
    /// The W3C trace context to continue.
    pub trace: Option<String>,
    /// The entry point: method and path as the router has it, or `NATS cmd`.
    pub route: String,
}

/// The outcome of one command.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum CommandOutcome {
    /// The command is in the event log.
    Accepted(AcceptedCommand),
    /// The command was refused, for the given reason.
    Refused {
        /// The reason.
        error: Problem,
    },
}

/// What a caller is told about a command that was accepted.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AcceptedCommand {
    /// Command id (`cmd_` and 26 characters).
    #[schema(example = "cmd_01h455vb4pex5vsknk084sn02q")]
    pub command_id: String,
    /// Type of the aggregate, such as `record`.
    #[schema(example = "record")]
    pub aggregate: &'static str,
    /// Id of the aggregate; of a created thing, its new id.
    #[schema(example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: String,
    /// Version after the command; `If-Match` takes it.
    pub version: u64,
    /// Position in the organization's stream; `Min-Position` takes it.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: String,
    /// Names of the events; empty when everything already was as asked.
    #[schema(example = json!(["record.created"]))]
    pub events: Vec<String>,
    /// Ids of the records that `append_records` wrote, in the order of `items`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false, example = json!(["res_01h455vb4pex5vsknk084sn02q"]))]
    pub ids: Vec<String>,
    /// Id of the hold that `reserve_usage` opened (`hold_` and 26 characters).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "hold_01h455vb4pex5vsknk084sn02q")]
    pub hold: Option<String>,
    /// True if the command had been accepted before, under the same idempotency key.
    pub replayed: bool,
    /// Token of a new API key. It is shown in this answer and nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub token: Option<Secret>,
}

impl From<Accepted> for AcceptedCommand {
    fn from(accepted: Accepted) -> Self {
        Self {
            command_id: accepted.command_id.to_string(),
            aggregate: accepted.aggregate.aggregate_type().name(),
            id: accepted.aggregate.id(),
            version: accepted.version,
            position: accepted.position.to_string(),
            events: accepted.events,
            ids: accepted.records.iter().map(ToString::to_string).collect(),
            hold: accepted.hold.map(|hold| hold.to_string()),
            replayed: accepted.replayed,
            token: accepted.token.map(|token| token.reveal().into()),
        }
    }
}

impl From<Result<Accepted, Problem>> for CommandOutcome {
    fn from(result: Result<Accepted, Problem>) -> Self {
        match result {
            Ok(accepted) => Self::Accepted(accepted.into()),
            Err(error) => Self::Refused { error },
        }
    }
}

/// The entry point for commands.
pub struct Gateway {
    pub(super) handler: CommandHandler,
    auth: Arc<Authenticator>,
    pub(super) db: Database,
    pub(super) access_log: AccessLog,
    key_lookups: KeyLookups,
    admission: Admission,
    pub(super) quotas: Quotas,
    pub(super) waiting: Arc<Waiting>,
    pub(super) public_plan: PlanName,
    pub(super) founding: Box<[Mutex<()>]>,
    pub(super) last_founding: Mutex<()>,
    pub(super) hasher: RandomState,
}

impl Gateway {
    /// Creates an entry point to `handler` for principals that `auth` authenticates; `db` stores idempotency keys, and
    /// `notes` records denials. Commands are accepted as far as `admission` and `quotas` allow, and a person whose personal
    /// organization is on `public_plan` creates no others.
    pub fn new(
        handler: CommandHandler,
        auth: Arc<Authenticator>,
        db: Database,
        access_log: AccessLog,
        admission: Admission,
        quotas: Quotas,
        public_plan: PlanName,
    ) -> Self {
        let founding = (0..FOUNDING).map(|_| Mutex::new(())).collect();
        let (last_founding, hasher) = (Mutex::new(()), RandomState::new());
        let (waiting, key_lookups) = (Waiting::new(db.clone()), KeyLookups::new(db.clone()));
        Self {
            handler,
            auth,
            db,
            access_log,
            key_lookups,
            admission,
            quotas,
            waiting,
            public_plan,
            founding,
            last_founding,
            hasher,
        }
    }

    /// Returns the recorder of access events.
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// Returns the rate limits of commands.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Returns the hourly quotas.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Returns the handler itself, for the program's own commands.
    pub fn handler(&self) -> &CommandHandler {
        &self.handler
    }

    /// Cancels a deletion for an owner, or for an operator, whose accesses lead to nothing else meanwhile.
    pub async fn cancel_deletion(
        &self,
        access: &Access,
        origin: &Origin,
        request: Request,
    ) -> Result<Accepted, Problem> {
        let caller = Caller {
            org: access.org(),
            actor: access.actor().clone(),
            role: access.role(),
            scopes: access.scopes().clone(),
            proof: None,
            right: None,
            creator: None,
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let accepted = self.handler.handle(&caller, request).await?;
        self.wait_for_access(accepted.position).await;
        Ok(accepted)
    }

    /// Carries out one command for a principal in an org.
    pub async fn submit(&self, access: &Access, origin: &Origin, request: Request) -> Result<Accepted, Problem> {
        self.submit_all(access, origin, vec![request])
            .await
            .pop()
            .unwrap_or_else(|| Err(Problem::bad_request("no command")))
    }

    /// Carries out the commands, each with its own outcome, in the order they came.
    ///
    /// Commands about the same aggregate are carried out one after the other, and not at all behind one whose effect is
    /// uncertain; the others concurrently.
    pub async fn submit_all(
        &self,
        access: &Access,
        origin: &Origin,
        requests: Vec<Request>,
    ) -> Vec<Result<Accepted, Problem>> {
        let caller = Caller {
            org: access.org(),
            actor: access.actor().clone(),
            role: access.role(),
            scopes: access.scopes().clone(),
            proof: access.proof().cloned(),
            right: Some(Right { auth: Arc::clone(&self.auth), access: access.clone() }),
            creator: None,
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let (requests, mut unfit) = self.without_secrets(access, requests).await;
        let known = self.known_keys(access.bound(), &requests).await;
        let mut lanes: HashMap<Order, Vec<(usize, Request)>> = HashMap::new();
        let mut outcomes: Vec<Option<Result<Accepted, Problem>>> = Vec::with_capacity(requests.len());
        let mut targets = Vec::with_capacity(requests.len());
        let mut allowed = Vec::with_capacity(requests.len());
        for (place, request) in requests.into_iter().enumerate() {
            let permission = request.command.spec().requires.permission();
            let attempt = DeniedRequest { target: permission.map_or("organization", Permission::subject), asked: None };
            targets.push(attempt);
            let refusal: Option<Problem> = match permission {
                None => Some(AuthError::SessionOnly.into()),
                Some(permission) => access.require(permission).err().map(Problem::from),
            };
            if let Some(refusal) = &refusal {
                self.access_log.not_allowed(access, origin, attempt, refusal);
            }
            let refusal = refusal.or_else(|| unfit.remove(&place)).or_else(|| match &known {
                Ok(known) => known.reused.contains(&place).then(|| CommandError::KeyReused.into()),
                Err(problem) => Some(problem.clone()),
            });
            if refusal.is_none() {
                allowed.push((place, request));
            }
            outcomes.push(refusal.map(Err));
        }
        // A command that was done before is only answered again, which consumes nothing of the organization's rate.
        let is_new = |place: usize| known.as_ref().is_ok_and(|known| !known.done.contains(&place));
        let fresh = allowed.iter().filter(|(place, _)| is_new(*place)).count();
        let Admitted { taken: mut room, refusal: over_rate } = match access.rules() {
            Some(rules) => self.admission.admit(access.org(), rules, fresh),
            None => Admitted { taken: fresh, refusal: None },
        };
        let refusal = over_rate.map(Problem::from);
        if let Some(refusal) = &refusal {
            self.access_log.not_allowed(access, origin, DeniedRequest { target: "commands", asked: None }, refusal);
        }
        let mut taken: HashMap<usize, Taken> = HashMap::new();
        for (place, request) in allowed {
            if is_new(place) {
                if room == 0 {
                    if let Some(slot) = outcomes.get_mut(place) {
                        *slot = refusal.clone().map(Err);
                    }
                    continue;
                }
                room -= 1;
                match self.within_quota(access.org(), &request.command) {
                    Ok(quota) => taken.extend(quota.map(|quota| (place, quota))),
                    Err(refusal) => {
                        if let Some(slot) = outcomes.get_mut(place) {
                            *slot = Some(Err(refusal));
                        }
                        continue;
                    }
                }
            }
            // A command that creates something is about an aggregate of its own; one that changes something waits its turn.
            let lane = request.command.order_key(access.org()).map_or(Order::Any(place), Order::Of);
            lanes.entry(lane).or_default().push((place, request));
        }
        let finished: Vec<Vec<(usize, Result<Accepted, Problem>)>> = stream::iter(lanes.into_values())
            .map(|lane| self.in_order(&caller, lane))
            .buffer_unordered(MAX_CONCURRENCY)
            .collect()
            .await;
        for (place, outcome) in finished.into_iter().flatten() {
            // A refused command consumes no quota.
            if let Some(quota) = taken.remove(&place)
                && outcome.as_ref().is_err_and(|problem| !problem.may_pass())
            {
                quota.give_back();
            }
            // The aggregate's own rules, or a quota, do not permit this caller the command.
            if let (Err(problem), Some(attempt)) = (&outcome, targets.get(place))
                && (problem.status == 403 || problem.is_over_quota())
            {
                self.access_log.not_allowed(access, origin, *attempt, problem);
            }
            if let Some(slot) = outcomes.get_mut(place) {
                *slot = Some(outcome);
            }
        }
        let unanswered = || Err(Problem::internal("a command was not answered"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unanswered)).collect()
    }

    /// Takes the command's quota from the organization's.
    fn within_quota(&self, org: OrgId, command: &Command) -> Result<Option<Taken>, Problem> {
        match command.spec().hourly_limit {
            Some(HourlyLimit::Invitations) => Ok(Some(self.quotas.take_invitation(org)?)),
            None => Ok(None),
        }
    }

    /// Revokes a key whose token was found in public; `place` says where, in the finder's words.
    pub async fn revoke_leaked(&self, org: OrgId, id: KeyId, place: &str, origin: &Origin) -> Result<(), Problem> {
        let caller = Caller {
            org,
            actor: Actor { actor_type: ActorType::System, id: "leaked_keys".to_owned(), auth: None },
            role: Role::Owner,
            scopes: Scopes::ALL,
            proof: None,
            right: None,
            creator: None,
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let place: String = place.chars().filter(|c| !c.is_control()).take(MAX_PLACE).collect();
        let reason = Some(format!("leaked: found in public, {place}"));
        let accepted = self.handler.handle(&caller, Command::from(RevokeApiKey { id, reason }).into()).await?;
        counter!("orgstream_leaked_keys_total").increment(1);
        tracing::warn!(org.id = %org, key.id = %id, "a leaked key was revoked");
        self.wait_for_access(accepted.position).await;
        Ok(())
    }

    async fn in_order(&self, caller: &Caller, lane: Vec<(usize, Request)>) -> Vec<(usize, Result<Accepted, Problem>)> {
        let mut outcomes = Vec::with_capacity(lane.len());
        let mut is_open = false;
        for (place, request) in lane {
            // An earlier command that may still take effect, or be sent again, must not be overtaken.
            if is_open {
                outcomes.push((place, Err(Problem::not_tried())));
                continue;
            }
            let spec = request.command.spec();
            let gives_access = spec.gives_access;
            let outcome = match caller.as_now(spec.requires).await {
                Ok(caller) => self.handler.handle(&caller, request).await.map_err(Problem::from),
                Err(lost) => Err(lost.into()),
            };
            match &outcome {
                Ok(accepted) if gives_access => self.wait_for_access(accepted.position).await,
                Ok(_) => {}
                Err(problem) => is_open = problem.may_pass(),
            }
            outcomes.push((place, outcome));
        }
        outcomes
    }

    /// Takes the secrets out of the requests with an idempotency key, so that what is compared with earlier ones has none.
    /// Returns the requests, and the problems of those whose secrets are not as they must be.
    async fn without_secrets(
        &self,
        access: &Access,
        requests: Vec<Request>,
    ) -> (Vec<Request>, HashMap<usize, Problem>) {
        let taken = stream::iter(requests.into_iter().enumerate()).map(|(place, mut request)| async move {
            let permission = request.command.spec().requires.permission();
            let is_allowed = permission.is_some_and(|permission| access.require(permission).is_ok());
            if request.idempotency_key.is_none() || !is_allowed {
                return (request, None);
            }
            let taken = Box::pin(self.handler.take_secrets(access.org(), &mut request)).await;
            (request, taken.err().map(|error| (place, Problem::from(error))))
        });
        let taken: Vec<_> = taken.buffered(MAX_CONCURRENCY).collect().await;
        let (requests, problems): (Vec<Request>, Vec<Option<(usize, Problem)>>) = taken.into_iter().unzip();
        (requests, problems.into_iter().flatten().collect())
    }

    /// Returns which of the requests have an idempotency key that was used before, and for which command.
    ///
    /// The stream itself detects a key that is used again for the same aggregate; this detects the others.
    async fn known_keys(&self, org: BoundOrg, requests: &[Request]) -> Result<KnownKeys, Problem> {
        let mut keyed: HashMap<CommandId, (usize, Fingerprint)> = HashMap::new();
        let mut known = KnownKeys::default();
        for (place, request) in requests.iter().enumerate() {
            let Some(key) = &request.idempotency_key else { continue };
            let id = CommandId::from_idempotency_key(org.org(), key);
            let asked = fingerprint(request).map_err(Problem::from)?;
            if keyed.get(&id).is_some_and(|(_, earlier)| *earlier != asked) {
                known.reused.insert(place);
                continue;
            }
            keyed.insert(id, (place, asked));
        }
        if keyed.is_empty() {
            return Ok(known);
        }
        let done = self.key_lookups.find(org, keyed.keys().copied().collect()).await?;
        for (id, (place, asked)) in &keyed {
            if let Some(fingerprint) = done.get(id) {
                if asked == fingerprint {
                    known.done.insert(*place)
                } else {
                    known.reused.insert(*place)
                };
            }
        }
        Ok(known)
    }
}

/// The order among the commands of one request: those about one aggregate wait for each other, and the rest for nothing.
#[derive(PartialEq, Eq, Hash)]
enum Order {
    Of(AggregateId),
    Any(usize),
}

/// The indices in a request of those whose idempotency key was used before.
#[derive(Default)]
struct KnownKeys {
    /// For this command, which is done.
    done: HashSet<usize>,
    /// For another command.
    reused: HashSet<usize>,
}
