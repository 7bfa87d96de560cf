//! Joining: a person's own organizations, accepted invitations, joining by domain or by an issuer.
//!
//! A person who is not in an organization yet has no permission there: what they may do is decided by the organization's
//! history, and they are signed in.

use std::hash::BuildHasher;

use orgstream_domain::{
    AcceptInvitation, Command, JoinByDomain, JoinBySso, Scopes, credentials::invitation::InvitationToken,
};
use orgstream_events::{DomainName, OrgId, PLATFORM_ORG, Role, TenantType, UserId};
use orgstream_projections::{BoundOrg, deletions::DeletionStep, invitations};
use tokio::sync::MutexGuard;

use super::{access_log::DeniedRequest, problem::Problem};
use crate::{
    auth::{AuthError, Principal},
    commands::{
        personal::{create_personal, creation, no_address, personal_org},
        request::{Accepted, Caller, Creator, Request},
    },
};

use super::submit::{Gateway, Origin};

/// The most personal organizations that a person has had deleted.
const PERSONAL: u32 = 1_000;
/// The number of locks for first sign-ins, to each of which persons are assigned.
pub(super) const FOUNDING: usize = 256;

impl Gateway {
    /// Creates an organization for the caller.
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
            let attempt = DeniedRequest { target: "organization", asked: None };
            self.access_log.denied(principal, origin, attempt, problem);
        })?;
        let personal = match self.db.personal_org(creator.user).await? {
            Some(org) => org,
            None => personal_org(creator.user, 0),
        };
        let personal = self.handler.profile(personal).await.map_err(Problem::from)?;
        if let Some(plan) = personal.map(|profile| profile.plan).filter(|plan| *plan == self.public_plan) {
            let detail = format!("your plan is {plan}, which has no organizations: choose another plan first");
            return Err(Problem::new(403, "plan_required", "Not on this plan", detail));
        }
        // Repeated under its key the command creates no further organization, and sent several times at once it counts once.
        let _turn = self.founding_turn(creator.user).await;
        let is_known = match &request.idempotency_key {
            Some(key) => {
                let org = OrgId::derive(creation(&creator.user.to_string(), key));
                self.handler.profile(org).await.map_err(Problem::from)?.is_some()
            }
            None => false,
        };
        let taken = if is_known { None } else { Some(self.quotas.take_organization(creator.user)?) };
        let made = self.enter(PLATFORM_ORG, principal, creator, origin, request).await;
        // A refused command consumes no quota.
        if let Some(taken) = taken
            && made.as_ref().is_err_and(|problem| !problem.may_pass())
        {
            taken.give_back();
        }
        made
    }

    /// Waits until nothing else of this person is being founded here.
    async fn founding_turn(&self, user: UserId) -> MutexGuard<'_, ()> {
        let place = self.hasher.hash_one(user) as usize % FOUNDING;
        self.founding.get(place).unwrap_or(&self.last_founding).lock().await
    }

    /// Whether an organization was deleted, so that its person has none.
    async fn is_deleted(&self, org: OrgId) -> Result<bool, Problem> {
        let step = self.db.deletion_step(org).await?;
        Ok(matches!(step, Some(DeletionStep::Signing | DeletionStep::Done)))
    }

    /// Returns the person's personal organization, which is created when they first sign in, and when they sign in after it was
    /// deleted.
    ///
    /// Concurrent callers wait here, so that a thousand browser tabs are one command; several processes or a crash repeat
    /// the same command, and its id follows from the person.
    /// `known` is the one that the person had a moment ago.
    pub async fn personal_organization(
        &self,
        principal: &Principal,
        origin: &Origin,
        known: Option<OrgId>,
    ) -> Result<OrgId, Problem> {
        let user = principal.person()?;
        if let Some(org) = known
            && !self.is_deleted(org).await?
        {
            return Ok(org);
        }
        let _turn = self.founding_turn(user).await;
        // It may have been made meanwhile.
        if let Some(org) = self.db.personal_org(user).await?
            && known != Some(org)
        {
            return Ok(org);
        }
        let mut deleted = 0;
        while deleted < PERSONAL && self.is_deleted(personal_org(user, deleted)).await? {
            deleted += 1;
        }
        let email = match principal {
            Principal::User { email: Some(email), .. } => email.clone(),
            _ => no_address(user),
        };
        let accepted = self
            .enter(PLATFORM_ORG, principal, Creator { user, email }, origin, create_personal(user, deleted))
            .await?;
        let org = accepted.position.org;
        self.db.note_personal_org(user, org).await?;
        Ok(org)
    }

    /// Adds the caller to the organization that invited them.
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
        // Finds the invitation. Whether it can be accepted is decided by its history.
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let found = invitations::get_by_token(&mut tx, &mac).await?.ok_or_else(no_invitation)?;
        drop(tx);
        let accept = Command::from(AcceptInvitation { id: found.id, token });
        let request = Request { idempotency_key: key, ..accept.into() };
        let accepted = self.enter(org, principal, creator, origin, request).await;
        accepted.map_err(|problem| if problem.status == 404 { no_invitation() } else { problem })
    }

    /// Adds a person who has just signed in to the organizations that permit it: called by every sign-in method.
    pub async fn signed_in(&self, principal: &Principal, origin: &Origin) -> Result<(), Problem> {
        if let Principal::User { user, email: Some(email), .. } = principal {
            self.join_by_domain(principal, *user, email, origin).await?;
        }
        self.join_by_sso(principal, origin).await?;
        Ok(())
    }

    /// Adds a person who signs in to the organizations that permit joining by the domain of their address, and returns
    /// those: called by every sign-in method after authentication. `email` must be verified.
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
                // An organization's refusal does not keep a person from signing in.
                Err(problem) => {
                    tracing::debug!(org.id = %org, code = problem.code, "this organization admits no members by their domain");
                }
            }
        }
        Ok(joined)
    }

    /// Adds a person whom an organization's own issuer signed in to that organization, where it permits that: called by
    /// every sign-in method after authentication. Returns true when the person has become a member.
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
            // A refusal here does not keep a person from signing in.
            Err(problem) if problem.status < 500 => {
                tracing::debug!(org.id = %org, code = problem.code, "this organization admits no members by signing in");
                Ok(false)
            }
            Err(problem) => Err(problem),
        }
    }

    /// Carries out a command of a person who is not in the organization yet.
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
            proof: None,
            right: None,
            creator: Some(creator),
            context: origin.context.clone(),
            request_id: origin.request_id.clone(),
            trace: origin.trace.clone(),
        };
        let accepted = self.handler.handle(&caller, request).await.map_err(Problem::from);
        let accepted = accepted.inspect_err(|problem| {
            self.access_log.not_joined(BoundOrg::proven_by_credential(org), origin, problem);
        })?;
        self.wait_for_access(accepted.position).await;
        Ok(accepted)
    }
}

/// Returns the person, at an address that is proven to be theirs.
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

/// A transient failure must be reported, so that the person signs in again: without an error they would silently not be a
/// member.
fn not_joined(org: OrgId, problem: &Problem) -> Problem {
    tracing::warn!(org.id = %org, code = problem.code, "a person who signed in could not be added for now");
    Problem::unavailable("You could not be added to your organization at the moment; sign in again.")
}

fn no_invitation() -> Problem {
    Problem::new(404, "not_found", "Not found", "There is no such invitation; was a newer one sent?")
}
