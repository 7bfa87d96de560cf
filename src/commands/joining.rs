//! Commands about joining: invitations, domains and issuers. The part of the handler that resolves the inputs of those
//! decisions.

use orgstream_domain::{
    AcceptInvitation, AddSsoConnection, Aggregate, Command, IssueInvitation, JoinByDomain, JoinBySso, Rejection,
    RejectionKind, RestoreSignIn,
    credentials::invitation::InvitationToken,
    domain::{Domain, DomainCommand, record_name},
    invitation::{Invitation, InvitationCommand, InviteRules},
    member::{Closed, MemberCommand, Members},
    organization::{Organization, OrganizationCommand},
    settings::leads_in,
    sso_connection::{ConnectionCommand, Connections, RemoveSsoConnection},
};
use orgstream_events::{
    Actor, ActorType, AggregateId, Chain, CommandId, CommitDraft, DomainId, DomainName, Event, Fingerprint,
    JitProvisioning, MemberId, QuotaName, cause,
};
use orgstream_stream::{AppendError, Freshness, Placement};

use super::{
    cache::PriorResult,
    handler::{CommandContext, CommandHandler, Target},
    patience::Patience,
    request::{Accepted, Caller, CommandError, Creator, Request},
};

/// The claims of pairs of issuer and audience.
pub(super) const SSO: &str = "sso";

pub(super) fn pair(issuer: &str, audience: &str) -> String {
    Fingerprint::of(&[issuer.as_bytes(), b"\0", audience.as_bytes()]).to_string()
}

impl CommandHandler {
    /// Returns the hash of the token that this command issues.
    pub(super) fn invitation_mac(&self, attempt: &CommandContext<'_>) -> Fingerprint {
        InvitationToken::of(self.pepper(), attempt.command_id).mac(self.pepper())
    }

    /// Returns the required TXT record of a claim: it cannot be known to others before, and need not be secret after.
    pub(super) fn domain_challenge(&self, attempt: &CommandContext<'_>) -> String {
        let seed = [b"domain ", attempt.command_id.uuid().as_bytes().as_slice()].concat();
        self.pepper().derive(&seed).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Issues an invitation. The token is mailed later, derived again from the command's id: see `mail`.
    pub(super) async fn issue_invitation(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: IssueInvitation,
    ) -> Result<Accepted, CommandError> {
        let (placement, by) = (to.placement, attempt.caller.role);
        let organization =
            self.aggregates.look::<Organization>(placement, &AggregateId::Organization(placement.org)).await?;
        let settings = organization.state.profile().map(|profile| profile.settings.clone()).unwrap_or_default();
        let roster = self.aggregates.look::<Members>(placement, &AggregateId::Member(placement.org)).await?;
        let rules = InviteRules {
            policy: settings.invite_policy,
            allowed_domains: settings.allowed_domains,
            is_member: roster.state.of_email(&command.email).is_some(),
        };
        let mac = self.invitation_mac(attempt);
        self.execute::<Invitation>(attempt, to, InvitationCommand::Issue { command, mac, by, rules }).await
    }

    /// Accepts an invitation, which changes the members too: two aggregates, so an atomic batch, and both are decided anew
    /// when either has moved on.
    pub(super) async fn accept_invitation(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: &AcceptInvitation,
    ) -> Result<Accepted, CommandError> {
        let Some(Creator { user, email }) = attempt.caller.creator.clone() else {
            return Err(CommandError::Internal(cause("an invitation needs a person who accepts it")));
        };
        let Target { placement, aggregate } = to;
        let (org, roster) = (placement.org, AggregateId::Member(placement.org));
        let decision_context = attempt.decision_context(org);
        let member_id = MemberId::derive(attempt.command_id);
        // Inside the organization the person appears as their member; their identity outside is not disclosed.
        let actor = Actor { actor_type: ActorType::Member, id: member_id.to_string(), ..attempt.caller.actor.clone() };
        let _turn = self.turn(org, &roster).await;
        let mut patience = Patience::new();
        let mut last = false;
        loop {
            let invitation = self.aggregates.load::<Invitation>(placement, aggregate, Freshness::Leader).await?;
            let members = self.aggregates.load::<Members>(placement, &roster, Freshness::Leader).await?;
            if let Some(mut accepted) = self.aggregates.earlier(attempt, placement, aggregate, &invitation).await? {
                let joined = self.aggregates.prior(placement, &roster, &members, attempt.command_id).await?;
                let both = joined.map_or(0, |earlier| earlier.seq);
                accepted.position.seq = accepted.position.seq.max(both);
                return Ok(accepted);
            }
            if last {
                return Err(CommandError::Contention);
            }
            let mac = command.token.mac(self.pepper());
            let is_offered = self.still_offers(placement, &members.state, &invitation.state).await?;
            let accept = InvitationCommand::Accept { mac, email: email.clone(), member_id, is_offered };
            let accepted = invitation.state.decide(accept, &decision_context).map_err(Rejection::from)?;
            let role = invitation.state.offer().map(|offer| offer.role).ok_or(CommandError::Contention)?;
            let sent = invitation.state.sent_at();
            let voucher = match invitation.state.sent_by() {
                Some((kind, id)) => self.vouching(placement, (*kind, id)).await?,
                None => None,
            };
            let quota = self.quota_limit(placement, QuotaName::Members).await?;
            let join = MemberCommand::Join { user_id: user, email: email.clone(), role, sent, voucher, quota };
            let joined = members.state.decide(join, &decision_context).map_err(Rejection::from)?;
            let accepted: Vec<Event> = accepted.into_iter().map(Invitation::wrap).collect();
            let joined: Vec<Event> = joined.into_iter().map(Members::wrap).collect();
            let version = invitation.version + accepted.len() as u64;
            let events = accepted.iter().chain(&joined).map(|event| event.wire().0.to_owned()).collect();
            let drafts = [
                (attempt.draft(org, aggregate.clone(), invitation.version, accepted), invitation.seq),
                (attempt.draft(org, roster.clone(), members.version, joined), members.seq),
            ];
            let drafts = drafts.map(|(draft, seq)| (CommitDraft { actor: actor.clone(), ..draft }, seq));
            match self.append_together(attempt, placement, drafts.into()).await {
                Ok(appended) => {
                    let seq = appended.iter().map(|one| one.seq).max().unwrap_or_default();
                    let replayed = appended.iter().any(|one| one.replayed);
                    let done = PriorResult { fingerprint: attempt.fingerprint, seq, version, events, by: attempt.by() };
                    return Ok(attempt.accepted(org, aggregate, done, replayed));
                }
                // An attempt of ours may have been stored all the same: the histories are read once more.
                Err(AppendError::Conflict { .. }) => last = !patience.again().await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Adds a person who signs in with an address of a domain that is the organization's own.
    pub(super) async fn join_by_domain(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: &JoinByDomain,
    ) -> Result<Accepted, CommandError> {
        let Some(Creator { email, .. }) = &attempt.caller.creator else {
            return Err(CommandError::Internal(cause("a person is required to join")));
        };
        let org = to.placement.org;
        let organization = self.aggregates.look::<Organization>(to.placement, &AggregateId::Organization(org)).await?;
        let jit = organization.state.profile().map(|profile| profile.settings.jit_provisioning).unwrap_or_default();
        let domain = AggregateId::Domain(DomainId::of(org, &command.domain));
        let closed = match jit {
            JitProvisioning::NotAllowed => Some(Closed::NotAllowed),
            JitProvisioning::Restricted => {
                let is_of_address = DomainName::of_email(email).as_ref() == Some(&command.domain);
                let is_proven = self.aggregates.look::<Domain>(to.placement, &domain).await?.state.is_proven();
                (!is_of_address || !is_proven).then_some(Closed::NotProven)
            }
        };
        self.provision(attempt, to, closed).await
    }

    /// Adds a person who signs in by an issuer that is the organization's own.
    pub(super) async fn join_by_sso(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: &JoinBySso,
    ) -> Result<Accepted, CommandError> {
        let org = to.placement.org;
        let organization = self.aggregates.look::<Organization>(to.placement, &AggregateId::Organization(org)).await?;
        let jit = organization.state.profile().map(|profile| profile.settings.jit_provisioning).unwrap_or_default();
        let closed = match jit {
            JitProvisioning::NotAllowed => Some(Closed::NotAllowed),
            JitProvisioning::Restricted => {
                let connections =
                    self.aggregates.look::<Connections>(to.placement, &AggregateId::SsoConnection(org)).await?;
                (!connections.state.lets_in(command.id)).then_some(Closed::NoJit)
            }
        };
        self.provision(attempt, to, closed).await
    }

    /// Adds a connection. A pair of issuer and audience belongs to one organization: a token that names it is thereby for
    /// that organization. A refused command claims nothing.
    pub(super) async fn add_sso_connection(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: AddSsoConnection,
    ) -> Result<Accepted, CommandError> {
        let org = to.placement.org;
        let pair = pair(&command.issuer, &command.audience);
        let add = ConnectionCommand::Add { command, local: self.local_issuers };
        let mut claims = Vec::new();
        let connections = self.aggregates.load::<Connections>(to.placement, &to.aggregate, Freshness::Leader).await?;
        if self.aggregates.earlier(attempt, to.placement, &to.aggregate, &connections).await?.is_none() {
            connections.state.decide(add.clone(), &attempt.decision_context(org)).map_err(Rejection::from)?;
            let detail = "another organization signs people in by this issuer for this audience: register an audience of \
                          your own at the issuer, and give that";
            claims.push(self.claim_anew(SSO, &pair, org, ("sso_connection_taken", detail.to_owned())).await?);
        }
        let result = self.execute::<Connections>(attempt, to, add).await;
        self.settle(claims, org, result).await
    }

    /// Removes a connection: its issuer and audience become free for the next claim. A removal that dies behind its commit
    /// leaves them to the organization, which can add and remove the connection once more.
    pub(super) async fn remove_sso_connection(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: RemoveSsoConnection,
    ) -> Result<Accepted, CommandError> {
        let org = to.placement.org;
        let connections = self.aggregates.load::<Connections>(to.placement, &to.aggregate, Freshness::Leader).await?;
        let held = match connections.state.names(command.id) {
            Some((issuer, audience)) => Some(self.held(SSO, &pair(issuer, audience), org).await?),
            None => None,
        };
        let organization = AggregateId::Organization(org);
        let organization = self.aggregates.load::<Organization>(to.placement, &organization, Freshness::Leader).await?;
        let settings = organization.state.profile().map(|profile| profile.settings.clone()).unwrap_or_default();
        let by = attempt.caller.proof.as_ref().map(|(method, _)| method.clone());
        let remove = ConnectionCommand::Remove { command, settings, by };
        let result = self.execute::<Connections>(attempt, to, remove).await;
        if result.is_ok() {
            self.give_back(held, org).await;
            self.keep_a_way_in(attempt, to.placement).await;
        }
        result
    }

    /// Restores sign-in where settings and a connection were changed at the same time, each permitted by what it saw of the
    /// other, so that no way in is left for people. Both commands check this after their commit: the later one sees both.
    pub(super) async fn keep_a_way_in(&self, attempt: &CommandContext<'_>, placement: &Placement) {
        let restored = self.restore_lost_sign_in(attempt, placement).await;
        if let Err(error) = restored {
            tracing::warn!(org.id = %placement.org, error = %Chain(&error), "it could not be checked that people can still sign in");
        }
    }

    async fn restore_lost_sign_in(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
    ) -> Result<(), CommandError> {
        let org = placement.org;
        let (connections, aggregate) = (AggregateId::SsoConnection(org), AggregateId::Organization(org));
        let methods =
            self.aggregates.load::<Connections>(placement, &connections, Freshness::Leader).await?.state.methods();
        let organization = self.aggregates.load::<Organization>(placement, &aggregate, Freshness::Leader).await?;
        if organization.state.profile().is_none_or(|profile| leads_in(&profile.settings, &methods)) {
            return Ok(());
        }
        tracing::warn!(org.id = %org, "settings and a connection were changed at once: sign-in is restored");
        let actor = Actor { actor_type: ActorType::System, id: "sign_in".to_owned(), auth: None };
        let caller = Caller { actor, right: None, ..attempt.caller.clone() };
        let reason = "settings and a connection were changed at once, which left no way to sign in".to_owned();
        let restore = RestoreSignIn { reason };
        let request = Request::from(Command::from(restore.clone()));
        let command_id = CommandId::from_idempotency_key(org, &format!("sign-in after {}", attempt.command_id));
        let attempt =
            CommandContext { caller: &caller, request: &request, command_id, fingerprint: None, now: attempt.now };
        let to = Target { placement, aggregate };
        self.execute::<Organization>(&attempt, &to, OrganizationCommand::RestoreSignIn(restore)).await.map(drop)
    }

    async fn provision(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        closed: Option<Closed>,
    ) -> Result<Accepted, CommandError> {
        let Some(Creator { user, email }) = attempt.caller.creator.clone() else {
            return Err(CommandError::Internal(cause("a person is required to join")));
        };
        let member_id = MemberId::derive(attempt.command_id).to_string();
        let actor = Actor { actor_type: ActorType::Member, id: member_id, ..attempt.caller.actor.clone() };
        let caller = Caller { actor, ..attempt.caller.clone() };
        let attempt = CommandContext { caller: &caller, ..*attempt };
        let quota = self.quota_limit(to.placement, QuotaName::Members).await?;
        let provision = MemberCommand::Provision { user_id: user, email, closed, quota };
        self.execute::<Members>(&attempt, to, provision).await
    }

    /// Queries the domain's DNS.
    pub(super) async fn prove_domain(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
    ) -> Result<Accepted, CommandError> {
        let domain = self.aggregates.look::<Domain>(to.placement, &to.aggregate).await?;
        let records = match domain.state.claim() {
            Some(claim) => self.dns.txt(&record_name(&claim.domain)).await.map_err(|error| {
                let detail = format!("DNS could not be asked: {}; try again", Chain(&error));
                Rejection::new(RejectionKind::Conflict, "dns_unavailable", detail)
            })?,
            // A missing domain is refused by its own rules.
            None => Vec::new(),
        };
        self.execute::<Domain>(attempt, to, DomainCommand::Prove { records }).await
    }
}
