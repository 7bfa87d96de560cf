//! The one place where a command's grants are checked against its caller's authority.
//!
//! Each command declares its grants (`orgstream_domain::grants`). Stored things that they name (an invitation, a key) are
//! looked up here, and the rule itself is `orgstream_domain::authority`.

use std::collections::BTreeSet;

use orgstream_domain::{
    Command, Permission, Rejection, RejectionKind, Scopes,
    api_key::ApiKey,
    authority::{Authority, Excess},
    grants::Grant,
    invitation::Invitation,
    member::Members,
    organization::Organization,
    role::CustomRoles,
    sso_connection::Connections,
};
use orgstream_events::{ActorType, AggregateId, KeyId, MemberId, Role};
use orgstream_stream::{Freshness, Placement};

use super::{
    handler::CommandHandler,
    request::{Caller, CommandError},
};

impl CommandHandler {
    /// Refuses a command that grants more than its caller has; returns the caller's authority.
    pub(super) async fn may_grant(
        &self,
        placement: &Placement,
        caller: &Caller,
        command: &Command,
    ) -> Result<Authority, CommandError> {
        let of_role = self.permissions_of(placement, caller.role).await?;
        let authority = Authority::new(caller.role, of_role, caller.scopes.clone());
        for grant in command.grants() {
            match grant {
                Grant::Role(role) => self.may_grant_role(placement, &authority, role, &Scopes::ALL).await?,
                Grant::Permissions(permissions) => authority.may_grant(&permissions).map_err(above)?,
                Grant::Key(role, scopes) => {
                    let scopes = scopes.map_or_else(|| caller.scopes.clone(), |names| Scopes::named(Some(&names)));
                    self.may_grant_role(placement, &authority, role, &scopes).await?;
                }
                // A missing key is refused by its own rules, which have the right error for it.
                Grant::KeyAgain(id) => {
                    let key = self.aggregates.look::<ApiKey>(placement, &AggregateId::ApiKey(id)).await?;
                    if let Some(issued) = key.state.issued() {
                        let scopes = Scopes::named(issued.scopes.as_deref());
                        self.may_grant_role(placement, &authority, issued.role, &scopes).await?;
                    }
                }
                Grant::KeyEnded(id) => {
                    let key = self.aggregates.look::<ApiKey>(placement, &AggregateId::ApiKey(id)).await?;
                    if let Some(issued) = key.state.issued() {
                        let scopes = Scopes::named(issued.scopes.as_deref());
                        // A role that was removed gives the key nothing.
                        let mut permissions = self.permissions_of(placement, issued.role).await?;
                        permissions.retain(|permission| scopes.allow(*permission));
                        authority.may_grant_role(issued.role, &permissions).map_err(|excess| {
                            let detail = "this key may do more than you: ask a member who may do as much to revoke it";
                            above_as(&excess, &detail)
                        })?;
                    }
                }
                Grant::Invitation(id) => {
                    let invitation =
                        self.aggregates.look::<Invitation>(placement, &AggregateId::Invitation(id)).await?;
                    if let Some(offer) = invitation.state.offer() {
                        self.may_grant_role(placement, &authority, offer.role, &Scopes::ALL).await?;
                    }
                }
                Grant::Issuer(issuer) => {
                    let aggregate = AggregateId::SsoConnection(placement.org);
                    let known =
                        self.aggregates.look::<Connections>(placement, &aggregate).await?.state.has_had(&issuer);
                    // The people who joined by this issuer before are unknown: one may have been an owner, and another
                    // audience of the issuer could identify anyone as that person again.
                    let role = if known { Role::Owner } else { Role::Member };
                    self.may_grant_role(placement, &authority, role, &Scopes::ALL).await?;
                }
                // Who joined by an issuer is unknown: it may be how an owner signs in.
                Grant::IssuerEnded(id) => {
                    let aggregate = AggregateId::SsoConnection(placement.org);
                    if self.aggregates.look::<Connections>(placement, &aggregate).await?.state.has(id) {
                        self.may_grant_role(placement, &authority, Role::Owner, &Scopes::ALL).await?;
                    }
                }
                Grant::Offered => {}
            }
        }
        Ok(authority)
    }

    async fn may_grant_role(
        &self,
        placement: &Placement,
        authority: &Authority,
        role: Role,
        scopes: &Scopes,
    ) -> Result<(), CommandError> {
        let mut permissions = self.permissions_of_given(placement, role).await?;
        permissions.retain(|permission| scopes.allow(*permission));
        authority.may_grant_role(role, &permissions).map_err(above)
    }

    /// Returns the current permissions of this role.
    pub(super) async fn permissions_of(
        &self,
        placement: &Placement,
        role: Role,
    ) -> Result<BTreeSet<Permission>, CommandError> {
        let Role::Custom(id) = role else { return Ok(Permission::of_role(role)) };
        let book = self.aggregates.look::<CustomRoles>(placement, &AggregateId::Role(placement.org)).await?;
        Ok(book.state.permissions(id).unwrap_or_default())
    }

    /// Like `permissions_of`, for a role to be granted, which must exist.
    async fn permissions_of_given(
        &self,
        placement: &Placement,
        role: Role,
    ) -> Result<BTreeSet<Permission>, CommandError> {
        let Role::Custom(id) = role else { return Ok(Permission::of_role(role)) };
        let aggregate = AggregateId::Role(placement.org);
        let mut book = self.aggregates.look::<CustomRoles>(placement, &aggregate).await?;
        if book.state.permissions(id).is_none() {
            // It may have been created a moment ago, by another process.
            book = self.aggregates.load::<CustomRoles>(placement, &aggregate, Freshness::Leader).await?;
        }
        book.state.permissions(id).ok_or_else(|| {
            let detail = format!("there is no role {id} in this organization; list its roles");
            Rejection::field("/role", "unknown_role", detail).into()
        })
    }

    /// Whether the sender of an invitation could send it now: the invitation is void once its sender loses the right.
    pub(super) async fn still_offers(
        &self,
        placement: &Placement,
        members: &Members,
        invitation: &Invitation,
    ) -> Result<bool, CommandError> {
        let (Some(offer), Some((kind, id))) = (invitation.offer(), invitation.sent_by()) else { return Ok(false) };
        let (role, scopes) = match kind {
            ActorType::Member => match id.parse::<MemberId>().ok().and_then(|id| members.get(id)) {
                Some(member) => (member.role, Scopes::ALL),
                None => return Ok(false),
            },
            ActorType::ApiKey => match id.parse::<KeyId>() {
                Ok(id) => match self.standing_of_key(placement, members, id).await? {
                    Some(standing) => standing,
                    None => return Ok(false),
                },
                Err(_) => return Ok(false),
            },
            ActorType::PlatformOperator | ActorType::System => return Ok(true),
            ActorType::Anonymous => return Ok(false),
        };
        let authority = Authority::new(role, self.permissions_of(placement, role).await?, scopes);
        let inviting = authority.may_grant(&BTreeSet::from([Permission::ManageMembers]));
        let given = self.permissions_of(placement, offer.role).await?;
        Ok(inviting.and_then(|()| authority.may_grant_role(offer.role, &given)).is_ok())
    }

    /// Returns the role and scopes of a key, unless it was revoked, or ended with the membership of its voucher. An expired
    /// key keeps them: expiry is no revocation of its invitations.
    async fn standing_of_key(
        &self,
        placement: &Placement,
        members: &Members,
        id: KeyId,
    ) -> Result<Option<(Role, Scopes)>, CommandError> {
        let key = self.aggregates.load::<ApiKey>(placement, &AggregateId::ApiKey(id), Freshness::Leader).await?;
        let Some(issued) = key.state.issued().filter(|_| !key.state.is_revoked()) else { return Ok(None) };
        let organization =
            self.aggregates.look::<Organization>(placement, &AggregateId::Organization(placement.org)).await?;
        if organization.state.has_ended_key_of(key.state.issued_at()) {
            return Ok(None);
        }
        if key.state.creator().is_some_and(|creator| members.get(creator).is_none())
            && organization.state.profile().is_none_or(|profile| profile.settings.revoke_keys_on_creator_exit)
        {
            return Ok(None);
        }
        Ok(Some((issued.role, Scopes::named(issued.scopes.as_deref()))))
    }

    /// Returns the member that vouches for a key; none if the actor is no key.
    pub(super) async fn vouching(
        &self,
        placement: &Placement,
        actor: (ActorType, &str),
    ) -> Result<Option<MemberId>, CommandError> {
        let (ActorType::ApiKey, id) = actor else { return Ok(None) };
        let Ok(id) = id.parse::<KeyId>() else { return Ok(None) };
        Ok(self.aggregates.look::<ApiKey>(placement, &AggregateId::ApiKey(id)).await?.state.creator())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it on")]
fn above(excess: Excess) -> CommandError {
    above_as(&excess, &excess)
}

/// Like `above`, with `detail` as the text.
fn above_as(excess: &Excess, detail: &dyn std::fmt::Display) -> CommandError {
    let rejection = match excess {
        Excess::Role { .. } | Excess::Permission { .. } => {
            Rejection::new(RejectionKind::Forbidden, "role_above_own", detail)
        }
        Excess::Scopes { .. } => Rejection::new(RejectionKind::Forbidden, "scope_above_own", detail),
    };
    rejection.into()
}
