//! Registering and changing kinds: those that they refer to are there, and an organization has no more and no larger ones of its own
//! than its plan allows.

use orgstream_domain::{
    ChangeKind, RegisterKind,
    kind::{Kind, KindCommand},
    organization::Organization,
    own_kinds::OwnKindLimit,
};
use orgstream_events::{AggregateId, AggregateType, OrgId, PLATFORM_ORG, PlanName};
use orgstream_stream::{Freshness, Placement};

use super::{
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError},
};

/// The kinds of an organization's own: how many there are, and may be.
#[derive(Debug, Clone, Copy)]
pub struct OwnKinds {
    /// The number of kinds, retired ones included.
    pub used: u64,
    /// The number that there may be.
    pub limit: u32,
    /// Whether the limit is its plan's, and not the default.
    pub is_plans: bool,
}

impl CommandHandler {
    /// Counts the kinds of an organization's own; none when it was never created.
    pub async fn own_kinds_of(&self, org: OrgId) -> Result<Option<OwnKinds>, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let (plan, limit) = self.own_kind_limit(&placement).await?;
        let used = self.log.count_of_type(&placement, AggregateType::Kind).await?;
        Ok(Some(OwnKinds { used, limit: limit.kinds, is_plans: self.own_kinds.knows(&plan) }))
    }

    /// Registers a kind. The kinds of an organization are counted in the log, one registration of a process after the other, so
    /// only as many processes as register at the same moment can be beyond the limit.
    pub(super) async fn register_kind(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: RegisterKind,
    ) -> Result<Accepted, CommandError> {
        let org = to.placement.org;
        let _turn = self.registration_turn(org).await;
        if org != PLATFORM_ORG && command.kind.is_own() {
            let known = self.aggregates.load::<Kind>(to.placement, &to.aggregate, Freshness::Leader).await?;
            if known.version == 0 {
                let (plan, limit) = self.own_kind_limit(to.placement).await?;
                limit.admits_schema(&command.schema, &plan)?;
                limit.admits_another(self.log.count_of_type(to.placement, AggregateType::Kind).await?, &plan)?;
            }
        }
        self.refers_to_kinds(org, &command.kind, Some(&command.schema)).await?;
        self.execute::<Kind>(attempt, to, KindCommand::Register(command)).await
    }

    /// Changes a kind.
    pub(super) async fn change_kind(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: ChangeKind,
    ) -> Result<Accepted, CommandError> {
        let org = to.placement.org;
        if org != PLATFORM_ORG
            && let Some(schema) = &command.schema
        {
            let (plan, limit) = self.own_kind_limit(to.placement).await?;
            limit.admits_schema(schema, &plan)?;
        }
        self.refers_to_kinds(org, &command.kind, command.schema.as_ref()).await?;
        self.execute::<Kind>(attempt, to, KindCommand::Change(command)).await
    }

    async fn own_kind_limit(&self, placement: &Placement) -> Result<(PlanName, OwnKindLimit), CommandError> {
        let aggregate = AggregateId::Organization(placement.org);
        let organization = self.aggregates.look::<Organization>(placement, &aggregate).await?;
        let profile = organization.state.profile().ok_or(CommandError::NoOrganization(placement.org))?;
        Ok((profile.plan.clone(), self.own_kinds.of(&profile.plan)))
    }
}
