//! Key rings: the keys that wrap the data keys of secrets. A port of two methods, for a file and for a key service.

mod file;
mod transit;

use std::fmt;

use futures_util::future::BoxFuture;
use orgstream_events::Cause;
use zeroize::Zeroizing;

pub use file::{FileRing, RingFile};
pub use transit::Transit;

/// The key of one secret. It is never stored as it is.
pub type DataKey = Zeroizing<[u8; 32]>;

/// A data key as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// The id of the key that wrapped it.
    pub key: String,
    /// What only that key unwraps.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The reason why a key ring does nothing.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// It does not answer, or cannot be read at the moment.
    #[error("the key ring does not answer")]
    Unavailable(#[source] Cause),
    /// It has no key of this id.
    #[error("the key ring has no key {0:?}")]
    UnknownKey(String),
    /// The key of this id is another one, or the data key is of another secret.
    #[error("the key {0:?} of the key ring is not the one that wrapped this")]
    WrongKey(String),
    /// It is not as it must be.
    #[error("the key ring cannot be used")]
    Unusable(#[source] Cause),
}

impl KeyRingError {
    /// Whether it is another key ring than the one that wrapped something.
    pub fn is_another_ring(&self) -> bool {
        matches!(self, Self::UnknownKey(_) | Self::WrongKey(_))
    }
}

/// The keys that wrap data keys.
pub trait KeyRing: fmt::Debug + Send + Sync + 'static {
    /// Wraps a data key with the current key, so that it is only unwrapped for `bound_to`.
    fn wrap<'a>(&'a self, key: &'a DataKey, bound_to: &'a [u8]) -> BoxFuture<'a, Result<WrappedKey, KeyRingError>>;

    /// Unwraps a data key with the key that wrapped it.
    fn unwrap<'a>(&'a self, key: &'a WrappedKey, bound_to: &'a [u8]) -> BoxFuture<'a, Result<DataKey, KeyRingError>>;
}
