//! Secrets in the vault: sealed, opened, wrapped by another key, and destroyed.
//!
//! A value is encrypted with a data key of its own (XChaCha20-Poly1305), and that key is wrapped by the key ring. Both are bound
//! to organization, secret and version, so that neither is of use in another place. Nothing here prints a value.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use metrics::counter;
use orgstream_domain::{Aggregate as _, record::Record};
use orgstream_events::{
    AggregateId, Cause, Chain, OrgId, PLATFORM_ORG, SealedSecret, SecretId, SecretPlace, VaultEntry, VaultSubject,
    cause,
};
use orgstream_stream::{Freshness, Log, StoredSecret, StreamError};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::adapters::key_ring::{DataKey, KeyRing, KeyRingError, WrappedKey};

const NONCE_BYTES: usize = 24;
/// Tries of a write that others overtake.
const TRIES: u32 = 5;
/// The value that shows whether a key ring is the installation's own.
const RING_CHECK: &str = "orgstream key ring";
/// Where it is.
const CHECKED: VaultSubject = VaultSubject { org: PLATFORM_ORG, secret: SecretId::OF_THE_KEY_RING };
/// The age from which on a value that no record has is one of a command that failed: no command takes so long.
pub const ABANDONED_AFTER: Duration = Duration::from_hours(1);

/// The reason why a secret is not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// This process has no key ring.
    #[error("this process has no key ring: set --key-ring (ORGSTREAM_KEY_RING) or --vault-url (ORGSTREAM_VAULT_URL)")]
    NoKeyRing,
    /// The key ring is not the one that the installation's secrets were sealed with.
    #[error("the key ring is not the one that the secrets of this installation were sealed with")]
    AnotherRing(#[source] Cause),
    /// The key ring does nothing at the moment.
    #[error("the key ring is of no use at the moment")]
    KeyRing(#[source] KeyRingError),
    /// The stream of secrets cannot be read or written.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The vault has no such secret, or a damaged one.
    #[error("the vault has no value for the secret {0} that is of this place")]
    Lost(SecretId),
    /// The value was destroyed.
    #[error("the value of the secret {0} was destroyed")]
    Destroyed(SecretId),
    /// Others wrote it at the same time, again and again.
    #[error("others are writing the secret {0}")]
    Contention(SecretId),
}

impl From<KeyRingError> for VaultError {
    fn from(error: KeyRingError) -> Self {
        if error.is_another_ring() { Self::AnotherRing(cause(error)) } else { Self::KeyRing(error) }
    }
}

/// The secrets of an installation.
pub struct Vault {
    log: Log,
    ring: Option<Arc<dyn KeyRing>>,
    /// Whether the key ring was found to be the installation's own.
    checked: OnceCell<()>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("ring", &self.ring).finish_non_exhaustive()
    }
}

/// What the vault has, for its operator.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct VaultStatus {
    /// The values by the id of the key that wraps them.
    pub by_key: BTreeMap<String, u64>,
    /// The destroyed ones.
    pub destroyed: u64,
    /// Those that cannot be read.
    pub unreadable: u64,
}

/// What a rotation has done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rewrapped {
    /// The values that the current key wraps now.
    pub rewrapped: u64,
    /// Those that it wrapped before.
    pub unchanged: u64,
    /// Those that no record has, and were destroyed.
    pub abandoned: u64,
    /// Those that still are as they were, as they could not be read or unwrapped.
    pub failed: u64,
}

/// Returns what a value, or its data key, is bound to.
fn bound_to(what: &str, subject: &VaultSubject, version: u64) -> Vec<u8> {
    let VaultSubject { org, secret } = subject;
    let (org, secret) = (org.uuid(), secret.uuid());
    [what.as_bytes(), &[0], org.as_bytes(), secret.as_bytes(), &version.to_be_bytes()].concat()
}

fn value_of(subject: &VaultSubject, version: u64) -> Vec<u8> {
    bound_to("orgstream secret 1", subject, version)
}

fn data_key_of(subject: &VaultSubject, version: u64) -> Vec<u8> {
    bound_to("orgstream data key 1", subject, version)
}

fn count(action: &'static str) {
    counter!("orgstream_secrets_total", "action" => action).increment(1);
}

impl Vault {
    /// Keeps secrets beside `log`. Without a key ring it neither seals nor opens any.
    pub fn new(log: Log, ring: Option<Arc<dyn KeyRing>>) -> Self {
        Self { log, ring, checked: OnceCell::new() }
    }

    /// Returns the key ring, once it was found to be the installation's own. A new installation is given something to know it by.
    async fn ring(&self) -> Result<&dyn KeyRing, VaultError> {
        let ring = self.ring.as_deref().ok_or(VaultError::NoKeyRing)?;
        self.checked.get_or_try_init(|| self.check_against(ring)).await?;
        Ok(ring)
    }

    /// Fails if there is a key ring and it is not the installation's own, or cannot be asked. Returns whether there is one, if
    /// the installation has secrets.
    pub async fn check(&self) -> Result<Option<bool>, VaultError> {
        if self.ring.is_some() {
            return self.ring().await.map(|_| Some(true));
        }
        Ok(self.log.secret(&CHECKED).await?.map(|_| false))
    }

    async fn check_against(&self, ring: &dyn KeyRing) -> Result<(), VaultError> {
        for _ in 0..TRIES {
            if let Some(stored) = self.log.secret(&CHECKED).await? {
                let found = open(ring, &CHECKED, &stored.entry).await?;
                return if *found == RING_CHECK { Ok(()) } else { Err(VaultError::Lost(CHECKED.secret)) };
            }
            let entry = seal(ring, &CHECKED, 1, RING_CHECK, None).await?;
            self.log.keep_secret(&CHECKED, 0, &entry).await?;
        }
        Err(VaultError::Contention(CHECKED.secret))
    }

    /// Keeps a value. A value that is there under this id and version is the same one, since both follow from it.
    pub async fn keep(
        &self,
        subject: &VaultSubject,
        version: u64,
        text: &str,
        of: SecretPlace,
    ) -> Result<(), VaultError> {
        let ring = self.ring().await?;
        let mut entry = None;
        for _ in 0..TRIES {
            let there = self.log.secret(subject).await?;
            if there.as_ref().is_some_and(|there| there.entry.sealed.is_some() && there.entry.version == version) {
                return Ok(());
            }
            let previous = there.map_or(0, |there| there.seq);
            let entry = match &mut entry {
                Some(entry) => entry,
                None => entry.insert(seal(ring, subject, version, text, Some(of.clone())).await?),
            };
            if self.log.keep_secret(subject, previous, entry).await?.is_some() {
                count("sealed");
                return Ok(());
            }
        }
        Err(VaultError::Contention(subject.secret))
    }

    /// Returns the value of a secret.
    pub(super) async fn open(&self, subject: &VaultSubject, version: u64) -> Result<Zeroizing<String>, VaultError> {
        let ring = self.ring().await?;
        let stored = self.log.secret(subject).await?.filter(|stored| stored.entry.version == version);
        let stored = stored.ok_or(VaultError::Lost(subject.secret))?;
        let value = open(ring, subject, &stored.entry).await?;
        count("opened");
        Ok(value)
    }

    /// Leaves a tombstone in place of a value: its data key is gone, and with it what was encrypted.
    pub(super) async fn destroy(&self, subject: &VaultSubject) -> Result<(), VaultError> {
        for _ in 0..TRIES {
            let Some(StoredSecret { seq, entry, .. }) = self.log.secret(subject).await? else { return Ok(()) };
            if entry.sealed.is_none() {
                return Ok(());
            }
            if self.log.keep_secret(subject, seq, &entry.destroyed()).await?.is_some() {
                count("destroyed");
                return Ok(());
            }
        }
        Err(VaultError::Contention(subject.secret))
    }

    /// Leaves tombstones in place of all values of an organization; returns how many it has.
    pub(super) async fn destroy_all(&self, org: OrgId) -> Result<u64, VaultError> {
        let (mut next, mut count) = (1, 0);
        while let Some((seq, stored)) = self.log.next_secret_of(org, next).await? {
            next = seq + 1;
            // One that cannot be read has no key that could be destroyed here: an operator has to see to it.
            let StoredSecret { subject, entry, seq, .. } = stored?;
            if entry.sealed.is_some() {
                // The tombstone comes behind all others, and is found once more.
                if self.log.keep_secret(&subject, seq, &entry.destroyed()).await?.is_some() {
                    crate::commands::vault::count("destroyed");
                }
            } else {
                count += 1;
            }
        }
        Ok(count)
    }

    /// Returns what there is, of one organization or of all.
    pub async fn status(&self, org: Option<OrgId>) -> Result<VaultStatus, VaultError> {
        let mut status = VaultStatus::default();
        let mut next = 1;
        while let Some((seq, stored)) = self.log.next_secret(next).await? {
            next = seq + 1;
            match stored {
                Ok(stored) if org.is_some_and(|org| org != stored.subject.org) || stored.entry.of.is_none() => {}
                Ok(StoredSecret { entry: VaultEntry { sealed: Some(sealed), .. }, .. }) => {
                    *status.by_key.entry(sealed.key).or_default() += 1;
                }
                Ok(_) => status.destroyed += 1,
                Err(_) => status.unreadable += 1,
            }
        }
        Ok(status)
    }

    /// Wraps the data keys of one organization's secrets, or of all, with the current key, while everything goes on; and destroys
    /// the values that no record has and that are older than `abandoned_after`. What shows the right key ring comes last, so that a ring without the old keys is refused
    /// as long as they are needed.
    pub async fn rewrap(&self, org: Option<OrgId>, abandoned_after: Duration) -> Result<Rewrapped, VaultError> {
        let ring = self.ring().await?;
        let mut done = Rewrapped::default();
        let mut next = 1;
        // What is written meanwhile is wrapped by the current key, and comes after this.
        let now = OffsetDateTime::now_utc();
        while let Some((seq, stored)) = self.log.next_secret(next).await? {
            next = seq + 1;
            let stored = match stored {
                Ok(stored) if stored.stored_at >= now => break,
                Ok(stored) if org.is_some_and(|org| org != stored.subject.org) || stored.subject == CHECKED => continue,
                Ok(stored) => stored,
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "a secret cannot be read");
                    done.failed += 1;
                    continue;
                }
            };
            if stored.entry.sealed.is_none() {
                continue;
            }
            if now - stored.stored_at >= abandoned_after && self.is_abandoned(&stored).await? {
                self.destroy(&stored.subject).await?;
                done.abandoned += 1;
                continue;
            }
            match self.rewrap_one(ring, stored).await {
                Ok(true) => done.rewrapped += 1,
                Ok(false) => done.unchanged += 1,
                Err((
                    subject,
                    error @ (VaultError::AnotherRing(_) | VaultError::Lost(_) | VaultError::Contention(_)),
                )) => {
                    tracing::error!(secret.id = %subject.secret, org.id = %subject.org, error = %Chain(&error), "a secret cannot be wrapped anew");
                    done.failed += 1;
                }
                Err((_, error)) => return Err(error),
            }
        }
        if org.is_none()
            && done.failed == 0
            && let Some(stored) = self.log.secret(&CHECKED).await?
        {
            self.rewrap_one(ring, stored).await.map_err(|(_, error)| error)?;
        }
        Ok(done)
    }

    /// Whether it was wrapped by another key than the current one, and is not any more.
    async fn rewrap_one(&self, ring: &dyn KeyRing, stored: StoredSecret) -> Result<bool, (VaultSubject, VaultError)> {
        let StoredSecret { subject, mut seq, mut entry, .. } = stored;
        let failed = |error: VaultError| (subject, error);
        for _ in 0..TRIES {
            let VaultEntry { sealed: Some(sealed), version, .. } = &mut entry else { return Ok(false) };
            let bound = data_key_of(&subject, *version);
            let before = WrappedKey { key: sealed.key.clone(), bytes: sealed.wrapped.to_vec() };
            let key = ring.unwrap(&before, &bound).await.map_err(|error| failed(error.into()))?;
            let after = ring.wrap(&key, &bound).await.map_err(|error| failed(error.into()))?;
            if after.key == before.key {
                return Ok(false);
            }
            (sealed.key, sealed.wrapped) = (after.key, after.bytes.into());
            if self.log.keep_secret(&subject, seq, &entry).await.map_err(|error| failed(error.into()))?.is_some() {
                count("rewrapped");
                return Ok(true);
            }
            let Some(again) = self.log.secret(&subject).await.map_err(|error| failed(error.into()))? else {
                return Ok(false);
            };
            (seq, entry) = (again.seq, again.entry);
        }
        Err(failed(VaultError::Contention(subject.secret)))
    }

    /// Whether a value is of no record: of a command that failed, or replaced while the vault did not answer.
    async fn is_abandoned(&self, stored: &StoredSecret) -> Result<bool, VaultError> {
        let Some(SecretPlace { record, .. }) = &stored.entry.of else { return Ok(false) };
        let Some(placement) = self.log.placement(stored.subject.org).await? else { return Ok(false) };
        let (aggregate, mut state, mut after) = (AggregateId::Record(*record), Record::default(), 0);
        loop {
            let history = self.log.load(&placement, &aggregate, after, Freshness::Leader).await?;
            let events = history.commits.iter().flat_map(|stored| &stored.commit.events);
            for event in events.filter_map(|opened| Record::event_of(&opened.event)) {
                state.apply(event);
            }
            if history.ended {
                return Ok(!state.secrets().any(|secret| secret.id == stored.subject.secret));
            }
            after = history.last;
        }
    }
}

async fn seal(
    ring: &dyn KeyRing,
    subject: &VaultSubject,
    version: u64,
    text: &str,
    of: Option<SecretPlace>,
) -> Result<VaultEntry, VaultError> {
    let key: DataKey = Zeroizing::new(rand::random());
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let aad = value_of(subject, version);
    let payload = Payload { msg: text.as_bytes(), aad: &aad };
    let ciphertext = XChaCha20Poly1305::new((&*key).into()).encrypt(&XNonce::from(nonce), payload);
    // It fails for values of more than 256 GiB.
    let ciphertext = ciphertext.map_err(|_| VaultError::Lost(subject.secret))?;
    let WrappedKey { key, bytes } = ring.wrap(&key, &data_key_of(subject, version)).await?;
    let nonce = Bytes::copy_from_slice(&nonce);
    let sealed = SealedSecret { key, wrapped: bytes.into(), nonce, ciphertext: ciphertext.into() };
    Ok(VaultEntry::sealed(of, version, sealed))
}

async fn open(ring: &dyn KeyRing, subject: &VaultSubject, entry: &VaultEntry) -> Result<Zeroizing<String>, VaultError> {
    let sealed = entry.sealed.as_ref().ok_or(VaultError::Destroyed(subject.secret))?;
    let wrapped = WrappedKey { key: sealed.key.clone(), bytes: sealed.wrapped.to_vec() };
    let key = ring.unwrap(&wrapped, &data_key_of(subject, entry.version)).await?;
    let lost = || VaultError::Lost(subject.secret);
    let nonce = <[u8; NONCE_BYTES]>::try_from(&*sealed.nonce).map_err(|_| lost())?;
    let aad = value_of(subject, entry.version);
    let payload = Payload { msg: &sealed.ciphertext, aad: &aad };
    let text = XChaCha20Poly1305::new((&*key).into()).decrypt(&XNonce::from(nonce), payload).map_err(|_| lost())?;
    String::from_utf8(text).map(Zeroizing::new).map_err(|_| lost())
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use orgstream_events::{CommandId, Fingerprint};

    use super::*;

    /// Wraps by writing down what it is bound to.
    #[derive(Debug)]
    struct Plain;

    impl KeyRing for Plain {
        fn wrap<'a>(&'a self, key: &'a DataKey, bound_to: &'a [u8]) -> BoxFuture<'a, Result<WrappedKey, KeyRingError>> {
            let bytes = [&key[..], bound_to].concat();
            Box::pin(async move { Ok(WrappedKey { key: "plain".to_owned(), bytes }) })
        }

        fn unwrap<'a>(
            &'a self,
            wrapped: &'a WrappedKey,
            bound_to: &'a [u8],
        ) -> BoxFuture<'a, Result<DataKey, KeyRingError>> {
            Box::pin(async move {
                let (key, bound) = wrapped.bytes.split_first_chunk::<32>().unwrap();
                if bound == bound_to {
                    Ok(Zeroizing::new(*key))
                } else {
                    Err(KeyRingError::WrongKey("plain".to_owned()))
                }
            })
        }
    }

    fn subject(org: u8, secret: u8) -> VaultSubject {
        let secret = SecretId::derive(CommandId::fresh(1, [1; 10]), "key", &Fingerprint([secret; 32]));
        VaultSubject { org: OrgId::fresh(1, [org; 10]), secret }
    }

    #[tokio::test]
    async fn a_value_opens_in_its_organization_under_its_id_and_version_only() {
        let here = subject(1, 1);
        let entry = seal(&Plain, &here, 3, "the value", None).await.unwrap();
        assert_eq!(*open(&Plain, &here, &entry).await.unwrap(), "the value");
        let bytes = rmp_serde::to_vec_named(&entry).unwrap();
        assert!(!bytes.windows(9).any(|part| part == b"the value"));
        for elsewhere in [subject(2, 1), subject(1, 2)] {
            assert!(open(&Plain, &elsewhere, &entry).await.is_err());
        }
        let mut later = entry.clone();
        later.version = 4;
        assert!(open(&Plain, &here, &later).await.is_err());
        assert!(matches!(open(&Plain, &here, &entry.destroyed()).await, Err(VaultError::Destroyed(_))));
        // Even by a key that unwraps for every place.
        let mut moved = entry.clone();
        let sealed = moved.sealed.as_mut().unwrap();
        sealed.wrapped = [&sealed.wrapped[..32], &data_key_of(&subject(2, 1), 3)].concat().into();
        assert!(matches!(open(&Plain, &subject(2, 1), &moved).await, Err(VaultError::Lost(_))));
    }

    #[tokio::test]
    async fn two_values_that_are_equal_look_different() {
        let one = seal(&Plain, &subject(1, 1), 1, "the value", None).await.unwrap().sealed.unwrap();
        let two = seal(&Plain, &subject(1, 1), 1, "the value", None).await.unwrap().sealed.unwrap();
        assert_ne!(one.ciphertext, two.ciphertext);
        assert_ne!((one.nonce, one.wrapped), (two.nonce, two.wrapped));
    }
}
