//! API keys as credentials: found by the public part of a token, proven by its secret, and bounded by the decisions about
//! them: an end, a rotation, addresses, the membership of the voucher.

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
use orgstream_events::{ActorType, Context, KeyId, KeyPublicId, MemberId, OrgId, Slug, Timestamp, cause};
use orgstream_projections::{
    BoundOrg, Database, TenantTx,
    api_keys::{self, ApiKey},
    checkpoints::Reach,
    members, organizations,
};
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::{
    AuthError, Principal,
    decided::{self, Decided},
    key_uses::KeyUses,
};
use crate::{
    clock::now,
    tenant_cache::{CacheView, Found, OrgCache, Scoped, SingleFlight},
};

/// The TTL of a cached key. With the TTL of log reads (`decided.rs`) and the re-checks while a response goes on, a revoked
/// key stops working in under a second, in every process, however far behind the read models are.
pub const CACHE_TTL: Duration = Duration::from_millis(400);
const CACHE_CAPACITY: usize = 100_000;
/// Lookups at the same time of keys that this process has not seen, most of which may be random.
const STRANGERS: usize = 4;

#[derive(Debug, Clone)]
struct Known {
    key: ApiKey,
    /// When the token expires, where the read models do not have its rotation yet.
    token_ends_at: Option<Timestamp>,
    /// The voucher is no longer a member, and the organization revokes the keys of former members.
    creator_left: bool,
    /// A deletion of the organization was requested after it was issued.
    ended_with_all: bool,
    at: Instant,
}

/// Checks keys. One per process.
pub struct Keys {
    db: Database,
    decided: Arc<Decided>,
    pepper: Pepper,
    /// The organization of each key: ids, and nothing of the key.
    owners: Cache<KeyPublicId, OrgId>,
    known: OrgCache<KeyPublicId, Arc<Known>>,
    flights: SingleFlight<(OrgId, Arc<Known>), AuthError>,
    /// Lookups of keys that this process has not seen.
    strangers: Semaphore,
    uses: KeyUses,
}

impl Keys {
    /// Checks keys whose secrets are hashed with `pepper`. Their uses are recorded in the background.
    pub(super) fn new(db: Database, decided: Arc<Decided>, pepper: Pepper) -> Self {
        let uses = KeyUses::start(db.clone());
        let (owners, known) = (Cache::new(CACHE_CAPACITY), OrgCache::new(CACHE_CAPACITY));
        let (flights, strangers) = (SingleFlight::new(CACHE_TTL), Semaphore::new(STRANGERS));
        Self { db, decided, pepper, owners, known, flights, strangers, uses }
    }

    /// Returns the current cache contents.
    pub fn cache(&self) -> CacheView {
        CacheView::of("api_keys", "org/public_id", &self.known)
    }

    /// Returns the key of this token.
    pub async fn principal(&self, text: &str) -> Result<Principal, AuthError> {
        let token: KeyToken = text.parse().map_err(|error: KeyTokenError| AuthError::Unauthenticated(cause(error)))?;
        let public_id = token.public_id().clone();
        let (org, known) = self.known(&public_id).await?;
        if !secret(&public_id, &known.key).is_some_and(|mac| token.matches(&self.pepper, mac)) {
            return Err(AuthError::KeyRefused { org, id: known.key.id, public_id, code: "wrong_secret" });
        }
        Self::principal_as(org, &known, public_id)
    }

    /// Returns the key of this public part, for a bearer that was authenticated by other means than its secret.
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

    /// Returns what derived external credentials of this token are bound to: the slug of its organization, and when it
    /// expires.
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

    /// Returns the organization and id of a leaked key, if this is its whole token.
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

    /// Fails unless `principal` is accepted from the request's address, and records the use. Only keys are bound to
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

    /// Whether a key's voucher is no longer a member, and the organization revokes the keys of former members.
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
        let came = Instant::now();
        let owner = self.owners.get(public_id);
        if let Some(org) = owner
            && let Some(known) = self.known.get(&Scoped::new(org, public_id.clone()))
            && came.saturating_duration_since(known.at) < CACHE_TTL
        {
            return Ok((org, known));
        }
        let lookup = Box::pin(async {
            // Random keys cost no more than this of what all others wait for.
            let _stranger = match owner {
                Some(_) => None,
                None => self.strangers.acquire().await.ok(),
            };
            let (org, known) = self.look_up(public_id).await?;
            let (at, known) = (known.at, Arc::new(known));
            self.owners.insert(public_id.clone(), org);
            self.known.insert(Scoped::new(org, public_id.clone()), Arc::clone(&known));
            Ok(Found { value: (org, known), at })
        });
        self.flights.once(public_id, came, lookup).await
    }

    async fn look_up(&self, public_id: &KeyPublicId) -> Result<(OrgId, Known), AuthError> {
        let refused =
            || AuthError::Unauthenticated(cause("this API key is not valid: it is unknown, revoked or expired"));
        let org = self.db.org_of_key(public_id).await?.ok_or_else(refused)?;
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let at = Instant::now();
        let reach = decided::reach(&mut tx).await?;
        let mut key = api_keys::get_by_public_id(&mut tx, public_id).await?.ok_or_else(refused)?;
        let mut ended_at = organizations::get(&mut tx).await?.and_then(|organization| organization.keys_ended_at);
        let creator = match key.created_by.member() {
            Some(member) => Some(Creator::find(&mut tx, member, reach).await?),
            None => None,
        };
        // The log is queried without holding a connection that others wait for.
        drop(tx);
        if let Some(organization) = self.decided.organization(org, reach).await? {
            ended_at = organization.profile().and_then(|profile| profile.keys_ended_at);
        }
        let ended_with_all = ended_at.is_some_and(|ended_at| key.created_at <= ended_at);
        // The voucher of a key that a key issued is in its own history.
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
        Ok((org, Known { key, token_ends_at, creator_left, ended_with_all, at }))
    }
}

/// Returns the reason why the key is invalid, for its organization's log; none when it is valid.
fn fault(public_id: &KeyPublicId, known: &Known, now: Timestamp) -> Option<&'static str> {
    let Known { key, token_ends_at, creator_left, ended_with_all, .. } = known;
    let is_past = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
    if key.revoked_at.is_some() {
        Some("revoked")
    } else if *ended_with_all {
        Some("organization_being_deleted")
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

/// Returns the hash for the token's secret: a rotated key has two for a while.
fn secret<'a>(public_id: &KeyPublicId, key: &'a ApiKey) -> Option<&'a orgstream_events::Fingerprint> {
    if key.public_id == *public_id {
        return Some(&key.secret_mac);
    }
    key.previous.as_ref().filter(|previous| previous.public_id == *public_id).map(|previous| &previous.secret_mac)
}

/// An unparsable network allows nothing, rather than everything: an unusable address stands for it.
fn parsed(nets: &[String]) -> Arc<[IpNet]> {
    let nobody = IpNet::from(IpAddr::from([0, 0, 0, 0]));
    nets.iter().map(|net| net.parse().unwrap_or(nobody)).collect()
}

/// The voucher of a key, as the read models have it.
struct Creator {
    member: MemberId,
    is_here: bool,
    /// Whether the organization revokes the keys of former members.
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
