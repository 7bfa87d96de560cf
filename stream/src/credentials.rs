//! Broker identity of this process: a credentials file, whose name and tags give the subjects for reaching the log.
//!
//! `orgstream nats init` gives each of its users an inbox of its own, `_INBOX_<user>`, and tags with these prefixes:
//! `inbox:` is the prefix of its replies, `api:` the subject under which it finds JetStream. Credentials without tags
//! come from another setup, where both have NATS' defaults.

use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::{StreamError, access::JETSTREAM};

const INBOX: &str = "_INBOX";

/// A user of the broker.
#[derive(Clone)]
pub struct Credentials {
    text: String,
    api: String,
    inbox: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.inbox)
    }
}

#[derive(Deserialize)]
struct Claims {
    nats: UserClaims,
}

#[derive(Deserialize)]
struct UserClaims {
    #[serde(default)]
    tags: Vec<String>,
}

impl Credentials {
    /// Reads a credentials file.
    pub async fn read(path: &Path) -> Result<Self, StreamError> {
        let text = tokio::fs::read_to_string(path).await.map_err(|source| StreamError::Credentials {
            problem: format!("{} cannot be read", path.display()),
            source,
        })?;
        Self::parse(text).ok_or_else(|| {
            StreamError::Invalid(format!(
                "{} is no NATS credentials file: it must have a user JWT and the seed of an nkey, as `orgstream nats init` \
                 writes them",
                path.display()
            ))
        })
    }

    /// Parses the text of a credentials file; none when it is not of that form.
    pub fn parse(text: String) -> Option<Self> {
        let jwt = text.lines().map(str::trim).find(|line| line.starts_with("eyJ"))?;
        let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
        let tags = serde_json::from_slice::<Claims>(&claims).ok()?.nats.tags;
        let tag = |name: &str| tags.iter().find_map(|tag| tag.strip_prefix(name)).map(str::to_owned);
        let api = tag("api:").unwrap_or_else(|| JETSTREAM.to_owned());
        let inbox = tag("inbox:").unwrap_or_else(|| INBOX.to_owned());
        Some(Self { text, api, inbox })
    }
}

/// The broker's address and this process's identity there.
#[derive(Clone)]
pub struct Reach {
    /// `nats://host:port`, or several with commas; with `tls://` nothing is sent unencrypted.
    pub url: String,
    /// The certificates of the accepted certificate authorities, in PEM; by default those that this machine trusts. If
    /// given, nothing is sent unencrypted either.
    pub ca: Option<PathBuf>,
}

impl std::fmt::Debug for Reach {
    /// Without the address, which may contain a login.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl Reach {
    /// The addresses.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.url.split(',').map(|server| server.trim().to_owned()).collect()
    }

    /// The options shared by all connections.
    pub fn options(&self, user: Option<&Credentials>) -> Result<ConnectOptions, StreamError> {
        let mut connect = ConnectOptions::new();
        if let Some(ca) = &self.ca {
            connect = connect.add_root_certificates(ca.clone()).require_tls(true);
        }
        let Some(user) = user else { return Ok(connect) };
        let invalid = |source| StreamError::Credentials { problem: "cannot be used".to_owned(), source };
        Ok(connect.credentials(&user.text).map_err(invalid)?.custom_inbox_prefix(&user.inbox))
    }
}

/// The subject prefix for JetStream requests.
pub(crate) fn api(user: Option<&Credentials>) -> &str {
    user.map_or(JETSTREAM, |user| user.api.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(claims: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\neyJ.{}.sig\n------END NATS USER JWT------\n",
            URL_SAFE_NO_PAD.encode(claims)
        )
    }

    #[test]
    fn tags_say_where_replies_and_jetstream_are() {
        let ours = Credentials::parse(file(r#"{"nats":{"tags":["inbox:_INBOX_work","api:LOG.API"]}}"#)).unwrap();
        assert_eq!((ours.inbox.as_str(), api(Some(&ours))), ("_INBOX_work", "LOG.API"));
        let theirs = Credentials::parse(file(r#"{"nats":{"type":"user"}}"#)).unwrap();
        assert_eq!((theirs.inbox.as_str(), api(Some(&theirs))), ("_INBOX", "$JS.API"));
        assert_eq!(api(None), "$JS.API");
        assert!(Credentials::parse("nothing".to_owned()).is_none());
    }
}
