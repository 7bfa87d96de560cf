//! API keys as credentials: found by the public part of a token, proven by its secret, and bounded by what was decided
//! about them: an end, a rotation, addresses, whoever issued them.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use orgstream_domain::{
    Scopes,
    credentials::key::{KeyToken, KeyTokenError, Pepper},
};
use orgstream_events::{ActorType, Context, KeyId, KeyPublicId, MemberId, OrgId, Slug, Timestamp};
use orgstream_projections::{
    BoundOrg, Database, TenantTx,
    api_keys::{self, ApiKey},
    checkpoints::Reach,
    members, organizations,
};
use quick_cache::sync::Cache;

use super::{
    AuthError, Principal,
    decided::{self, Decided},
    key_uses::KeyUses,
};
use crate::{
    clock::now,
    tenant_cache::{CacheView, OrgCache, Scoped},
};

/// How long what is known of a key may be used again. With what the log is believed for (`decided.rs`) and the looks while
/// something is answered it stays under a second until what is revoked stops working, in every process, however far behind
/// the read models are.
pub const CACHE_TTL: Duration = Duration::from_millis(400);
const CACHE_CAPACITY: usize = 100_000;

#[derive(Debug, Clone)]
struct Known {
    key: ApiKey,
    /// When the token that names it ends, where the read models do not know yet that it was replaced.
    token_ends_at: Option<Timestamp>,
    /// Whoever issued it is gone, and the organization wants its keys gone with them.
    creator_left: bool,
    at: Instant,
}

/// Knows keys. One per process.
pub struct Keys {
    db: Database,
    decided: Arc<Decided>,
    pepper: Pepper,
    /// Whose key it is: ids, and nothing of the key.
    owners: Cache<KeyPublicId, OrgId>,
    known: OrgCache<KeyPublicId, Arc<Known>>,
    uses: KeyUses,
}

impl Keys {
    /// Keys whose secrets are hashed with `pepper`. When they were used is written down in the background.
    pub(super) fn new(db: Database, decided: Arc<Decided>, pepper: Pepper) -> Self {
        let uses = KeyUses::start(db.clone());
        Self { db, decided, pepper, owners: Cache::new(CACHE_CAPACITY), known: OrgCache::new(CACHE_CAPACITY), uses }
    }

    /// What is remembered at the moment.
    pub fn cache(&self) -> CacheView {
        CacheView::of("api_keys", "org/public_id", &self.known)
    }

    /// The key whose token this is.
    pub async fn principal(&self, text: &str) -> Result<Principal, AuthError> {
        let token: KeyToken =
            text.parse().map_err(|error: KeyTokenError| AuthError::Unauthenticated(error.to_string()))?;
        let public_id = token.public_id().clone();
        let (org, known) = self.known(&public_id).await?;
        if !secret(&public_id, &known.key).is_some_and(|mac| token.matches(&self.pepper, mac)) {
            return Err(AuthError::KeyRefused { org, id: known.key.id, public_id, code: "wrong_secret" });
        }
        Self::principal_as(org, &known, public_id)
    }

    /// The key of this public part, for somebody who proved by other means than its secret to be its bearer.
    pub async fn principal_of(&self, public_id: &KeyPublicId) -> Result<Principal, AuthError> {
        let (org, known) = self.known(public_id).await?;
        Self::principal_as(org, &known, public_id.clone())
    }

    fn principal_as(org: OrgId, known: &Known, public_id: KeyPublicId) -> Result<Principal, AuthError> {
        let key = &known.key;
        match fault(&public_id, known, now()) {
            None => Ok(Principal::Key {
                id: key.id,
                public_id,
                org,
                role: key.role,
                scopes: Scopes::named(key.scopes.as_deref()),
                allowed_ips: parsed(&key.allowed_ips),
            }),
            Some(code) => Err(AuthError::KeyRefused { org, id: key.id, public_id, code }),
        }
    }

    /// What credentials for elsewhere that are made of this token are bound to: the name of its organization, and when it
    /// ends by itself.
    pub async fn binding(&self, public_id: &KeyPublicId) -> Result<(Option<Slug>, Option<Timestamp>), AuthError> {
        let (org, known) = self.known(public_id).await?;
        let key = &known.key;
        let previous = key.previous.as_ref().filter(|previous| previous.public_id == *public_id);
        let ends = [key.expires_at, known.token_ends_at, previous.map(|previous| previous.ends_at)]
            .into_iter()
            .flatten()
            .min();
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        Ok((organizations::get(&mut tx).await?.map(|organization| organization.slug), ends))
    }

    /// The organization and id of a key that is in somebody else's hands, if this is its whole token.
    pub async fn owner(&self, token: &KeyToken) -> Result<Option<(OrgId, KeyId)>, AuthError> {
        match self.known(token.public_id()).await {
            Ok((org, known))
                if secret(token.public_id(), &known.key).is_some_and(|mac| token.matches(&self.pepper, mac)) =>
            {
                Ok(Some((org, known.key.id)))
            }
            Ok(_) | Err(AuthError::Unauthenticated(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes on only if `principal` may come from where the request does, and access log that it came. Only keys are bound to
    /// addresses.
    pub fn admit(&self, principal: &Principal, context: &Context) -> Result<(), AuthError> {
        let Principal::Key { id, public_id, org, allowed_ips, .. } = principal else { return Ok(()) };
        let from = context.ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
        if !allowed_ips.is_empty() && !from.is_some_and(|from| allowed_ips.iter().any(|net| net.contains(&from))) {
            let (org, id, public_id) = (*org, *id, public_id.clone());
            return Err(AuthError::KeyRefused { org, id, public_id, code: "ip_not_allowed" });
        }
        self.uses.note(*org, *id, context);
        Ok(())
    }

    /// Whether whoever vouches for a key is gone, and the organization wants its keys gone with them.
    async fn has_left(&self, org: OrgId, creator: Creator) -> Result<bool, AuthError> {
        let Creator { member, mut is_here, mut takes_keys, reach } = creator;
        if let Some(roster) = self.decided.roster(org, reach).await? {
            is_here = roster.get(member).is_some();
        }
        if let Some(organization) = self.decided.organization(org, reach).await? {
            takes_keys = organization.profile().is_none_or(|profile| profile.settings.revoke_keys_on_creator_exit);
        }
        Ok(takes_keys && !is_here)
    }

    async fn known(&self, public_id: &KeyPublicId) -> Result<(OrgId, Arc<Known>), AuthError> {
        let refused =
            || AuthError::Unauthenticated("this API key is not valid: it is unknown, revoked or expired".to_owned());
        if let Some(org) = self.owners.get(public_id)
            && let Some(known) = self.known.get(&Scoped::new(org, public_id.clone()))
            && known.at.elapsed() < CACHE_TTL
        {
            return Ok((org, known));
        }
        let at = Instant::now();
        let org = self.db.org_of_key(public_id).await?.ok_or_else(refused)?;
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let reach = decided::reach(&mut tx).await?;
        let mut key = api_keys::get_by_public_id(&mut tx, public_id).await?.ok_or_else(refused)?;
        let creator = match key.created_by.member() {
            Some(member) => Some(Creator::find(&mut tx, member, reach).await?),
            None => None,
        };
        // The log is asked with no connection in hand that others wait for.
        drop(tx);
        // On whose word the key of a key is, its own history says.
        let by_a_key = key.created_by.actor_type == ActorType::ApiKey;
        let decided = self.decided.key(org, key.id, Some(reach).filter(|_| !by_a_key)).await?;
        let creator = match (creator, decided.as_ref().and_then(|decided| decided.creator())) {
            (None, Some(member)) => {
                let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
                let reach = decided::reach(&mut tx).await?;
                Some(Creator::find(&mut tx, member, reach).await?)
            }
            (creator, _) => creator,
        };
        let creator_left = match creator {
            Some(creator) => self.has_left(org, creator).await?,
            None => false,
        };
        let mut token_ends_at = None;
        if let Some(decided) = &decided {
            if decided.is_revoked() {
                key.revoked_at.get_or_insert_with(now);
            }
            key.expires_at = decided.expires_at();
            token_ends_at = decided.token_ends_at(public_id);
        }
        let known = Arc::new(Known { key, token_ends_at, creator_left, at });
        self.owners.insert(public_id.clone(), org);
        self.known.insert(Scoped::new(org, public_id.clone()), Arc::clone(&known));
        Ok((org, known))
    }
}

/// Why the key does not count, for its organization's log; None when it does.
fn fault(public_id: &KeyPublicId, known: &Known, now: Timestamp) -> Option<&'static str> {
    let Known { key, token_ends_at, creator_left, .. } = known;
    let is_past = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
    if key.revoked_at.is_some() {
        Some("revoked")
    } else if is_past(key.expires_at) {
        Some("expired")
    } else if is_past(*token_ends_at)
        || (key.public_id != *public_id && is_past(key.previous.as_ref().map(|previous| previous.ends_at)))
    {
        Some("rotated")
    } else if *creator_left {
        Some("creator_left")
    } else {
        None
    }
}

/// What the secret of the token is compared with: a key that was rotated has two for a while.
fn secret<'a>(public_id: &KeyPublicId, key: &'a ApiKey) -> Option<&'a orgstream_events::Fingerprint> {
    if key.public_id == *public_id {
        return Some(&key.secret_mac);
    }
    key.previous.as_ref().filter(|previous| previous.public_id == *public_id).map(|previous| &previous.secret_mac)
}

/// What cannot be read allows nothing, and not everything: a single address that nobody has stands for it.
fn parsed(nets: &[String]) -> Arc<[IpNet]> {
    let nobody = IpNet::from(IpAddr::from([0, 0, 0, 0]));
    nets.iter().map(|net| net.parse().unwrap_or(nobody)).collect()
}

/// On whose word a key is, as the read models have it.
struct Creator {
    member: MemberId,
    is_here: bool,
    /// Whether the organization wants the keys of who is gone gone with them.
    takes_keys: bool,
    reach: Reach,
}

impl Creator {
    async fn find(tx: &mut TenantTx, member: MemberId, reach: Reach) -> Result<Self, AuthError> {
        let is_here = members::get(tx, member).await?.is_some_and(|member| member.active);
        let organization = organizations::get(tx).await?;
        let takes_keys = organization.is_some_and(|organization| organization.settings.revoke_keys_on_creator_exit);
        Ok(Self { member, is_here, takes_keys, reach })
    }
}
