//! The one way in for commands, whether they come by HTTP or NATS: permission, idempotency key, handler, outcome.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use orgstream_events::{CommandId, Context, OrgId, PLATFORM_ORG, Pipeline, PlanName, Position, Role, TenantType};
use orgstream_projections::{BoundOrg, Database, checkpoints, idempotency};
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use utoipa::ToSchema;

use crate::{
    auth::{Access, AuthError, Permission, Principal},
    commands::{
        Command,
        handler::{Accepted, Caller, CommandError, CommandHandler, Creator, Request, fingerprint},
        personal::{create_personal, no_address, personal_org},
    },
    problem::Problem,
};

/// The most commands in one request.
pub const MAX_BATCH: usize = 1_000;
/// Commands of one request that are under way at the same time.
const AT_ONCE: usize = 64;
/// People who sign in for the first time take turns, each by their own place among these.
const FOUNDING: usize = 256;
/// How long a command that gives access to something may wait until the access is there.
const ACCESS_WAIT: Duration = Duration::from_secs(2);

/// How a request came, beside what it says.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The personal part.
    pub context: Context,
    /// The request, as the access log has it.
    pub request_id: Option<String>,
    /// The W3C trace context to continue.
    pub trace: Option<String>,
}

/// What became of one command.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum CommandOutcome {
    /// It is in the event log.
    Accepted(AcceptedCommand),
    /// It is not, for the reason given.
    Refused {
        /// Why.
        error: Problem,
    },
}

/// What a caller is told about a command that was accepted.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AcceptedCommand {
    /// The command's id.
    #[schema(example = "cmd_01h455vb4pex5vsknk084sn02q")]
    pub command_id: String,
    /// What it was about.
    #[schema(example = "record")]
    pub aggregate: &'static str,
    /// The id of that; of a new thing, its new id.
    #[schema(example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: String,
    /// The version after the command: what `If-Match` takes.
    pub version: u64,
    /// Where it stands in the org's stream: what `Min-Position` takes.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: String,
    /// The names of its events. None when everything already was as asked.
    #[schema(example = json!(["record.created"]))]
    pub events: Vec<String>,
    /// Whether the command had been accepted before, under the same idempotency key.
    pub replayed: bool,
    /// A new API key's secret text. It is shown in this answer and nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
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
            replayed: accepted.replayed,
            token: accepted.token.map(|token| token.reveal()),
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

/// The way in.
pub struct Gateway {
    handler: CommandHandler,
    db: Database,
    public_plan: Option<PlanName>,
    founding: Box<[Mutex<()>]>,
    last_founding: Mutex<()>,
    hasher: RandomState,
}

impl Gateway {
    /// A way in to `handler`; `db` remembers idempotency keys. Whose personal organization is on `public_plan` makes no others.
    pub fn new(handler: CommandHandler, db: Database, public_plan: Option<PlanName>) -> Self {
        let founding = (0..FOUNDING).map(|_| Mutex::new(())).collect();
        Self { handler, db, public_plan, founding, last_founding: Mutex::new(()), hasher: RandomState::new() }
    }

    /// The handler itself, for what the program does on its own account.
    pub fn handler(&self) -> &CommandHandler {
        &self.handler
    }

    /// Carries out one command for somebody in an org.
    pub async fn submit(&self, access: &Access, origin: &Origin, request: Request) -> Result<Accepted, Problem> {
        self.submit_all(access, origin, vec![request])
            .await
            .pop()
            .unwrap_or_else(|| Err(Problem::bad_request("no command")))
    }

    /// Carries out the commands, each with its own outcome, in the order they came.
    ///
    /// Commands about the same thing are carried out one after the other, and not at all behind one whose effect is
    /// open; the others side by side.
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
            creator: None,
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let reused = self.reused_keys(access.bound(), &requests).await;
        let mut lanes: HashMap<String, Vec<(usize, Request)>> = HashMap::new();
        let mut outcomes: Vec<Option<Result<Accepted, Problem>>> = Vec::with_capacity(requests.len());
        for (place, request) in requests.into_iter().enumerate() {
            let refusal = match Permission::for_command(&request.command) {
                None => Some(AuthError::SessionOnly.into()),
                Some(permission) => access.require(permission).err().map(Problem::from),
            };
            let refusal = refusal.or_else(|| match &reused {
                Ok(reused) => reused.contains(&place).then(|| CommandError::KeyReused.into()),
                Err(problem) => Some(problem.clone()),
            });
            if refusal.is_none() {
                // What creates something is about a thing of its own; what changes something waits its turn.
                let lane = request.command.order_key().unwrap_or_else(|| format!("#{place}"));
                lanes.entry(lane).or_default().push((place, request));
            }
            outcomes.push(refusal.map(Err));
        }
        let finished: Vec<Vec<(usize, Result<Accepted, Problem>)>> = stream::iter(lanes.into_values())
            .map(|lane| self.in_order(&caller, lane))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (place, outcome) in finished.into_iter().flatten() {
            if let Some(slot) = outcomes.get_mut(place) {
                *slot = Some(outcome);
            }
        }
        let unanswered = || Err(Problem::internal(&"a command was not answered"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unanswered)).collect()
    }

    /// Makes an organization for the person who asks.
    pub async fn create_organization(
        &self,
        principal: &Principal,
        origin: &Origin,
        request: Request,
    ) -> Result<Accepted, Problem> {
        if let Command::CreateOrganization(command) = &request.command
            && command.tenant_type == TenantType::Personal
        {
            let rule = "a personal organization is made when its person first signs in: POST /v1/sessions";
            return Err(Problem::invalid("/tenant_type", "reserved", rule));
        }
        let (user, email) = match principal {
            Principal::User { user, email: Some(email), .. } => (*user, email.clone()),
            Principal::User { email: None, .. } => {
                return Err(Problem::invalid(
                    "",
                    "email_not_verified",
                    "your issuer has not verified your e-mail address",
                ));
            }
            Principal::Key { .. } | Principal::Operator => return Err(AuthError::SessionOnly.into()),
        };
        let personal = self.handler.profile(personal_org(user)).await.map_err(Problem::from)?;
        if let Some(plan) = personal.map(|profile| profile.plan).filter(|plan| Some(plan) == self.public_plan.as_ref())
        {
            let detail = format!("your plan is {plan}, which has no organizations: choose another plan first");
            return Err(Problem::new(403, "plan_required", "Not on this plan", detail));
        }
        self.found(principal, Creator { user, email }, origin, request).await
    }

    /// The organization of this person alone, which is made when they first sign in.
    ///
    /// Whoever comes at the same time waits here, so that a thousand browser tabs are one command; what several processes
    /// or a crash leave of it is the same command again, and its id follows from the person.
    pub async fn personal_organization(&self, principal: &Principal, origin: &Origin) -> Result<OrgId, Problem> {
        let user = principal.person()?;
        let place = self.hasher.hash_one(user) as usize % FOUNDING;
        let turn = self.founding.get(place).unwrap_or(&self.last_founding);
        let _turn = turn.lock().await;
        if let Some(org) = self.db.personal_org(user).await? {
            return Ok(org);
        }
        let email = match principal {
            Principal::User { email: Some(email), .. } => email.clone(),
            _ => no_address(user),
        };
        let accepted = self.found(principal, Creator { user, email }, origin, create_personal(user)).await?;
        let org = accepted.position.org;
        self.db.note_personal_org(user, org).await?;
        Ok(org)
    }

    async fn found(
        &self,
        principal: &Principal,
        creator: Creator,
        origin: &Origin,
        request: Request,
    ) -> Result<Accepted, Problem> {
        let caller = Caller {
            org: PLATFORM_ORG,
            actor: principal.actor(),
            role: Role::Owner,
            creator: Some(creator),
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let accepted = self.handler.handle(&caller, request).await?;
        self.wait_for_access(accepted.position).await;
        Ok(accepted)
    }

    /// Waits until `position` can be seen in the read models; false when it takes longer than `patience`.
    pub async fn wait_for(
        &self,
        org: BoundOrg,
        pipeline: Pipeline,
        seq: u64,
        patience: Duration,
    ) -> Result<bool, Problem> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(2);
        loop {
            if checkpoints::position(&mut self.db.read(org).await?, pipeline).await? >= seq {
                return Ok(true);
            }
            if Instant::now() + pause > deadline {
                return Ok(false);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    async fn in_order(&self, caller: &Caller, lane: Vec<(usize, Request)>) -> Vec<(usize, Result<Accepted, Problem>)> {
        let mut outcomes = Vec::with_capacity(lane.len());
        let mut is_open = false;
        for (place, request) in lane {
            // An earlier command that may still take effect, or be sent again, must not find itself overtaken.
            if is_open {
                outcomes.push((place, Err(Problem::not_tried())));
                continue;
            }
            let gives_access = request.command.gives_access();
            let outcome = self.handler.handle(caller, request).await.map_err(Problem::from);
            match &outcome {
                Ok(accepted) if gives_access => self.wait_for_access(accepted.position).await,
                Ok(_) => {}
                Err(problem) => is_open = problem.may_pass(),
            }
            outcomes.push((place, outcome));
        }
        outcomes
    }

    /// A new key, member or organization should work as soon as its maker knows of it. If the read models take too
    /// long, it works a little later; that is no reason to fail.
    async fn wait_for_access(&self, position: Position) {
        let org = BoundOrg::proven_by_credential(position.org);
        let waited = self.wait_for(org, Pipeline::ReadModels, position.seq, ACCESS_WAIT).await;
        if !matches!(waited, Ok(true)) {
            tracing::debug!(org.id = %position.org, event.seq = position.seq, "answered before the read models had it");
        }
    }

    /// The places of the requests whose idempotency key was used before for another command.
    ///
    /// The stream itself finds a key that is used again for the same thing; this finds the others.
    async fn reused_keys(&self, org: BoundOrg, requests: &[Request]) -> Result<Vec<usize>, Problem> {
        let mut keyed: HashMap<CommandId, (usize, &Command)> = HashMap::new();
        let mut reused = Vec::new();
        for (place, request) in requests.iter().enumerate() {
            let Some(key) = &request.idempotency_key else { continue };
            let id = CommandId::from_idempotency_key(org.org(), key);
            if let Some((_, earlier)) = keyed.get(&id)
                && **earlier != request.command
            {
                reused.push(place);
                continue;
            }
            keyed.insert(id, (place, &request.command));
        }
        if keyed.is_empty() {
            return Ok(reused);
        }
        let ids: Vec<CommandId> = keyed.keys().copied().collect();
        for done in idempotency::find(&mut self.db.read(org).await?, &ids).await? {
            if let Some((place, command)) = keyed.get(&done.command_id)
                && fingerprint(command).map_err(Problem::from)? != done.fingerprint
            {
                reused.push(*place);
            }
        }
        Ok(reused)
    }
}
