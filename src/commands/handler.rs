//! From a command to a commit: load, decide, append, and retry on a conflict.
//!
//! HTTP and NATS both end here. Nothing in here reads a projection: the inputs of a decision come from the stream, and the
//! stream's own refusal of a stale expectation is what makes the decision safe.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use metrics::{counter, histogram};
use orgstream_domain::{
    ArchiveRecord, Command, CommandSpec, DecisionContext, FieldError, Place, Rejection, Requires, UpdateRecord,
    api_key::{ApiKey, ApiKeyCommand},
    catalog_choices::{CatalogChoiceCommand, CatalogChoices},
    catalog_item::{CatalogItem, CatalogItemCommand},
    credentials::key::Pepper,
    domain::{Domain, DomainCommand},
    invitation::{Invitation, InvitationCommand},
    invoice::{InvoiceCommand, Invoices, ProviderNote},
    kind::{Kind, KindCommand},
    member::{MemberCommand, Members},
    organization::{Organization, OrganizationCommand, OrganizationError, Profile},
    own_kinds::OwnKindLimits,
    parking::{Parking, ParkingCommand},
    plan::Plan,
    record::{Record, RecordCommand},
    role::{CustomRoles, RoleCommand},
    schema::ValidatedKind,
    settings::{Patch, SignInMethods},
    sso_connection::{ConnectionCommand, Connections},
};
use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, CommitDraft, Currency, Event, Fingerprint, KindName, OrgId, PLATFORM_ORG,
    Position, QuotaName, Salt, TenantType, Timestamp, cause,
};
use orgstream_stream::{AppendError, Appended, Freshness, Log, Placement};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use super::{
    account_queues::AccountQueues,
    aggregates::{Aggregates, unreadable_success},
    cache::{Cached, Caches, Loaded, PriorResult},
    patience::Patience,
    personal::creation,
    quotas::{Admitted, QuotaBook, StoredFigures, note_refusal},
    request::{Accepted, Caller, CommandError, Request},
    vault::Vault,
};
use crate::{
    adapters::{
        dns::TxtRecords,
        identity_provider::{IdentityOrganizations, NoIdentityProvider},
        key_ring::KeyRing,
    },
    clock::now,
    tenant_cache::{CacheView, Scoped},
};

/// The time in which a deletion can be cancelled, unless the settings say otherwise.
pub const DELETION_GRACE: Duration = Duration::from_hours(7 * 24);
/// The tolerated clock skew of a producer, into the future.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Writers to one aggregate take turns inside this process, so that only other processes can conflict.
const TURNS: usize = 1_024;
/// Registrations of kinds take turns by organization before that, so that they are counted.
const REGISTRATION_TURNS: usize = 64;

/// The state of one command's execution: everything but its target.
pub(super) struct CommandContext<'a> {
    pub(super) caller: &'a Caller,
    pub(super) request: &'a Request,
    pub(super) command_id: CommandId,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) now: Timestamp,
}

impl CommandContext<'_> {
    pub(super) fn decision_context(&self, org: OrgId) -> DecisionContext {
        DecisionContext { now: self.now, command_id: self.command_id, org }
    }

    /// Fails where the caller has lost its right while the command waited.
    pub(super) async fn confirm(&self) -> Result<(), CommandError> {
        self.caller.confirm(self.request.command.spec().requires).await
    }

    pub(super) fn draft(&self, org: OrgId, aggregate: AggregateId, version: u64, events: Vec<Event>) -> CommitDraft {
        CommitDraft {
            org,
            aggregate,
            version_before: version,
            command_id: self.command_id,
            fingerprint: self.fingerprint,
            actor: self.caller.actor.clone(),
            occurred_at: self.request.occurred_at.unwrap_or(self.now),
            recorded_at: self.now,
            causation_id: self.request.causation_id,
            correlation_id: self.request.correlation_id,
            request_id: self.caller.request_id.clone(),
            context: self.caller.context.clone(),
            events,
        }
    }

    /// Returns the sender of the command.
    pub(super) fn by(&self) -> (ActorType, String) {
        (self.caller.actor.actor_type, self.caller.actor.id.clone())
    }

    /// Returns the sender, borrowed, for lookups.
    pub(super) fn actor(&self) -> (ActorType, &str) {
        (self.caller.actor.actor_type, &self.caller.actor.id)
    }

    pub(super) fn accepted(&self, org: OrgId, aggregate: &AggregateId, done: PriorResult, replayed: bool) -> Accepted {
        Accepted {
            command_id: self.command_id,
            aggregate: aggregate.clone(),
            version: done.version,
            position: Position { org, seq: done.seq },
            events: done.events,
            records: Vec::new(),
            hold: None,
            replayed,
            token: None,
        }
    }

    /// Returns the answer when the state is already as requested.
    pub(super) fn unchanged(&self, org: OrgId, aggregate: &AggregateId, version: u64, seq: u64) -> Accepted {
        let done = PriorResult { fingerprint: self.fingerprint, seq, version, events: Vec::new(), by: self.by() };
        self.accepted(org, aggregate, done, false)
    }
}

/// Handles commands. One per process; cheap to share behind an [`Arc`].
pub struct CommandHandler {
    pub(super) log: Log,
    pepper: Pepper,
    pub(super) dns: Arc<dyn TxtRecords>,
    pub(super) idp: Arc<dyn IdentityOrganizations>,
    pub(super) local_issuers: bool,
    pub(super) region: String,
    pub(super) aggregates: Arc<Aggregates>,
    pub(super) accounts: AccountQueues,
    pub(super) quotas: QuotaBook,
    vault: Vault,
    pub(super) own_kinds: OwnKindLimits,
    currency: Currency,
    pub(super) deletion_grace: Duration,
    turns: Box<[Mutex<()>]>,
    registration_turns: Box<[Mutex<()>]>,
    last_turn: Mutex<()>,
    hasher: RandomState,
}

impl CommandHandler {
    /// Creates a handler that appends to `log`; `pepper` hashes the secrets of API keys, `dns` proves domains.
    pub fn new(log: Log, pepper: Pepper, region: String, dns: Arc<dyn TxtRecords>) -> Self {
        let turns = (0..TURNS).map(|_| Mutex::new(())).collect();
        let aggregates = Arc::new(Aggregates::new(log.clone()));
        Self {
            vault: Vault::new(log.clone(), None),
            accounts: AccountQueues::new(Arc::clone(&aggregates)),
            quotas: QuotaBook::new(None),
            aggregates,
            log,
            pepper,
            dns,
            idp: Arc::new(NoIdentityProvider),
            local_issuers: false,
            region,
            own_kinds: OwnKindLimits::default(),
            currency: Currency::default(),
            deletion_grace: DELETION_GRACE,
            turns,
            registration_turns: (0..REGISTRATION_TURNS).map(|_| Mutex::new(())).collect(),
            last_turn: Mutex::new(()),
            hasher: RandomState::new(),
        }
    }

    /// Permits organizations issuers of their own on this machine, for trials.
    pub fn with_local_issuers(self) -> Self {
        Self { local_issuers: true, ..self }
    }

    /// Limits the kinds that organizations have of their own by their plans.
    pub fn with_own_kinds(self, own_kinds: OwnKindLimits) -> Self {
        Self { own_kinds, ..self }
    }

    /// Goes by quotas, with these figures of what is used. Without them what is not decided by one aggregate has no limit.
    pub fn with_quotas(self, figures: Arc<dyn StoredFigures>) -> Self {
        Self { quotas: QuotaBook::new(Some(figures)), ..self }
    }

    /// Bills in this currency.
    pub fn with_currency(self, currency: Currency) -> Self {
        Self { currency, ..self }
    }

    /// Lets so much time pass between the request for a deletion and what cannot be undone.
    pub fn with_deletion_grace(self, deletion_grace: Duration) -> Self {
        Self { deletion_grace, ..self }
    }

    /// Returns the currency of prices, fees and invoices.
    pub fn currency(&self) -> &Currency {
        &self.currency
    }

    /// Adds an external identity provider, where every organization has a counterpart.
    pub fn with_identity_provider(self, idp: Arc<dyn IdentityOrganizations>) -> Self {
        Self { idp, ..self }
    }

    /// Adds the key ring that seals secrets.
    pub fn with_key_ring(self, ring: Option<Arc<dyn KeyRing>>) -> Self {
        Self { vault: Vault::new(self.log.clone(), ring), ..self }
    }

    pub(super) fn vault(&self) -> &Vault {
        &self.vault
    }

    pub(super) fn caches_of(&self) -> &Caches {
        self.aggregates.caches_of()
    }

    /// Returns the current cache contents.
    pub fn caches(&self) -> Vec<CacheView> {
        let mut views = self.caches_of().views();
        views.push(self.quotas.view());
        views
    }

    /// Returns how many messages this handler has read to load aggregates.
    pub fn messages_read(&self) -> u64 {
        self.aggregates.messages_read()
    }

    /// Returns the server's own secret, from which tokens are derived.
    pub fn pepper(&self) -> &Pepper {
        &self.pepper
    }

    /// Decides `request` for `caller` and appends the events that follow.
    pub async fn handle(&self, caller: &Caller, mut request: Request) -> Result<Accepted, CommandError> {
        let started = Instant::now();
        let spec = request.command.spec();
        let result = match Box::pin(self.take_secrets(caller.org, &mut request)).await {
            Ok(()) => self.dispatch(caller, &request).await,
            Err(error) => Err(error),
        };
        let outcome = match &result {
            Ok(accepted) if accepted.replayed => "replayed",
            Ok(_) => "accepted",
            Err(
                CommandError::Unavailable(_)
                | CommandError::HistoryLost(_)
                | CommandError::NoKeyRing
                | CommandError::KeyRing(_)
                | CommandError::Internal(_),
            ) => "failed",
            Err(_) => "refused",
        };
        if let Err(error) = &result {
            note_refusal(error);
        }
        if let Ok(accepted) = &result {
            debug_assert!(is_declared(spec, &accepted.events), "not declared: {accepted:?}");
        }
        histogram!("orgstream_command_seconds", "outcome" => outcome).record(started.elapsed());
        counter!("orgstream_commands_total", "command" => spec.name, "outcome" => outcome).increment(1);
        result
    }

    async fn dispatch(&self, caller: &Caller, request: &Request) -> Result<Accepted, CommandError> {
        let now = now();
        if let Some(claimed) = request.occurred_at
            && claimed.unix_ms() > now.unix_ms() + CLOCK_SKEW.as_millis() as i64
        {
            let detail =
                format!("{claimed} is more than 5 minutes ahead of this server's {now}: set the producer's clock");
            let field = FieldError { pointer: "/occurred_at".to_owned(), code: "in_the_future".into(), detail };
            return Err(Rejection::invalid(vec![field]).into());
        }
        let command_id = match &request.idempotency_key {
            // A principal that is in no organization yet is the scope of its keys itself.
            Some(key) if request.command.spec().requires == Requires::Person => creation(&caller.actor.id, key),
            Some(key) => CommandId::from_idempotency_key(caller.org, key),
            None => CommandId::fresh(now.unix_ms(), rand::random()),
        };
        let fingerprint = request.idempotency_key.as_ref().map(|_| fingerprint(request)).transpose()?;
        let attempt = CommandContext { caller, request, command_id, fingerprint, now };
        if let Command::CreateOrganization(command) = &request.command {
            return self.create_organization(&attempt, command).await;
        }
        let org = caller.org;
        let placement = self.aggregates.placement(org).await?;
        if org != PLATFORM_ORG {
            self.check_active(&placement, &request.command).await?;
            if !request.command.spec().in_personal {
                self.not_personal(&placement).await?;
            }
        }
        let decision_context = attempt.decision_context(org);
        let to = Target { placement: &placement, aggregate: request.command.aggregate(&decision_context) };
        let authority = self.may_grant(&placement, caller, &request.command).await?;
        let by = caller.role;
        match request.command.clone() {
            Command::CreateOrganization(_) => Err(CommandError::Internal(cause("handled above"))),
            Command::UpgradeOrganization(command) => self.upgrade_organization(&attempt, &to, command).await,
            Command::RenameOrganization(command) => self.rename_organization(&attempt, &to, command).await,
            Command::ChangeSettings(command) => {
                let connections = AggregateId::SsoConnection(org);
                let connections = match &command.allowed_auth_methods {
                    Patch::Set(_) => self
                        .aggregates
                        .load::<Connections>(&placement, &connections, Freshness::Leader)
                        .await?
                        .state
                        .methods(),
                    Patch::Keep | Patch::Clear => BTreeSet::new(),
                };
                let narrows = matches!(command.allowed_auth_methods, Patch::Set(_));
                let methods = SignInMethods { connections, by: caller.proof.clone() };
                let webhooks = match &command.audit_webhook {
                    Patch::Set(_) => self.quota_limit(&placement, QuotaName::Webhooks).await?,
                    Patch::Keep | Patch::Clear => None,
                };
                let local = self.local_issuers;
                let change = OrganizationCommand::ChangeSettings { command, local, methods, webhooks };
                let changed = self.execute::<Organization>(&attempt, &to, change).await;
                if narrows && changed.is_ok() {
                    self.keep_a_way_in(&attempt, &placement).await;
                }
                changed
            }
            Command::RestoreSignIn(command) => {
                self.execute::<Organization>(&attempt, &to, OrganizationCommand::RestoreSignIn(command)).await
            }
            Command::SuspendOrganization(command) => {
                self.execute::<Organization>(&attempt, &to, OrganizationCommand::Suspend(command)).await
            }
            Command::ResumeOrganization(command) => {
                self.execute::<Organization>(&attempt, &to, OrganizationCommand::Resume(command)).await
            }
            Command::ChangePlan(command) => {
                Box::pin(self.open_last_month(caller, &placement, now)).await?;
                self.execute::<Organization>(&attempt, &to, OrganizationCommand::ChangePlan(command)).await
            }
            Command::ChangeLimits(command) => {
                self.execute::<Organization>(&attempt, &to, OrganizationCommand::ChangeLimits(command)).await
            }
            Command::RequestDeletion(command) => self.request_deletion(&attempt, &to, command).await,
            Command::CancelDeletion(_) => {
                self.execute::<Organization>(&attempt, &to, OrganizationCommand::CancelDeletion).await
            }
            Command::AddMember(command) => {
                let voucher = self.vouching(&placement, attempt.actor()).await?;
                let quota = self.quota_limit(&placement, QuotaName::Members).await?;
                self.execute::<Members>(&attempt, &to, MemberCommand::Add { command, by, voucher, quota }).await
            }
            Command::ChangeMemberRole(command) => {
                self.execute::<Members>(&attempt, &to, MemberCommand::ChangeRole { command, by }).await
            }
            Command::RemoveMember(command) => {
                self.execute::<Members>(&attempt, &to, MemberCommand::Remove { command, by }).await
            }
            Command::IssueInvitation(command) => self.issue_invitation(&attempt, &to, command).await,
            Command::ResendInvitation(command) => {
                let mac = self.invitation_mac(&attempt);
                self.execute::<Invitation>(&attempt, &to, InvitationCommand::Resend { command, mac, by }).await
            }
            Command::RevokeInvitation(command) => {
                self.execute::<Invitation>(&attempt, &to, InvitationCommand::Revoke { command, by }).await
            }
            Command::AcceptInvitation(command) => self.accept_invitation(&attempt, &to, &command).await,
            Command::JoinByDomain(command) => self.join_by_domain(&attempt, &to, &command).await,
            Command::JoinBySso(command) => self.join_by_sso(&attempt, &to, &command).await,
            Command::AddSsoConnection(command) => self.add_sso_connection(&attempt, &to, command).await,
            Command::SetDefaultSsoConnection(command) => {
                self.execute::<Connections>(&attempt, &to, ConnectionCommand::SetDefault(command)).await
            }
            Command::RemoveSsoConnection(command) => self.remove_sso_connection(&attempt, &to, command).await,
            Command::DefineRole(command) => {
                let by = authority.permissions();
                self.execute::<CustomRoles>(&attempt, &to, RoleCommand::Define { command, by }).await
            }
            Command::ChangeRole(command) => {
                let by = authority.permissions();
                self.execute::<CustomRoles>(&attempt, &to, RoleCommand::Change { command, by }).await
            }
            Command::RemoveRole(command) => {
                let by = authority.permissions();
                self.execute::<CustomRoles>(&attempt, &to, RoleCommand::Remove { command, by }).await
            }
            Command::ClaimDomain(command) => {
                let challenge = self.domain_challenge(&attempt);
                self.execute::<Domain>(&attempt, &to, DomainCommand::Claim { command, challenge }).await
            }
            Command::ProveDomain(_) => self.prove_domain(&attempt, &to).await,
            Command::RemoveDomain(_) => self.execute::<Domain>(&attempt, &to, DomainCommand::Remove).await,
            Command::IssueApiKey(command) => self.issue_api_key(&attempt, &to, command).await,
            Command::RotateApiKey(command) => self.rotate_api_key(&attempt, &to, command).await,
            Command::RevokeApiKey(command) => {
                self.execute::<ApiKey>(&attempt, &to, ApiKeyCommand::Revoke(command)).await
            }
            Command::RegisterKind(command) => Box::pin(self.register_kind(&attempt, &to, command)).await,
            Command::ChangeKind(command) => Box::pin(self.change_kind(&attempt, &to, command)).await,
            Command::RetireKind(command) => self.execute::<Kind>(&attempt, &to, KindCommand::Retire(command)).await,
            Command::RestoreKind(command) => self.execute::<Kind>(&attempt, &to, KindCommand::Restore(command)).await,
            Command::CreateRecord(command) => {
                let kind = match self.kind(org, &command.kind).await? {
                    Some(kind) if kind.definition.append_only => {
                        return Box::pin(self.create_appended(&attempt, &placement, command, kind)).await;
                    }
                    kind => kind,
                };
                // A record that is there already is not created again, so that a repeated command costs no lookups.
                let is_there = Record::cache(self.caches_of()).get(&Scoped::new(org, to.aggregate.clone())).is_some();
                let references = match &kind {
                    Some(kind) if !is_there => self.references(&placement, Some(kind), &command.data).await?,
                    _ => Ok(Vec::new()),
                };
                let has_secrets = kind.as_ref().is_some_and(|kind| !kind.annotations.secrets.is_empty());
                if has_secrets && request.has_secrets() {
                    let create = |secrets| {
                        let (command, kind, references) = (command.clone(), kind.clone(), references.clone());
                        RecordCommand::Create { command, kind, references, secrets }
                    };
                    return Box::pin(self.write_with_secrets(&attempt, &to, create)).await;
                }
                let create = RecordCommand::Create { command, kind, references, secrets: Vec::new() };
                self.execute::<Record>(&attempt, &to, create).await
            }
            Command::UpdateRecord(UpdateRecord { id, .. }) | Command::ArchiveRecord(ArchiveRecord { id, .. })
                if id.appended_place().is_some() =>
            {
                Err(self.written_once(&placement, id).await?.into())
            }
            Command::AppendRecords(command) => Box::pin(self.append_records(&attempt, &to, command)).await,
            Command::UpdateRecord(command) => {
                // The record determines its kind; a missing record is refused by its own rules.
                let known = self.aggregates.look::<Record>(&placement, &to.aggregate).await?;
                if let Some(accepted) = self.aggregates.earlier(&attempt, &placement, &to.aggregate, &known).await? {
                    return Ok(accepted);
                }
                let kind = match known.state.kind() {
                    Some(name) => self.kind(org, name).await?,
                    None => None,
                };
                let references = self.references(&placement, kind.as_deref(), &command.data).await?;
                let has_secrets = kind.as_ref().is_some_and(|kind| !kind.annotations.secrets.is_empty());
                // A record without secrets is written as others are: what another process has just set is found by a rotation.
                if has_secrets && (request.has_secrets() || known.state.secrets().next().is_some()) {
                    let update = |secrets| {
                        let (command, kind, references) = (command.clone(), kind.clone(), references.clone());
                        RecordCommand::Update { command, kind, references, secrets }
                    };
                    return Box::pin(self.write_with_secrets(&attempt, &to, update)).await;
                }
                let update = RecordCommand::Update { command, kind, references, secrets: Vec::new() };
                self.execute::<Record>(&attempt, &to, update).await
            }
            Command::ArchiveRecord(command) => {
                self.execute::<Record>(&attempt, &to, RecordCommand::Archive(command)).await
            }
            Command::PublishCatalogItem(command) => Box::pin(self.publish_catalog_item(&attempt, &to, command)).await,
            Command::WithdrawCatalogItem(command) => {
                self.execute::<CatalogItem>(&attempt, &to, CatalogItemCommand::Withdraw(command)).await
            }
            Command::ChooseCatalogItem(command) => Box::pin(self.choose_catalog_item(&attempt, &to, command)).await,
            Command::ClearCatalogChoice(command) => {
                self.execute::<CatalogChoices>(&attempt, &to, CatalogChoiceCommand::Clear(command)).await
            }
            Command::PublishPlan(command) => self.execute::<Plan>(&attempt, &to, command).await,
            Command::ReserveUsage(_)
            | Command::ExtendHold(_)
            | Command::SettleHold(_)
            | Command::ReleaseHold(_)
            | Command::ChargeUsage(_)
            | Command::CreditAccount(_)
            | Command::ChangeTopUp(_)
            | Command::RequestTopUp(_)
            | Command::PayTopUp(_)
            | Command::DeclineTopUp(_) => self.account(&attempt, &to).await,
            Command::CloseMonth(command) => {
                let (terms, used) = Box::pin(self.billing(&placement)).await?;
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::Close { command, terms, used }).await
            }
            Command::EndBilling(command) => {
                let (terms, used) = Box::pin(self.billing(&placement)).await?;
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::End { command, terms, used }).await
            }
            Command::MarkInvoicePaid(command) => {
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::MarkPaid(command)).await
            }
            Command::VoidInvoice(command) => {
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::Void(command)).await
            }
            Command::LinkBillingCustomer(command) => {
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::Note(ProviderNote::Customer(command))).await
            }
            Command::NoteInvoicePushed(command) => {
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::Note(ProviderNote::Pushed(command))).await
            }
            Command::NoteInvoiceWithdrawn(command) => {
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::Note(ProviderNote::Withdrawn(command))).await
            }
            Command::NoteBillingCustomerReleased(command) => {
                self.execute::<Invoices>(&attempt, &to, InvoiceCommand::Note(ProviderNote::Released(command))).await
            }
            Command::RetryParked(command) => {
                self.execute::<Parking>(&attempt, &to, ParkingCommand::Retry(command)).await
            }
            Command::SkipParked(command) => self.execute::<Parking>(&attempt, &to, ParkingCommand::Skip(command)).await,
        }
    }

    /// Decides and appends, from the cached aggregate if there is one.
    ///
    /// The cache may be behind another process. An append that the stream accepts proves that it was not; a refusal proves
    /// nothing until the aggregate was read again.
    pub(super) async fn execute<A: Cached>(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: A::Command,
    ) -> Result<Accepted, CommandError> {
        let Target { placement, aggregate } = to;
        let org = placement.org;
        let _turn = self.turn(org, aggregate).await;
        let remembered = A::cache(self.caches_of()).get(&Scoped::new(org, aggregate.clone()));
        let mut certain = false;
        // `last` marks the last read: nothing is appended after it.
        let (mut last, mut was_there) = (false, false);
        let mut patience = Patience::new();
        let mut loaded = match remembered {
            Some(loaded) => loaded,
            // An aggregate that a command creates under an id of its own does not exist yet, unless the command was sent
            // before.
            None if attempt.request.command.creates_under_own_id() => Arc::default(),
            None => {
                certain = true;
                self.aggregates.load::<A>(placement, aggregate, Freshness::Leader).await?
            }
        };
        loop {
            match self.decide(attempt, to, &loaded, command.clone()).await {
                Ok(Decided::Known(accepted)) => return Ok(accepted),
                // An attempt of ours may have been stored before the conflict, so only the history can rule that out.
                Ok(Decided::Events(_)) if last => return Err(CommandError::Contention),
                Ok(Decided::Events(events)) => {
                    match self.append(attempt, to, loaded, events).await {
                        Ok(Some(accepted)) => return Ok(accepted),
                        // Our own earlier success: the history has the answer that was given.
                        Ok(None) if was_there => return Err(unreadable_success()),
                        Ok(None) => was_there = true,
                        Err(CommandError::Contention) => last = !patience.again().await,
                        // What else was to be appended is refused, perhaps because this command was carried out before.
                        Err(CommandError::Rejected(_)) if !certain => {}
                        Err(error) => {
                            A::cache(self.caches_of()).remove(&Scoped::new(org, aggregate.clone()));
                            return Err(error);
                        }
                    }
                }
                Ok(Decided::Nothing) if certain => {
                    return Ok(attempt.unchanged(org, aggregate, loaded.version, loaded.seq));
                }
                Err(refusal) if certain => return Err(refusal),
                Ok(Decided::Nothing) | Err(_) => {}
            }
            loaded = self.aggregates.load::<A>(placement, aggregate, Freshness::Leader).await?;
            certain = true;
        }
    }

    /// Whether the command would append events now; fails if it is refused.
    pub(super) async fn would_happen<A: Cached>(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: A::Command,
    ) -> Result<bool, CommandError> {
        let loaded = self.aggregates.load::<A>(to.placement, &to.aggregate, Freshness::Leader).await?;
        Ok(matches!(self.decide(attempt, to, &loaded, command).await?, Decided::Events(_)))
    }

    async fn decide<A: Cached>(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        loaded: &Loaded<A>,
        command: A::Command,
    ) -> Result<Decided, CommandError> {
        let org = to.placement.org;
        if let Some(accepted) = self.aggregates.earlier(attempt, to.placement, &to.aggregate, loaded).await? {
            return Ok(Decided::Known(accepted));
        }
        if let Some(expected) = attempt.request.expected_version
            && expected != loaded.version
        {
            return Err(CommandError::VersionConflict { expected, actual: loaded.version });
        }
        let events = loaded.state.decide(command, &attempt.decision_context(org)).map_err(Into::into)?;
        let events: Vec<Event> = events.into_iter().map(A::wrap).collect();
        Ok(if events.is_empty() { Decided::Nothing } else { Decided::Events(events) })
    }

    /// Appends; none when the commit was there already.
    async fn append<A: Cached>(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        loaded: Arc<Loaded<A>>,
        events: Vec<Event>,
    ) -> Result<Option<Accepted>, CommandError> {
        let org = to.placement.org;
        let draft = attempt.draft(org, to.aggregate.clone(), loaded.version, events.clone());
        let changes = loaded.state.unique_changes(&to.aggregate, &events);
        let quotas = loaded.state.quota_changes(&events, attempt.now);
        let admitted = if quotas.is_empty() {
            Admitted::Uncounted(None)
        } else {
            Box::pin(self.admit(attempt, to.placement, &quotas)).await?
        };
        let (counted, taken) = match admitted {
            Admitted::Counted(counted) => (Some(counted), None),
            Admitted::Uncounted(taken) => (None, taken),
        };
        let appended = if changes.is_empty() && counted.is_none() {
            let commit = draft.seal(salt).map_err(AppendError::from)?;
            let trace = attempt.caller.trace.as_deref();
            attempt.confirm().await?;
            self.log.append(to.placement, &commit, loaded.seq, trace).await?
        } else {
            let record = (draft, loaded.seq);
            Box::pin(self.append_with_others(attempt, to.placement, (changes, counted, &quotas), record)).await?
        };
        if let Some(taken) = taken {
            taken.stored(appended.seq);
        }
        if appended.replayed && attempt.fingerprint.is_some() {
            return Ok(None);
        }
        let place = Place { seq: appended.seq, actor: &attempt.caller.actor, recorded_at: attempt.now };
        let (_, earlier) = self.aggregates.advance(to.placement, &to.aggregate, loaded, |loaded| {
            loaded.fold(attempt.command_id, attempt.fingerprint, place, events.iter())
        })?;
        Ok(Some(attempt.accepted(org, &to.aggregate, earlier, false)))
    }

    /// Returns the organization's profile, as it was at most `LOOK` ago; none when it was never created.
    pub async fn profile(&self, org: OrgId) -> Result<Option<Profile>, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let loaded = self.aggregates.look::<Organization>(&placement, &AggregateId::Organization(org)).await?;
        Ok(loaded.state.profile().cloned())
    }

    async fn check_active(&self, placement: &Placement, command: &Command) -> Result<(), CommandError> {
        let aggregate = AggregateId::Organization(placement.org);
        let organization = self.aggregates.look::<Organization>(placement, &aggregate).await?;
        match organization.state.must_be_active() {
            Ok(_) => Ok(()),
            // The platform's commands about an organization work while no others do, and none once it has ended.
            Err(_)
                if organization.state.profile().is_some()
                    && !organization.state.is_sealed()
                    && command.spec().while_suspended =>
            {
                Ok(())
            }
            Err(error) => Err(Rejection::from(error).into()),
        }
    }

    /// Refuses a command that needs several people while the organization is personal.
    async fn not_personal(&self, placement: &Placement) -> Result<(), CommandError> {
        let aggregate = AggregateId::Organization(placement.org);
        let is_personal = |loaded: &Loaded<Organization>| {
            loaded.state.profile().is_some_and(|profile| profile.tenant_type == TenantType::Personal)
        };
        // It may have been upgraded a moment ago, by another process.
        if is_personal(&*self.aggregates.look::<Organization>(placement, &aggregate).await?)
            && is_personal(&*self.aggregates.load::<Organization>(placement, &aggregate, Freshness::Leader).await?)
        {
            return Err(Rejection::from(OrganizationError::Personal).into());
        }
        Ok(())
    }

    /// Returns what `org` means by the name of a kind, ready to validate data; none when it was never registered.
    pub async fn kind(&self, org: OrgId, name: &KindName) -> Result<Option<Arc<ValidatedKind>>, CommandError> {
        let placement = self.aggregates.placement(name.owner(org)).await?;
        let loaded = self.aggregates.look::<Kind>(&placement, &AggregateId::Kind(name.clone())).await?;
        Ok(loaded.state.validated())
    }

    /// Returns who changed a kind of the platform last; none if there is no such kind.
    pub async fn kind_changed_by(&self, name: &KindName) -> Result<Option<Actor>, CommandError> {
        let (placement, kind) = (self.aggregates.placement(PLATFORM_ORG).await?, AggregateId::Kind(name.clone()));
        let seq = self.aggregates.look::<Kind>(&placement, &kind).await?.seq;
        if seq == 0 {
            return Ok(None);
        }
        let stored = self.log.commit_at(&placement, &kind, seq).await?;
        Ok(stored.commit.events.last().map(|opened| opened.header.actor.clone()))
    }

    /// Waits for its turn to register a kind. Before that to write, and never behind it.
    pub(super) async fn registration_turn(&self, org: OrgId) -> MutexGuard<'_, ()> {
        let place = self.hasher.hash_one(org) as usize % REGISTRATION_TURNS;
        self.registration_turns.get(place).unwrap_or(&self.last_turn).lock().await
    }

    /// Waits for its turn to write to the aggregate.
    pub(super) async fn turn(&self, org: OrgId, aggregate: &AggregateId) -> MutexGuard<'_, ()> {
        let place = self.hasher.hash_one((org, aggregate)) as usize % TURNS;
        self.turns.get(place).unwrap_or(&self.last_turn).lock().await
    }

    /// Appends commits to several aggregates of one org, all or none.
    pub(super) async fn append_together(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        drafts: Vec<(CommitDraft, u64)>,
    ) -> Result<Vec<Appended>, AppendError> {
        let sealed: Result<Vec<_>, AppendError> =
            drafts.into_iter().map(|(draft, seq)| Ok((draft.seal(salt)?, seq))).collect();
        self.log.append_together(placement, &sealed?, attempt.caller.trace.as_deref()).await
    }
}

/// The result of a decision.
enum Decided {
    /// The command was carried out before.
    Known(Accepted),
    /// The state is as requested already.
    Nothing,
    /// These events are to be appended.
    Events(Vec<Event>),
}

/// The target of a command, and its placement.
pub(super) struct Target<'a> {
    pub(super) placement: &'a Placement,
    pub(super) aggregate: AggregateId,
}

/// Returns the hash of a request, which distinguishes a repetition from another request under the same key. Metadata of the
/// command counts as far as it is in the events; a version is a condition, and attempts with different ones are one request.
pub fn fingerprint(request: &Request) -> Result<Fingerprint, CommandError> {
    let json = |value: serde_json::Result<Vec<u8>>| value.map_err(|error| CommandError::Internal(cause(error)));
    let body = json(serde_json::to_vec(&request.command))?;
    let Request { occurred_at, causation_id, correlation_id, .. } = request;
    if occurred_at.is_none() && causation_id.is_none() && correlation_id.is_none() {
        return Ok(Fingerprint::of(&[&body]));
    }
    let around = json(serde_json::to_vec(&(occurred_at, causation_id, correlation_id)))?;
    // JSON has no byte 0, so that nothing else encodes like the two together.
    Ok(Fingerprint::of(&[&body, &[0], &around]))
}

/// Whether the command is declared to have these events.
fn is_declared(spec: &CommandSpec, events: &[String]) -> bool {
    events.iter().all(|event| spec.events.contains(&event.as_str()))
}

fn salt() -> Salt {
    Salt(rand::random())
}
