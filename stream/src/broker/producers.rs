//! The users of producers: made for an API key, and recognized by the requester's identity that nats-server reports.

use std::{fmt, fs, net::IpAddr, path::Path};

use nkeys::KeyPair;
use orgstream_events::{CURRENT_ORG, KeyPublicId, OrgId, Slug, Timestamp};
use serde::Deserialize;

use super::{
    BrokerError,
    accounts::{scoped_user, seconds},
    token::{self, unix_seconds},
};

/// The header in which nats-server reports the sender of a request through an import that shares it. The server removes
/// what a client wrote under exactly this name, but not under other spellings: only this exact name may be read.
pub const REQUEST_INFO: &str = "Nats-Request-Info";
/// Lifetime in seconds of the credentials of the access check.
const PROBE_SECONDS: u64 = 60;

/// The account of all producers, as `serve` has it.
pub struct Producers {
    account: String,
    signing: KeyPair,
}

impl fmt::Debug for Producers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Producers({})", self.account)
    }
}

#[derive(Deserialize)]
struct File {
    account: String,
    signing_seed: String,
}

/// The sender of a request, as nats-server reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsUser {
    /// The API key that its credentials were made for.
    pub key: KeyPublicId,
    /// The one organization that it may send commands to.
    pub org: OrgId,
    /// The address it connects from.
    pub ip: Option<IpAddr>,
}

/// The fields of the server's report that are used.
#[derive(Deserialize)]
struct RequestInfo {
    acc: String,
    user: String,
    jwt: String,
    #[serde(default)]
    host: String,
}

impl Producers {
    /// Reads the file that `orgstream nats init` wrote for `serve`.
    pub fn load(path: &Path) -> Result<Self, BrokerError> {
        let text = fs::read(path)
            .map_err(|source| BrokerError::Io { what: format!("{} cannot be read", path.display()), source })?;
        let damaged = || BrokerError::Damaged(path.display().to_string());
        let File { account, signing_seed } = serde_json::from_slice(&text).map_err(|_| damaged())?;
        let signing = KeyPair::from_seed(&signing_seed).map_err(|_| damaged())?;
        Ok(Self { account, signing })
    }

    /// Makes a credentials file for the owner of the API key: it allows sending commands to the key's organization,
    /// named by id, by this slug or as `current`, and reading the replies.
    pub fn issue(
        &self,
        key: &KeyPublicId,
        org: OrgId,
        slug: Option<&Slug>,
        expires: Option<Timestamp>,
    ) -> Result<String, BrokerError> {
        let names = [Some(org.to_string()), slug.map(ToString::to_string), Some(CURRENT_ORG.to_owned())];
        let key = key.to_string();
        let tags = names.into_iter().flatten().map(|name| format!("org:{name}"));
        let tags: Vec<String> = tags.chain([format!("inbox:_INBOX_{key}")]).collect();
        scoped_user(&self.signing, &self.account, &key, &tags, unix_seconds(), expires.map(seconds))
    }

    /// Makes credentials of no API key, to check what producers can do.
    pub fn probe(&self) -> Result<String, BrokerError> {
        let (time, tags) = (unix_seconds(), ["org:preflight".to_owned(), "inbox:_INBOX_preflight".to_owned()]);
        scoped_user(&self.signing, &self.account, "preflight", &tags, time, Some(time + PROBE_SECONDS))
    }

    /// Returns the user that nats-server names in [`REQUEST_INFO`]; none unless its credentials were made here.
    pub fn recognize(&self, info: &str) -> Option<NatsUser> {
        let RequestInfo { acc, user, jwt, host } = serde_json::from_str(info).ok()?;
        let shown = token::verify(&jwt, &self.signing)?;
        // The server closes connections whose credentials have expired; requests just after the expiry are not waited
        // for.
        let is_good = acc == self.account && shown.sub == user && (shown.exp == 0 || shown.exp > unix_seconds());
        let key = shown.name.parse().ok().filter(|_| is_good)?;
        let org = shown.nats.tags.iter().find_map(|tag| tag.strip_prefix("org:")?.parse().ok())?;
        Some(NatsUser { key, org, ip: host.parse().ok() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn producers() -> Producers {
        Producers { account: KeyPair::new_account().public_key(), signing: KeyPair::new_account() }
    }

    /// The report that a server would make about a user with these credentials.
    fn said(account: &str, creds: &str) -> String {
        let jwt = creds.lines().find(|line| line.starts_with("eyJ")).unwrap();
        let seed = creds.lines().find(|line| line.starts_with("SU")).unwrap();
        let user = KeyPair::from_seed(seed).unwrap().public_key();
        json!({"acc": account, "user": user, "jwt": jwt, "host": "192.0.2.7", "rtt": 1, "name": "anything"}).to_string()
    }

    #[test]
    fn nobody_is_recognized_but_by_credentials_that_were_made_here_and_are_good_yet() {
        let (ours, theirs) = (producers(), producers());
        let (key, org): (KeyPublicId, OrgId) = ("GBxCK2BwmHM4".parse().unwrap(), OrgId::fresh(1, [1; 10]));
        let creds = ours.issue(&key, org, None, None).unwrap();
        let user = NatsUser { key: key.clone(), org, ip: Some("192.0.2.7".parse().unwrap()) };
        assert_eq!(ours.recognize(&said(&ours.account, &creds)), Some(user));
        assert_eq!(ours.recognize(&said(&theirs.account, &creds)), None, "another account");
        assert_eq!(theirs.recognize(&said(&theirs.account, &creds)), None, "another signature");
        let past = ours.issue(&key, org, None, Some(Timestamp::from_unix_ms(1_000))).unwrap();
        assert_eq!(ours.recognize(&said(&ours.account, &past)), None, "expired");
        let other = ours.issue(&"GBxCK2BwmHM5".parse().unwrap(), org, None, None).unwrap();
        let mixed = said(&ours.account, &creds).replace(
            creds.lines().find(|line| line.starts_with("eyJ")).unwrap(),
            other.lines().find(|line| line.starts_with("eyJ")).unwrap(),
        );
        assert_eq!(ours.recognize(&mixed), None, "somebody else's token");
        for text in ["", "{}", "forged", r#"{"acc":"A","user":"U","jwt":"a.b.c","name_tag":"GBxCK2BwmHM4"}"#] {
            assert_eq!(ours.recognize(text), None, "{text}");
        }
    }
}
