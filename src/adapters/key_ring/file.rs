//! A key ring in a file that its owner alone may read. It is read whenever it is used, so that a key that is added or made the
//! current one counts at once in every process.

use std::{collections::BTreeMap, fmt, io, os::unix::fs::PermissionsExt as _, path::PathBuf};

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use futures_util::future::BoxFuture;
use orgstream_events::{Chain, cause};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::{DataKey, KeyRing, KeyRingError, WrappedKey};

/// The largest file.
const MAX_BYTES: u64 = 1 << 20;
const NONCE_BYTES: usize = 24;
/// The permissions that others than the owner may have on the file: none.
const OTHERS: u32 = 0o077;

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingFile {
    /// The id of the key that wraps; the others only unwrap.
    pub current: String,
    /// The keys by id, each 64 hexadecimal digits.
    keys: BTreeMap<String, KeyText>,
}

/// 64 hexadecimal digits, which do not stay in memory.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct KeyText(String);

impl Drop for KeyText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for RingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingFile").field("current", &self.current).field("keys", &self.keys.keys()).finish()
    }
}

/// Whether a text is an id of a key.
fn is_id(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=64).contains(&text.len()) && text.bytes().all(is_plain)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Reads 64 hexadecimal digits.
fn key_bytes(text: &str) -> Option<DataKey> {
    let mut key = Zeroizing::new([0; 32]);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != key.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(key)
}

impl RingFile {
    /// Makes a ring with one key of these random bytes.
    pub fn new(id: &str, key: &DataKey) -> Result<Self, KeyRingError> {
        let mut ring = Self { current: String::new(), keys: BTreeMap::new() };
        ring.add(id, key)?;
        Ok(ring)
    }

    /// Adds a key, which wraps from now on.
    pub fn add(&mut self, id: &str, key: &DataKey) -> Result<(), KeyRingError> {
        if !is_id(id) {
            let reason = format!("{id:?} is no id of a key: 1 to 64 of A-Z, a-z, 0-9, -, _ and .");
            return Err(KeyRingError::Unusable(cause(reason)));
        }
        if self.keys.contains_key(id) {
            return Err(KeyRingError::Unusable(cause(format!("there is a key {id} already"))));
        }
        let hex = KeyText(key.iter().map(|byte| format!("{byte:02x}")).collect());
        self.keys.insert(id.to_owned(), hex);
        id.clone_into(&mut self.current);
        Ok(())
    }

    /// Returns the ids of all keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Parses the content of a file.
    pub fn parse(text: &[u8]) -> Result<Self, KeyRingError> {
        // Errors of the parser may repeat what they have read.
        let unusable = |reason: String| KeyRingError::Unusable(cause(reason));
        let ring: Self = serde_json::from_slice(text)
            .map_err(|error| unusable(format!("line {} is not as `orgstream secrets init` writes it", error.line())))?;
        if let Some(id) =
            ring.keys.iter().find_map(|(id, key)| (!is_id(id) || key_bytes(&key.0).is_none()).then_some(id))
        {
            return Err(unusable(format!("the key {id:?} must have a plain id and 64 hexadecimal digits")));
        }
        if !ring.keys.contains_key(&ring.current) {
            return Err(unusable(format!("`current` is {:?}, and there is no such key", ring.current)));
        }
        Ok(ring)
    }

    /// Returns the content for a file.
    pub fn to_text(&self) -> Result<Zeroizing<String>, KeyRingError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| KeyRingError::Unusable(cause(error)))?;
        Ok(Zeroizing::new(text + "\n"))
    }

    fn cipher(&self, id: &str) -> Result<XChaCha20Poly1305, KeyRingError> {
        let unknown = || KeyRingError::UnknownKey(id.to_owned());
        let key = self.keys.get(id).and_then(|key| key_bytes(&key.0)).ok_or_else(unknown)?;
        Ok(XChaCha20Poly1305::new((&*key).into()))
    }
}

/// The key ring of a file.
#[derive(Debug, Clone)]
pub struct FileRing {
    path: PathBuf,
}

impl FileRing {
    /// Uses the file, if it is a key ring that nobody else reads.
    pub async fn open(path: PathBuf) -> Result<Self, KeyRingError> {
        let ring = Self { path };
        ring.read().await?;
        Ok(ring)
    }

    /// Reads the file.
    pub async fn read(&self) -> Result<RingFile, KeyRingError> {
        let shown = self.path.display();
        let unreadable =
            |error: io::Error| KeyRingError::Unavailable(cause(format!("{shown} cannot be read: {}", Chain(&error))));
        let unusable = |reason: String| KeyRingError::Unusable(cause(format!("{shown}: {reason}")));
        let about = tokio::fs::metadata(&self.path).await.map_err(unreadable)?;
        if about.permissions().mode() & OTHERS != 0 {
            return Err(unusable("others than its owner may read it: `chmod 600` it".to_owned()));
        }
        if about.len() > MAX_BYTES {
            return Err(unusable(format!("is longer than {MAX_BYTES} bytes")));
        }
        let text = Zeroizing::new(tokio::fs::read(&self.path).await.map_err(unreadable)?);
        RingFile::parse(&text).map_err(|error| match error {
            KeyRingError::Unusable(reason) => unusable(Chain(&*reason).to_string()),
            other => other,
        })
    }
}

impl KeyRing for FileRing {
    fn wrap<'a>(&'a self, key: &'a DataKey, bound_to: &'a [u8]) -> BoxFuture<'a, Result<WrappedKey, KeyRingError>> {
        Box::pin(async move {
            let ring = self.read().await?;
            let nonce: [u8; NONCE_BYTES] = rand::random();
            let payload = Payload { msg: &**key, aad: bound_to };
            let sealed = ring.cipher(&ring.current)?.encrypt(&XNonce::from(nonce), payload);
            let sealed = sealed.map_err(|error| KeyRingError::Unusable(cause(error)))?;
            Ok(WrappedKey { key: ring.current, bytes: [&nonce[..], &sealed].concat() })
        })
    }

    fn unwrap<'a>(
        &'a self,
        WrappedKey { key, bytes }: &'a WrappedKey,
        bound_to: &'a [u8],
    ) -> BoxFuture<'a, Result<DataKey, KeyRingError>> {
        Box::pin(async move {
            let wrong = || KeyRingError::WrongKey(key.clone());
            let cipher = self.read().await?.cipher(key)?;
            let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or_else(wrong)?;
            let payload = Payload { msg: sealed, aad: bound_to };
            let opened = cipher.decrypt(&XNonce::from(*nonce), payload).map(Zeroizing::new).map_err(|_| wrong())?;
            Ok(Zeroizing::new(<[u8; 32]>::try_from(opened.as_slice()).map_err(|_| wrong())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn folder() -> Folder {
        let path = std::env::temp_dir().join(format!("orgstream-ring-{:032x}", rand::random::<u128>()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn write(folder: &Folder, ring: &RingFile) -> PathBuf {
        let path = folder.0.join("ring.json");
        fs::write(&path, ring.to_text().unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn key(byte: u8) -> DataKey {
        Zeroizing::new([byte; 32])
    }

    #[tokio::test]
    async fn a_key_comes_back_where_it_is_bound_to_and_nowhere_else() {
        let folder = folder();
        let ring = FileRing::open(write(&folder, &RingFile::new("first", &key(1)).unwrap())).await.unwrap();
        let wrapped = ring.wrap(&key(9), b"here").await.unwrap();
        assert_eq!(wrapped.key, "first");
        assert!(!wrapped.bytes.windows(32).any(|part| part == [9; 32]));
        assert_eq!(ring.unwrap(&wrapped, b"here").await.unwrap(), key(9));
        assert!(ring.unwrap(&wrapped, b"there").await.unwrap_err().is_another_ring());
        let short = WrappedKey { bytes: vec![1; 8], ..wrapped };
        assert!(ring.unwrap(&short, b"here").await.unwrap_err().is_another_ring());
    }

    #[tokio::test]
    async fn a_new_key_counts_at_once_and_an_old_one_still_unwraps() {
        let folder = folder();
        let mut file = RingFile::new("first", &key(1)).unwrap();
        let ring = FileRing::open(write(&folder, &file)).await.unwrap();
        let old = ring.wrap(&key(9), b"here").await.unwrap();
        file.add("second", &key(2)).unwrap();
        write(&folder, &file);
        assert_eq!(ring.wrap(&key(9), b"here").await.unwrap().key, "second");
        assert_eq!(ring.unwrap(&old, b"here").await.unwrap(), key(9));
        // Another ring, with a key of the same name or without one.
        for (id, is) in [("first", "is not the one"), ("third", "has no key")] {
            write(&folder, &RingFile::new(id, &key(3)).unwrap());
            let error = ring.unwrap(&old, b"here").await.unwrap_err();
            assert!(error.is_another_ring() && error.to_string().contains(is), "{error}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_ring_is_refused_without_repeating_it() {
        let folder = folder();
        let path = write(&folder, &RingFile::new("first", &key(1)).unwrap());
        let good = fs::read_to_string(&path).unwrap();
        let refused = async |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Chain(&FileRing::open(path.clone()).await.unwrap_err()).to_string()
        };
        assert!(refused(&good, 0o640).await.contains("chmod 600"));
        for bad in
            ["", "{}", "[\"01010101\"]", &good.replace("\"first\",", "\"other\","), &good.replace("0101", "01zz")]
        {
            let said = refused(bad, 0o600).await;
            assert!(said.contains("ring.json") && !said.contains("0101"), "{said}");
        }
        assert!(RingFile::new("a b", &key(1)).is_err());
        assert!(RingFile::new("a", &key(1)).unwrap().add("a", &key(2)).is_err());
        fs::remove_file(&path).unwrap();
        assert!(matches!(FileRing::open(path).await.unwrap_err(), KeyRingError::Unavailable(_)));
    }
}
