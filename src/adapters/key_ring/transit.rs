//! The transit engine of HashiCorp Vault, and of OpenBao: a key service that wraps without giving its keys away.
//!
//! Data keys go there as plaintexts of `encrypt` and come back from `decrypt`; rotation is Vault's own. The token is read from
//! its file for each request, as Vault's agent renews it there.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use orgstream_events::cause;
use reqwest::{StatusCode, Url, redirect::Policy};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{DataKey, KeyRing, KeyRingError, WrappedKey};

/// The timeout of an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer: a wrapped key with what is around it.
const MAX_ANSWER: usize = 64 << 10;
/// The largest token.
const MAX_TOKEN: usize = 8 << 10;

/// The transit engine at one address.
#[derive(Debug)]
pub struct Transit {
    http: reqwest::Client,
    /// The address of the engine, with a slash at its end.
    engine: Url,
    key: String,
    token: PathBuf,
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
}

#[derive(Serialize)]
struct Decrypt<'a> {
    ciphertext: &'a str,
    associated_data: &'a str,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: String,
}

/// What Vault says instead of an answer.
#[derive(Debug, thiserror::Error)]
#[error("Vault answers {0}")]
struct Refused(StatusCode);

impl Transit {
    /// Creates the adapter for the engine at `mount` of the server at `url`, and the key of this name there. `token` is the
    /// file with the token.
    pub fn new(url: &str, mount: &str, key: &str, token: PathBuf) -> anyhow::Result<Self> {
        let is_plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        anyhow::ensure!(is_plain(key), "the name of the key has other characters than A-Z, a-z, 0-9, -, _ and .");
        anyhow::ensure!(mount.split('/').all(is_plain), "the mount has an empty part, or others than plain characters");
        let engine = Url::parse(&format!("{}/v1/{mount}/", url.trim_end_matches('/')))?;
        // Neither a redirect nor a proxy is given the token.
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(Policy::none()).no_proxy().build()?;
        Ok(Self { http, engine, key: key.to_owned(), token })
    }

    async fn ask<T: DeserializeOwned>(&self, action: &str, body: &impl Serialize) -> Result<T, KeyRingError> {
        let unavailable = |reason: orgstream_events::Cause| KeyRingError::Unavailable(reason);
        let token =
            tokio::fs::read(&self.token).await.map(Zeroizing::new).map_err(|error| unavailable(cause(error)))?;
        let token = std::str::from_utf8(&token).ok().map(str::trim).filter(|token| token.len() <= MAX_TOKEN);
        let token = token.ok_or_else(|| KeyRingError::Unusable(cause("the file of the token has no token")))?;
        let url = self
            .engine
            .join(&format!("{action}/{}", self.key))
            .map_err(|error| KeyRingError::Unusable(cause(error)))?;
        let asked = self.http.post(url).header("X-Vault-Token", token).header("X-Vault-Request", "true").json(body);
        let mut answer = asked.send().await.map_err(|error| unavailable(cause(error.without_url())))?;
        if !answer.status().is_success() {
            let refused = cause(Refused(answer.status()));
            // 400: this is nothing that the key has encrypted, or not for this place.
            return Err(match answer.status() {
                StatusCode::BAD_REQUEST if action == "decrypt" => KeyRingError::WrongKey(self.key.clone()),
                StatusCode::NOT_FOUND => KeyRingError::UnknownKey(self.key.clone()),
                _ => unavailable(refused),
            });
        }
        let mut content = Zeroizing::new(Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(|error| unavailable(cause(error.without_url())))? {
            if content.len() + chunk.len() > MAX_ANSWER {
                return Err(unavailable(cause("the answer of Vault is too long")));
            }
            content.extend_from_slice(&chunk);
        }
        // Errors of the parser may repeat what they have read.
        serde_json::from_slice::<Answer<T>>(&content)
            .map(|answer| answer.data)
            .map_err(|_| unavailable(cause("the answer of Vault is not as it must be")))
    }
}

impl KeyRing for Transit {
    fn wrap<'a>(&'a self, key: &'a DataKey, bound_to: &'a [u8]) -> BoxFuture<'a, Result<WrappedKey, KeyRingError>> {
        Box::pin(async move {
            let (plaintext, associated_data) = (Zeroizing::new(STANDARD.encode(**key)), STANDARD.encode(bound_to));
            let body = Encrypt { plaintext: &plaintext, associated_data: &associated_data };
            let Encrypted { ciphertext } = self.ask("encrypt", &body).await?;
            // `vault:v3:…` names the version of the key.
            let version = ciphertext.strip_prefix("vault:").and_then(|rest| rest.split_once(':'));
            let malformed = || KeyRingError::Unavailable(cause("the answer of Vault is not as it must be"));
            let (version, _) = version.ok_or_else(malformed)?;
            Ok(WrappedKey { key: format!("{}:{version}", self.key), bytes: ciphertext.into_bytes() })
        })
    }

    fn unwrap<'a>(
        &'a self,
        WrappedKey { key, bytes }: &'a WrappedKey,
        bound_to: &'a [u8],
    ) -> BoxFuture<'a, Result<DataKey, KeyRingError>> {
        Box::pin(async move {
            let wrong = || KeyRingError::WrongKey(key.clone());
            if key.split_once(':').is_none_or(|(name, _)| name != self.key) {
                return Err(KeyRingError::UnknownKey(key.clone()));
            }
            let ciphertext = std::str::from_utf8(bytes).map_err(|_| wrong())?;
            let associated_data = STANDARD.encode(bound_to);
            let body = Decrypt { ciphertext, associated_data: &associated_data };
            let Decrypted { plaintext } = self.ask("decrypt", &body).await?;
            let plaintext = Zeroizing::new(plaintext);
            let opened = STANDARD.decode(&*plaintext).map(Zeroizing::new).map_err(|_| wrong())?;
            Ok(Zeroizing::new(<[u8; 32]>::try_from(opened.as_slice()).map_err(|_| wrong())?))
        })
    }
}
