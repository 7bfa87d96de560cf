//! The deletion of an organization, as far as the log and what lies beside it go: requested, cancelled, sealed; its secrets, its
//! claims, its receipt. `jobs/deletions.rs` carries them out, step by step.

use orgstream_domain::{
    Command, EndBilling, RequestDeletion,
    deletion::{CompleteDeletion, CompletedDeletion},
    organization::{Deletion, Organization, OrganizationCommand},
};
use orgstream_events::{
    AggregateId, AggregateType, CommandId, Event, IdentityKept, InvoiceNumber, MemberEvent, MemberId, OrgId,
    OrganizationEvent, PLATFORM_ORG, Slug, SsoConnectionEvent, Timestamp, UserId, cause,
};
use orgstream_stream::{Freshness, Placement, StreamName};

use super::{
    founding::claimable,
    handler::{CommandContext, CommandHandler, Target},
    joining::{SSO, pair},
    request::{Accepted, Caller, CommandError, Request},
    vault::VaultError,
};
use crate::{adapters::identity_provider::AUTH0, auth::AuthError, clock::now};

/// The name of the program as the caller of these commands.
const NAME: &str = "deletions";
/// How long nobody else gets the slug of an organization that was deleted, in milliseconds: 90 days.
const SLUG_HELD_MS: i64 = 90 * 86_400_000;
/// How much of an organization's history is for the end of its claims.
const CLAIMING: [AggregateType; 3] = [AggregateType::Organization, AggregateType::Member, AggregateType::SsoConnection];

/// How an organization ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The sequence of its last event.
    pub fence: u64,
    /// When that was.
    pub at: Timestamp,
}

/// What a final invoice waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Billed {
    /// Nothing: this is the last invoice, if there ever was one.
    Done(Option<InvoiceNumber>),
    /// The payment provider has to be told of it.
    Untold,
    /// A payment is under way.
    Paying,
}

impl CommandHandler {
    /// Requests a deletion, for an owner who signed in a moment ago.
    pub(super) async fn request_deletion(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: RequestDeletion,
    ) -> Result<Accepted, CommandError> {
        let right = attempt.caller.right.as_ref().ok_or(AuthError::SessionOnly)?;
        right.auth.signed_in_now(&right.access.principal()).await?;
        let grace_ms = i64::try_from(self.deletion_grace.as_millis()).unwrap_or(i64::MAX);
        let request = OrganizationCommand::RequestDeletion { command, by: attempt.caller.role, grace_ms };
        self.execute::<Organization>(attempt, to, request).await
    }

    /// Returns the deletion of an organization that was requested and not cancelled, as the log has it.
    pub async fn deletion(&self, org: OrgId) -> Result<Option<Deletion>, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let aggregate = AggregateId::Organization(org);
        let loaded = self.aggregates.load::<Organization>(&placement, &aggregate, Freshness::Leader).await?;
        Ok(loaded.state.profile().and_then(|profile| profile.deletion.clone()))
    }

    /// Returns the person behind a member, as the log has it.
    pub async fn person_behind(&self, org: OrgId, member: &str) -> Result<Option<UserId>, CommandError> {
        let Ok(member) = member.parse::<MemberId>() else { return Ok(None) };
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let mut person = None;
        self.each_event(&placement, AggregateId::Member(org), |event| {
            if let Event::Member(MemberEvent::Added(added)) = event
                && added.member_id == member
            {
                person = Some(added.user_id);
            }
        })
        .await?;
        Ok(person)
    }

    /// Puts all that an organization owes on its final invoice, and says what that waits for; `collects` says whether there is a
    /// payment provider.
    pub async fn bill_finally(&self, org: OrgId, collects: bool) -> Result<Billed, CommandError> {
        let end = EndBilling { reason: "the organization is deleted".to_owned() };
        self.handle(&Caller::program(org, NAME), Request::from(Command::from(end))).await?;
        let Some(state) = self.invoices_of(org).await? else { return Ok(Billed::Done(None)) };
        if collects {
            if !state.invoices.steps(1).is_empty() {
                return Ok(Billed::Untold);
            }
            let account = self.account_of(org).await?;
            if account.is_some_and(|state| state.account.open_top_ups().next().is_some()) {
                return Ok(Billed::Paying);
            }
        }
        Ok(Billed::Done(state.invoices.all().keys().next_back().copied()))
    }

    /// Appends the last event of an organization, unless it is there.
    pub async fn seal(&self, org: OrgId) -> Result<Sealed, CommandError> {
        let placement = self.aggregates.placement(org).await?;
        let aggregate = AggregateId::Organization(org);
        let profile = self.profile(org).await?.ok_or(CommandError::NoOrganization(org))?;
        // Nobody sends a command for it: it carries out the request.
        let request = Request::from(Command::from(RequestDeletion { slug: profile.slug }));
        let caller = Caller::program(org, NAME);
        let command_id = CommandId::from_idempotency_key(org, "seal the organization");
        let attempt = CommandContext { caller: &caller, request: &request, command_id, fingerprint: None, now: now() };
        let to = Target { placement: &placement, aggregate };
        let sealed = self.execute::<Organization>(&attempt, &to, OrganizationCommand::Seal).await?;
        let at = self.deletion(org).await?.and_then(|deletion| deletion.sealed_at);
        let at = at.ok_or_else(|| CommandError::Internal(cause("the organization is not sealed")))?;
        Ok(Sealed { fence: sealed.position.seq, at })
    }

    /// Destroys the keys of all secrets of an organization, and empties its snapshots. Returns how many secrets it had.
    pub async fn shred(&self, org: OrgId) -> Result<u64, VaultError> {
        let destroyed = self.vault().destroy_all(org).await?;
        if let Some(placement) = self.log.placement(org).await? {
            self.log.forget_snapshots(&placement).await?;
        }
        Ok(destroyed)
    }

    /// Ends everything that an organization has claimed: its slugs are nobody else's for 90 days, everything else is free at once.
    /// Returns its counterpart at the external identity provider, which stays.
    pub async fn end_claims(&self, org: OrgId) -> Result<Option<IdentityKept>, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let (mut slugs, mut free, mut identity) = (Vec::<Slug>::new(), Vec::<(&str, String)>::new(), None);
        for aggregate in CLAIMING {
            let aggregate = match aggregate {
                AggregateType::Member => AggregateId::Member(org),
                AggregateType::SsoConnection => AggregateId::SsoConnection(org),
                _ => AggregateId::Organization(org),
            };
            self.each_event(&placement, aggregate, |event| match event {
                Event::Organization(OrganizationEvent::Created(created)) => slugs.push(created.slug.clone()),
                Event::Organization(OrganizationEvent::Renamed(renamed)) => slugs.push(renamed.slug.clone()),
                Event::Organization(OrganizationEvent::IdentityLinked(linked)) => {
                    let (provider, external_id) = (linked.provider.clone(), linked.external_id.clone());
                    free.push((AUTH0, external_id.clone()));
                    identity = Some(IdentityKept { external_id, provider });
                }
                Event::Member(MemberEvent::Added(added)) => free.push(("personal", added.user_id.to_string())),
                Event::SsoConnection(SsoConnectionEvent::Added(added)) => {
                    free.push((SSO, pair(&added.issuer, &added.audience)));
                }
                _ => {}
            })
            .await?;
        }
        slugs.dedup();
        let held_until = Timestamp::from_unix_ms(now().unix_ms().saturating_add(SLUG_HELD_MS));
        for slug in slugs {
            self.log.end_claim("slug", &claimable(&slug), org, Some(held_until)).await?;
        }
        for (scope, value) in free {
            self.log.end_claim(scope, &value, org, None).await?;
        }
        Ok(identity)
    }

    /// Marks all messages of an organization that is deleted, those behind its seal too, so that the next rewrite of its shard leaves
    /// them out.
    pub async fn mark_erased(&self, org: OrgId) -> Result<(), CommandError> {
        let Some(Placement { shard, .. }) = self.log.placement(org).await? else { return Ok(()) };
        let end = self.log.end_of(StreamName::Shard(shard)).await?;
        Ok(self.log.mark_erased(shard, org, end.seq).await?)
    }

    /// Whether an organization has ended, and nothing of it begins again.
    pub(super) async fn has_ended(&self, org: OrgId) -> Result<bool, CommandError> {
        if self.log.placement(org).await?.is_none() {
            return Ok(false);
        }
        let is_sealed = self.deletion(org).await?.is_some_and(|deletion| deletion.sealed_at.is_some());
        Ok(is_sealed || self.receipt(org).await?.is_some())
    }

    /// Returns the organizations whose messages a rewrite has left out: their bytes are in no stream.
    pub async fn left_out(&self) -> Result<Vec<OrgId>, CommandError> {
        let mut left_out = Vec::new();
        for shard in self.log.shards() {
            let erased = self.log.erased(shard).await?.into_iter();
            left_out.extend(erased.filter(|erased| erased.messages.is_some()).map(|erased| erased.org));
        }
        Ok(left_out)
    }

    /// Completes a deletion in the log of the platform, with its receipt. Returns the receipt that counts.
    pub async fn complete_deletion(&self, org: OrgId, receipt: String) -> Result<String, CommandError> {
        let placement = self.aggregates.placement(PLATFORM_ORG).await?;
        let (caller, aggregate) = (Caller::program(PLATFORM_ORG, NAME), AggregateId::Deletion(org));
        // Nobody sends a command for it.
        let request = Request::from(Command::from(orgstream_domain::CancelDeletion {}));
        let command_id = CommandId::from_idempotency_key(org, "complete the deletion");
        let attempt = CommandContext { caller: &caller, request: &request, command_id, fingerprint: None, now: now() };
        let to = Target { placement: &placement, aggregate };
        let complete = CompleteDeletion { receipt };
        self.execute::<CompletedDeletion>(&attempt, &to, complete).await?;
        let missing = || CommandError::Internal(cause("the receipt is not in the log"));
        self.receipt(org).await?.ok_or_else(missing)
    }

    /// Returns the receipt of a deletion that is completed.
    pub async fn receipt(&self, org: OrgId) -> Result<Option<String>, CommandError> {
        let Some(placement) = self.log.placement(PLATFORM_ORG).await? else { return Ok(None) };
        let aggregate = AggregateId::Deletion(org);
        let loaded = self.aggregates.load::<CompletedDeletion>(&placement, &aggregate, Freshness::Leader).await?;
        Ok(loaded.state.receipt().map(str::to_owned))
    }

    /// Returns the organizations whose deletion is completed.
    pub async fn completed_deletions(&self) -> Result<Vec<OrgId>, CommandError> {
        let Some(placement) = self.log.placement(PLATFORM_ORG).await? else { return Ok(Vec::new()) };
        let found = self.log.aggregates_of_type(&placement, AggregateType::Deletion).await?;
        let org = |aggregate| if let AggregateId::Deletion(org) = aggregate { Some(org) } else { None };
        Ok(found.into_iter().filter_map(org).collect())
    }

    /// Reads the whole history of an aggregate.
    async fn each_event(
        &self,
        placement: &Placement,
        aggregate: AggregateId,
        mut take: impl FnMut(&Event),
    ) -> Result<(), CommandError> {
        let mut after = 0;
        loop {
            let history = self.log.load(placement, &aggregate, after, Freshness::Leader).await?;
            for opened in history.commits.iter().flat_map(|stored| &stored.commit.events) {
                take(&opened.event);
            }
            if history.ended {
                return Ok(());
            }
            after = history.last;
        }
    }
}
