//! The one way in for commands, whether they come by HTTP or NATS: permission, idempotency key, handler, outcome.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use metrics::counter;
use orgstream_events::{
    Actor, ActorType, CommandId, Context, DomainName, KeyId, OrgId, PLATFORM_ORG, Pipeline, PlanName, Position, Role,
    TenantType, UserId,
};
use orgstream_projections::{BoundOrg, Database, idempotency, invitations};
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};
use utoipa::ToSchema;

use crate::{
    admission::{Admission, Admitted},
    auth::{Access, AuthError, Permission, Principal, Scopes, invitation::InvitationToken},
    commands::{
        AcceptInvitation, Command, JoinByDomain, JoinBySso, RevokeApiKey,
        handler::{CommandHandler, fingerprint},
        personal::{create_personal, creation, no_address, personal_org},
        request::{Accepted, Caller, CommandError, Creator, Request},
    },
    notes::{Attempt, Notes},
    problem::Problem,
    quotas::Quotas,
    secret::Secret,
    waiting::{Mark, Waiting},
};

/// The most commands in one request.
pub const MAX_BATCH: usize = 1_000;
/// Commands of one request that are under way at the same time.
const AT_ONCE: usize = 64;
/// People who sign in for the first time take turns, each by their own place among these.
const FOUNDING: usize = 256;
/// How much is kept of where a key was found.
const MAX_PLACE: usize = 400;
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
    /// Which door: method and path as the router has it, or `NATS cmd`.
    pub route: String,
}

/// What became of one command.
#[derive(Debug, Clone, Serialize)]
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

/// The way in.
pub struct Gateway {
    handler: CommandHandler,
    db: Database,
    notes: Notes,
    admission: Admission,
    quotas: Quotas,
    waiting: Arc<Waiting>,
    public_plan: PlanName,
    founding: Box<[Mutex<()>]>,
    last_founding: Mutex<()>,
    hasher: RandomState,
}

impl Gateway {
    /// A way in to `handler`; `db` remembers idempotency keys, and `notes` who was turned away. As much is taken as
    /// `admission` and `quotas` allow, and whose personal organization is on `public_plan` makes no others.
    pub fn new(
        handler: CommandHandler,
        db: Database,
        notes: Notes,
        admission: Admission,
        quotas: Quotas,
        public_plan: PlanName,
    ) -> Self {
        let founding = (0..FOUNDING).map(|_| Mutex::new(())).collect();
        let (last_founding, hasher) = (Mutex::new(()), RandomState::new());
        let waiting = Waiting::new(db.clone());
        Self { handler, db, notes, admission, quotas, waiting, public_plan, founding, last_founding, hasher }
    }

    /// Where what happens at the door is noted.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// How much is taken of whom.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// What is set going by whom.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
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
            scopes: access.scopes().clone(),
            creator: None,
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let known = self.known_keys(access.bound(), &requests).await;
        let mut lanes: HashMap<String, Vec<(usize, Request)>> = HashMap::new();
        let mut outcomes: Vec<Option<Result<Accepted, Problem>>> = Vec::with_capacity(requests.len());
        let mut targets = Vec::with_capacity(requests.len());
        let mut allowed = Vec::with_capacity(requests.len());
        for (place, request) in requests.into_iter().enumerate() {
            let permission = Permission::for_command(&request.command);
            let attempt = Attempt { target: permission.map_or("organization", Permission::subject), asked: None };
            targets.push(attempt);
            let refusal: Option<Problem> = match permission {
                None => Some(AuthError::SessionOnly.into()),
                Some(permission) => access.require(permission).err().map(Problem::from),
            };
            if let Some(refusal) = &refusal {
                self.notes.not_allowed(access, origin, attempt, refusal);
            }
            let refusal = refusal.or_else(|| match &known {
                Ok(known) => known.reused.contains(&place).then(|| CommandError::KeyReused.into()),
                Err(problem) => Some(problem.clone()),
            });
            if refusal.is_none() {
                allowed.push((place, request));
            }
            outcomes.push(refusal.map(Err));
        }
        // What was done before is only answered again, which takes nothing of the organization's rate.
        let is_new = |place: usize| known.as_ref().is_ok_and(|known| !known.done.contains(&place));
        let fresh = allowed.iter().filter(|(place, _)| is_new(*place)).count();
        let Admitted { taken: mut room, refusal } = match access.rules() {
            Some(rules) => self.admission.admit(access.org(), rules, fresh),
            None => Admitted { taken: fresh, refusal: None },
        };
        if let Some(refusal) = &refusal {
            self.notes.not_allowed(access, origin, Attempt { target: "commands", asked: None }, refusal);
        }
        for (place, request) in allowed {
            if is_new(place) {
                if room == 0 {
                    if let Some(slot) = outcomes.get_mut(place) {
                        *slot = refusal.clone().map(Err);
                    }
                    continue;
                }
                room -= 1;
                if let Err(refusal) = self.within_quota(access.org(), &request.command) {
                    if let Some(slot) = outcomes.get_mut(place) {
                        *slot = Some(Err(refusal));
                    }
                    continue;
                }
            }
            // What creates something is about a thing of its own; what changes something waits its turn.
            let lane = request.command.order_key().unwrap_or_else(|| format!("#{place}"));
            lanes.entry(lane).or_default().push((place, request));
        }
        let finished: Vec<Vec<(usize, Result<Accepted, Problem>)>> = stream::iter(lanes.into_values())
            .map(|lane| self.in_order(&caller, lane))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (place, outcome) in finished.into_iter().flatten() {
            // What the rules of a thing itself do not let this caller do.
            if let (Err(problem), Some(attempt)) = (&outcome, targets.get(place))
                && problem.status == 403
            {
                self.notes.not_allowed(access, origin, *attempt, problem);
            }
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
        let creator = person(principal).inspect_err(|problem| {
            let attempt = Attempt { target: "organization", asked: None };
            self.notes.turned_away(principal, origin, attempt, problem);
        })?;
        let personal = self.handler.profile(personal_org(creator.user)).await.map_err(Problem::from)?;
        if let Some(plan) = personal.map(|profile| profile.plan).filter(|plan| *plan == self.public_plan) {
            let detail = format!("your plan is {plan}, which has no organizations: choose another plan first");
            return Err(Problem::new(403, "plan_required", "Not on this plan", detail));
        }
        // Repeated under its key it makes no further one, and whoever sends it several times at once has sent it once.
        let _turn = self.founding_turn(creator.user).await;
        let is_known = match &request.idempotency_key {
            Some(key) => {
                let org = OrgId::derive(creation(&creator.user.to_string(), key));
                self.handler.profile(org).await.map_err(Problem::from)?.is_some()
            }
            None => false,
        };
        if !is_known {
            self.quotas.take_organization(creator.user)?;
        }
        self.enter(PLATFORM_ORG, principal, creator, origin, request).await
    }

    /// Waits until nothing else of this person is being founded here.
    async fn founding_turn(&self, user: UserId) -> MutexGuard<'_, ()> {
        let place = self.hasher.hash_one(user) as usize % FOUNDING;
        self.founding.get(place).unwrap_or(&self.last_founding).lock().await
    }

    /// Takes what the command sets going of what the organization may.
    fn within_quota(&self, org: OrgId, command: &Command) -> Result<(), Problem> {
        match command {
            Command::IssueInvitation(_) | Command::ResendInvitation(_) => self.quotas.take_invitation(org),
            _ => Ok(()),
        }
    }

    /// The organization of this person alone, which is made when they first sign in.
    ///
    /// Whoever comes at the same time waits here, so that a thousand browser tabs are one command; what several processes
    /// or a crash leave of it is the same command again, and its id follows from the person.
    pub async fn personal_organization(&self, principal: &Principal, origin: &Origin) -> Result<OrgId, Problem> {
        let user = principal.person()?;
        let _turn = self.founding_turn(user).await;
        if let Some(org) = self.db.personal_org(user).await? {
            return Ok(org);
        }
        let email = match principal {
            Principal::User { email: Some(email), .. } => email.clone(),
            _ => no_address(user),
        };
        let accepted =
            self.enter(PLATFORM_ORG, principal, Creator { user, email }, origin, create_personal(user)).await?;
        let org = accepted.position.org;
        self.db.note_personal_org(user, org).await?;
        Ok(org)
    }

    /// Adds the person who asks to the organization that invited them.
    pub async fn accept_invitation(
        &self,
        principal: &Principal,
        origin: &Origin,
        key: Option<String>,
        token: InvitationToken,
    ) -> Result<Accepted, Problem> {
        let creator = person(principal)?;
        let mac = token.mac(self.handler.pepper());
        let org = self.db.org_of_invitation(&mac).await?.ok_or_else(no_invitation)?;
        // Which one it is. Whether it can be accepted is decided by its history.
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let found = invitations::get_by_token(&mut tx, &mac).await?.ok_or_else(no_invitation)?;
        drop(tx);
        let accept = Command::from(AcceptInvitation { id: found.id, token });
        let request = Request { idempotency_key: key, ..accept.into() };
        let accepted = self.enter(org, principal, creator, origin, request).await;
        accepted.map_err(|problem| if problem.status == 404 { no_invitation() } else { problem })
    }

    /// Adds whoever has just signed in to the organizations that let people in like that: what every way of signing in calls.
    pub async fn signed_in(&self, principal: &Principal, origin: &Origin) -> Result<(), Problem> {
        if let Principal::User { user, email: Some(email), .. } = principal {
            self.join_by_domain(principal, *user, email, origin).await?;
        }
        self.join_by_sso(principal, origin).await?;
        Ok(())
    }

    /// Adds whoever signs in to the organizations that let people in by the domain of their address, and says which those
    /// were: what every way of signing in calls once it knows who somebody is. `email` must be verified.
    pub async fn join_by_domain(
        &self,
        principal: &Principal,
        user: UserId,
        email: &str,
        origin: &Origin,
    ) -> Result<Vec<OrgId>, Problem> {
        let Some(domain) = DomainName::of_email(email) else { return Ok(Vec::new()) };
        let orgs = self.db.orgs_of_domain(&domain).await?;
        let known = if orgs.is_empty() { Vec::new() } else { self.db.orgs_of_user(user).await? };
        let mut joined = Vec::new();
        for org in orgs.into_iter().filter(|org| !known.contains(org)) {
            let creator = Creator { user, email: email.to_owned() };
            let join = Command::from(JoinByDomain { domain: domain.clone() });
            match self.enter(org, principal, creator, origin, join.into()).await {
                Ok(_) => joined.push(org),
                Err(problem) if problem.retry_after.is_some() => return Err(not_joined(org, &problem)),
                // Nobody is kept from signing in by what an organization does not give them.
                Err(problem) => {
                    tracing::debug!(org.id = %org, code = problem.code, "nobody joins here by their domain");
                }
            }
        }
        Ok(joined)
    }

    /// Adds whoever an organization's own issuer signed in to that organization, where it lets people in like that: what every
    /// way of signing in calls once it knows who somebody is. True when they are a member now and were none.
    pub async fn join_by_sso(&self, principal: &Principal, origin: &Origin) -> Result<bool, Problem> {
        let Principal::Sso { org, connection, user, email: Some(email), .. } = principal else { return Ok(false) };
        if self.db.orgs_of_user(*user).await?.contains(org) {
            return Ok(false);
        }
        let creator = Creator { user: *user, email: email.clone() };
        let join = Command::from(JoinBySso { id: *connection });
        match self.enter(*org, principal, creator, origin, join.into()).await {
            Ok(_) => Ok(true),
            Err(problem) if problem.retry_after.is_some() => Err(not_joined(*org, &problem)),
            // Nobody is kept from signing in by what they might have been given besides.
            Err(problem) if problem.status < 500 => {
                tracing::debug!(org.id = %org, code = problem.code, "nobody joins here by signing in");
                Ok(false)
            }
            Err(problem) => Err(problem),
        }
    }

    /// Carries out what somebody asks who is not in the organization yet.
    async fn enter(
        &self,
        org: OrgId,
        principal: &Principal,
        creator: Creator,
        origin: &Origin,
        request: Request,
    ) -> Result<Accepted, Problem> {
        let caller = Caller {
            org,
            actor: principal.actor(),
            role: Role::Owner,
            scopes: Scopes::ALL,
            creator: Some(creator),
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let accepted = self.handler.handle(&caller, request).await?;
        self.wait_for_access(accepted.position).await;
        Ok(accepted)
    }

    /// Ends a key whose token somebody found in public; `place` says where, in the finder's words.
    pub async fn revoke_leaked(&self, org: OrgId, id: KeyId, place: &str, origin: &Origin) -> Result<(), Problem> {
        let caller = Caller {
            org,
            actor: Actor { actor_type: ActorType::System, id: "leaked_keys".to_owned(), auth: None },
            role: Role::Owner,
            scopes: Scopes::ALL,
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

    /// Waits until `position` can be seen in the read models; false when it takes longer than `patience`.
    pub async fn wait_for(
        &self,
        org: BoundOrg,
        pipeline: Pipeline,
        seq: u64,
        patience: Duration,
    ) -> Result<bool, Problem> {
        self.waiting.until(org, Mark::Applied(pipeline), seq, patience).await
    }

    /// Waits until the audit log has a signed head of at least `size`; false when it takes longer than `patience`.
    pub async fn wait_for_signature(&self, org: BoundOrg, size: u64, patience: Duration) -> Result<bool, Problem> {
        self.waiting.until(org, Mark::Signed, size, patience).await
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

    /// Which of the requests have an idempotency key that was used before, and for what.
    ///
    /// The stream itself finds a key that is used again for the same thing; this finds the others.
    async fn known_keys(&self, org: BoundOrg, requests: &[Request]) -> Result<KnownKeys, Problem> {
        let mut keyed: HashMap<CommandId, (usize, &Command)> = HashMap::new();
        let mut known = KnownKeys::default();
        for (place, request) in requests.iter().enumerate() {
            let Some(key) = &request.idempotency_key else { continue };
            let id = CommandId::from_idempotency_key(org.org(), key);
            if let Some((_, earlier)) = keyed.get(&id)
                && **earlier != request.command
            {
                known.reused.insert(place);
                continue;
            }
            keyed.insert(id, (place, &request.command));
        }
        if keyed.is_empty() {
            return Ok(known);
        }
        let ids: Vec<CommandId> = keyed.keys().copied().collect();
        for done in idempotency::find(&mut self.db.read(org).await?, &ids).await? {
            if let Some((place, command)) = keyed.get(&done.command_id) {
                let same = fingerprint(command).map_err(Problem::from)? == done.fingerprint;
                if same {
                    known.done.insert(*place)
                } else {
                    known.reused.insert(*place)
                };
            }
        }
        Ok(known)
    }
}

/// The places in a request of those whose idempotency key was used before.
#[derive(Default)]
struct KnownKeys {
    /// For this command, which is done.
    done: HashSet<usize>,
    /// For another.
    reused: HashSet<usize>,
}

/// The person, at an address that is proven to be theirs.
fn person(principal: &Principal) -> Result<Creator, Problem> {
    match principal {
        Principal::User { user, email: Some(email), .. } => Ok(Creator { user: *user, email: email.clone() }),
        Principal::User { email: None, .. } => {
            Err(Problem::invalid("", "email_not_verified", "your issuer has not verified your e-mail address"))
        }
        Principal::Sso { .. } => Err(Problem::new(
            403,
            "own_issuer_only",
            "Only with an issuer of the platform",
            "Your organization's own issuer signed you in, which counts in that organization alone.",
        )),
        Principal::Key { .. } | Principal::Operator(_) => Err(AuthError::SessionOnly.into()),
    }
}

/// Whoever would be a member, but for something that passes, must hear of it and come again: in silence they would be none.
fn not_joined(org: OrgId, problem: &Problem) -> Problem {
    tracing::warn!(org.id = %org, code = problem.code, "somebody who signs in could not be added for now");
    Problem::unavailable("You could not be added to your organization at the moment; sign in again.")
}

fn no_invitation() -> Problem {
    Problem::new(404, "not_found", "Not found", "There is no such invitation; was a newer one sent?")
}
