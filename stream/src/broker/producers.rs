//! The users of producers: made for an API key, and recognized by what nats-server says of whoever asks.

use std::{fmt, fs, net::IpAddr, path::Path};

use nkeys::KeyPair;
use orgstream_events::{CURRENT_ORG, KeyPublicId, OrgId, Slug, Timestamp};
use serde::Deserialize;

use super::{
    BrokerError,
    accounts::{scoped_user, seconds},
    token::{self, unix_seconds},
};

/// The header in which nats-server says who sent a request through an import that shares it. It takes out what a client
/// wrote under exactly this name, and leaves other spellings: nothing but this one may be read.
pub const REQUEST_INFO: &str = "Nats-Request-Info";
/// How long credentials are good that only ask what producers can do.
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

/// Whoever sent a request, as nats-server knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsUser {
    /// The API key that their credentials were made for.
    pub key: KeyPublicId,
    /// The one organization that they may send commands to.
    pub org: OrgId,
    /// Where they connect from.
    pub ip: Option<IpAddr>,
}

/// What of the server's words is looked at.
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

    /// A credentials file for whoever has the API key: they may send commands to its organization, named by id, by this slug
    /// or as `current`, and read the answers.
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

    /// Credentials of nobody, to see what producers can do.
    pub fn probe(&self) -> Result<String, BrokerError> {
        let (time, tags) = (unix_seconds(), ["org:preflight".to_owned(), "inbox:_INBOX_preflight".to_owned()]);
        scoped_user(&self.signing, &self.account, "preflight", &tags, time, Some(time + PROBE_SECONDS))
    }

    /// Whom nats-server names in [`REQUEST_INFO`]; none when it is nobody whose credentials were made here.
    pub fn recognize(&self, info: &str) -> Option<NatsUser> {
        let RequestInfo { acc, user, jwt, host } = serde_json::from_str(info).ok()?;
        let shown = token::verify(&jwt, &self.signing)?;
        // The server ends connections whose credentials have expired; one that is a moment late is not waited for.
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

    /// What a server would say of whoever has these credentials.
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
