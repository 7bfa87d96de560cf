//! The creation of an organization: two aggregates at once, behind the claim on its slug.

use orgstream_domain::{
    CreateOrganization, DecisionContext, RenameOrganization,
    member::{MemberCommand, Members},
    organization::{Organization, OrganizationCommand, OrganizationError},
};
use orgstream_events::{Actor, ActorType, AggregateId, CommitDraft, Event, MemberId, OrgId, Slug, TenantType, cause};
use orgstream_stream::{AppendError, ClaimError, Freshness};

use super::{
    cache::{Cached, PriorResult},
    claiming::Claim,
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError, Creator},
};

impl CommandHandler {
    /// Creates an organization and its owner: two aggregates, so an atomic batch, behind the claim on the slug.
    pub(super) async fn create_organization(
        &self,
        attempt: &CommandContext<'_>,
        command: &CreateOrganization,
    ) -> Result<Accepted, CommandError> {
        let Some(Creator { user, email }) = attempt.caller.creator.clone() else {
            return Err(CommandError::Internal(cause("an organization needs a person who makes it")));
        };
        let org = OrgId::derive(attempt.command_id);
        let decision_context = attempt.decision_context(org);
        let create =
            |identity| OrganizationCommand::Create { command: command.clone(), region: self.region.clone(), identity };
        // A refused command leaves nothing behind, here or elsewhere.
        Self::first::<Organization>(create(None), &decision_context)?;
        let founded = Self::first::<Members>(MemberCommand::Found { user_id: user, email }, &decision_context)?;
        // Its id is never given again, and it claims nothing.
        if self.has_ended(org).await? {
            return Err(CommandError::Rejected(OrganizationError::Deleted.into()));
        }
        if command.tenant_type == TenantType::Personal {
            // Its id follows from the person already; the claim records that for readers of the log alone.
            match self.log.claim("personal", &user.to_string(), org).await {
                Ok(_) => {}
                Err(ClaimError::Taken { by }) => {
                    return Err(CommandError::Internal(cause(format!(
                        "this person has a personal organization: {by}"
                    ))));
                }
                Err(ClaimError::Stream(error)) => return Err(error.into()),
            }
        }
        let mut claims = vec![self.claim_slug(&command.slug, org).await?];
        let founded = async {
            let identity = self.identity(org, command, &mut claims).await?;
            let created = Self::first::<Organization>(create(identity), &decision_context)?;
            self.found(attempt, org, created, founded).await
        };
        let result = founded.await;
        self.settle(claims, org, result).await
    }

    /// Changes the name or the slug. A command that is refused, or changes nothing, claims nothing.
    pub(super) async fn rename_organization(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: RenameOrganization,
    ) -> Result<Accepted, CommandError> {
        let (org, slug, mut claims) = (to.placement.org, command.slug.clone(), Vec::new());
        let rename = OrganizationCommand::Rename(command);
        if let Some(slug) = &slug
            && self.would_happen::<Organization>(attempt, to, rename.clone()).await?
        {
            claims.push(self.claim_slug(slug, org).await?);
        }
        let result = self.execute::<Organization>(attempt, to, rename).await;
        self.settle(claims, org, result).await
    }

    async fn found(
        &self,
        attempt: &CommandContext<'_>,
        org: OrgId,
        created: Vec<Event>,
        founded: Vec<Event>,
    ) -> Result<Accepted, CommandError> {
        let placement = self.log.place(org).await?;
        let aggregate = AggregateId::Organization(org);
        let mut drafts = Vec::with_capacity(2);
        // Inside the organization its creator appears as their member; their identity outside is not disclosed.
        let member = MemberId::derive(attempt.command_id).to_string();
        let actor = Actor { actor_type: ActorType::Member, id: member, ..attempt.caller.actor.clone() };
        for (aggregate, events) in [(aggregate.clone(), created.clone()), (AggregateId::Member(org), founded)] {
            drafts.push((CommitDraft { actor: actor.clone(), ..attempt.draft(org, aggregate, 0, events) }, 0));
        }
        match self.append_together(attempt, &placement, drafts).await {
            Ok(appended) if appended.iter().all(|one| !one.replayed) => {
                // The position after which both are there: the member's is the later one.
                let seq = appended.iter().map(|one| one.seq).max().unwrap_or_default();
                let events = created.iter().map(|event| event.wire().0.to_owned()).collect();
                let version = created.len() as u64;
                let earlier = PriorResult { fingerprint: attempt.fingerprint, seq, version, events, by: attempt.by() };
                Ok(attempt.accepted(org, &aggregate, earlier, false))
            }
            Ok(_) | Err(AppendError::Conflict { .. }) => {
                let loaded = self.aggregates.load::<Organization>(&placement, &aggregate, Freshness::Leader).await?;
                let founded =
                    self.aggregates.load::<Members>(&placement, &AggregateId::Member(org), Freshness::Leader).await?;
                let mut accepted = self
                    .aggregates
                    .earlier(attempt, &placement, &aggregate, &loaded)
                    .await?
                    .ok_or(CommandError::Contention)?;
                // The same position as the first time.
                let founded =
                    self.aggregates.prior(&placement, &AggregateId::Member(org), &founded, attempt.command_id).await?;
                let both = founded.map_or(0, |earlier| earlier.seq);
                accepted.position.seq = accepted.position.seq.max(both);
                Ok(accepted)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn first<A: Cached>(command: A::Command, decision_context: &DecisionContext) -> Result<Vec<Event>, CommandError> {
        let events = A::default().decide(command, decision_context).map_err(Into::into)?;
        Ok(events.into_iter().map(A::wrap).collect())
    }

    pub(super) async fn claim_slug(&self, slug: &Slug, org: OrgId) -> Result<Claim, CommandError> {
        let detail = format!("the slug {slug} belongs to another organization: choose another one");
        self.claim("slug", &claimable(slug), org, ("slug_taken", detail)).await
    }
}

/// Encodes a slug as a claim, whose subject is divided at dots: a slug has no capitals, so they can stand for the characters
/// that a claim cannot have, and no two slugs become the same.
pub(super) fn claimable(slug: &Slug) -> String {
    slug.as_str().replace('.', "D").replace('~', "T")
}
