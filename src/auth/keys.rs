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
    members, organizations,
};
use quick_cache::sync::Cache;

use super::{AuthError, Principal, key_uses::KeyUses};
use crate::{
    clock::now,
    tenant_cache::{CacheView, OrgCache, Scoped},
};

/// How long what is known of a key may be used again. With the way to the read models it stays under a second until what is
/// revoked stops working, in every process.
pub const REMEMBER: Duration = Duration::from_millis(500);
const REMEMBERED: usize = 100_000;

#[derive(Debug, Clone)]
struct Known {
    key: ApiKey,
    /// Whoever issued it is gone, and the organization wants its keys gone with them.
    creator_left: bool,
    at: Instant,
}

/// Knows keys. One per process.
pub struct Keys {
    db: Database,
    pepper: Pepper,
    /// Whose key it is: ids, and nothing of the key.
    owners: Cache<KeyPublicId, OrgId>,
    known: OrgCache<KeyPublicId, Arc<Known>>,
    uses: KeyUses,
}

impl Keys {
    /// Keys whose secrets are hashed with `pepper`. When they were used is written down in the background.
    pub fn new(db: Database, pepper: Pepper) -> Self {
        let uses = KeyUses::start(db.clone());
        Self { db, pepper, owners: Cache::new(REMEMBERED), known: OrgCache::new(REMEMBERED), uses }
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
        let Known { key, creator_left, .. } = known;
        match fault(&public_id, key, *creator_left, now()) {
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
        let ends = [key.expires_at, previous.map(|previous| previous.ends_at)].into_iter().flatten().min();
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

    /// Goes on only if `principal` may come from where the request does, and notes that it came. Only keys are bound to
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

    async fn known(&self, public_id: &KeyPublicId) -> Result<(OrgId, Arc<Known>), AuthError> {
        let refused =
            || AuthError::Unauthenticated("this API key is not valid: it is unknown, revoked or expired".to_owned());
        if let Some(org) = self.owners.get(public_id)
            && let Some(known) = self.known.get(&Scoped::new(org, public_id.clone()))
            && known.at.elapsed() < REMEMBER
        {
            return Ok((org, known));
        }
        let at = Instant::now();
        let org = self.db.org_of_key(public_id).await?.ok_or_else(refused)?;
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let key = api_keys::get_by_public_id(&mut tx, public_id).await?.ok_or_else(refused)?;
        let creator_left = creator_left(&mut tx, &key).await?;
        let known = Arc::new(Known { key, creator_left, at });
        self.owners.insert(public_id.clone(), org);
        self.known.insert(Scoped::new(org, public_id.clone()), Arc::clone(&known));
        Ok((org, known))
    }
}

/// Why the key does not count, for its organization's log; None when it does.
fn fault(public_id: &KeyPublicId, key: &ApiKey, creator_left: bool, now: Timestamp) -> Option<&'static str> {
    let is_past = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
    if key.revoked_at.is_some() {
        Some("revoked")
    } else if is_past(key.expires_at) {
        Some("expired")
    } else if key.public_id != *public_id && is_past(key.previous.as_ref().map(|previous| previous.ends_at)) {
        Some("rotated")
    } else if creator_left {
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

async fn creator_left(tx: &mut TenantTx, key: &ApiKey) -> Result<bool, AuthError> {
    let member = (key.created_by.actor_type == ActorType::Member).then(|| key.created_by.id.parse::<MemberId>().ok());
    let Some(member) = member.flatten() else { return Ok(false) };
    let organization = organizations::get(tx).await?;
    if !organization.is_some_and(|organization| organization.settings.revoke_keys_on_creator_exit) {
        return Ok(false);
    }
    Ok(members::get(tx, member).await?.is_none_or(|member| !member.active))
}
