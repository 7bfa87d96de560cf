//! Tokens of one OpenID Connect issuer: discovered when first needed, checked against its published keys.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{Jwk, JwkSet},
};
use orgstream_events::{Cause, UserId, cause};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use tokio::{sync::watch, time::timeout};

use orgstream_domain::public_url::is_public_url;

use crate::adapters::egress as outward;

/// The TTL of published keys.
const KEEP: Duration = Duration::from_secs(600);
/// How long known keys may stay in use while the issuer does not answer.
const KEEP_UNREACHABLE: Duration = Duration::from_secs(3600);
/// The minimum interval between refreshes for an unknown key id.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// The retry interval of an issuer that did not answer: it is not called by every request that waits for it. For one that a
/// customer chose, it doubles each time, up to the maximum.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const TRY_AGAIN_LATEST: Duration = Duration::from_secs(30);
/// The timeout of all queries to an issuer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of requests that wait for one customer's issuer that has never answered. Others fail at once.
const WAITING: usize = 64;
/// The longest answer of an issuer, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// The tolerated clock skew of the issuer, in seconds.
const LEEWAY: u64 = 30;
/// Symmetric algorithms are absent: their key would be a secret that we share with the issuer.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
/// The `amr` values (RFC 8176) of an issuer that requested more than a password.
const SECOND_FACTORS: [&str; 12] =
    ["mfa", "otp", "hwk", "swk", "sc", "sms", "tel", "fpt", "face", "iris", "retina", "vbm"];

/// The reason why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// It is not valid, and will not be.
    #[error("this token is not valid")]
    Invalid(#[source] Cause),
    /// Its issuer is not trusted, or it is no such token at all.
    #[error("this is neither an API key, nor a session, nor a token of an issuer that is trusted here")]
    Untrusted,
    /// The issuer's keys could not be fetched.
    #[error(transparent)]
    Unavailable(Cause),
}

/// The reason why an issuer's keys are not known.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the issuer does not answer: nothing came within {} seconds", TIMEOUT.as_secs())]
    Late,
    #[error("the issuer does not answer")]
    Silent(#[source] reqwest::Error),
    #[error("{url} does not answer with what it must")]
    Unreadable { url: String, source: serde_json::Error },
    #[error("{0}")]
    Refused(String),
}

/// A person whom the issuer authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The login identity.
    pub user: UserId,
    /// The issuer.
    pub issuer: String,
    /// The subject there.
    pub subject: String,
    /// The e-mail address, verified or not: for display to the person, and for nothing else.
    pub email: Option<String>,
    /// The e-mail address, if the issuer verified it.
    pub verified_email: Option<String>,
    /// Whether the issuer requested a second factor.
    pub second_factor: bool,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    email: Option<String>,
    #[serde(default, deserialize_with = "truth")]
    email_verified: bool,
    #[serde(default)]
    amr: Vec<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Claims {
    /// Whether the claim of this name has this value, or has it among its values.
    fn say(&self, name: &str, value: &str) -> bool {
        match self.others.get(name) {
            Some(Value::String(text)) => text == value,
            Some(Value::Array(values)) => values.iter().any(|one| one.as_str() == Some(value)),
            _ => false,
        }
    }
}

/// Some issuers write `"true"`. Everything that is not clearly true is false.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value == Value::Bool(true) || value.as_str() == Some("true"))
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// The published keys of known kinds: one of another kind must not spoil the others.
#[derive(Deserialize)]
struct Published {
    keys: Vec<Value>,
}

impl From<Published> for JwkSet {
    fn from(published: Published) -> Self {
        let keys = published.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        Self { keys: keys.collect() }
    }
}

/// The known keys of the issuer.
#[derive(Default)]
struct Keys {
    set: Option<(JwkSet, Instant)>,
    /// The failure of the last query, if it failed.
    failed: Option<Failure>,
    /// Present during a query, for those that wait for it. It is dropped at the end.
    asking: Option<watch::Sender<()>>,
}

struct Failure {
    reason: Cause,
    at: Instant,
    /// The number of consecutive failures.
    times: u32,
}

impl Keys {
    /// Returns the key, and its age since the issuer published it.
    fn find(&self, kid: &str) -> Option<(Result<DecodingKey, OidcError>, Duration)> {
        let (set, asked) = self.set.as_ref()?;
        let key = DecodingKey::from_jwk(set.find(kid)?).map_err(|error| OidcError::Invalid(cause(error)));
        Some((key, asked.elapsed()))
    }

    /// Like `find`, for callers that have waited as long as permitted.
    fn answer(&self, kid: &str) -> Result<DecodingKey, OidcError> {
        match (self.find(kid), &self.failed) {
            (Some((key, _)), None) => key,
            // An outage of the issuer does not change its keys; but an old answer is not valid for ever either.
            (Some((key, age)), Some(_)) if age < KEEP_UNREACHABLE => key,
            (_, Some(failure)) => Err(OidcError::Unavailable(Cause::clone(&failure.reason))),
            (None, None) => Err(OidcError::Invalid(cause(format!("the issuer has no key {kid:?}")))),
        }
    }

    fn fold(&mut self, answer: Result<JwkSet, FetchError>) {
        match answer {
            Ok(set) => (self.set, self.failed) = (Some((set, Instant::now())), None),
            Err(error) => {
                let times = self.failed.as_ref().map_or(0, |failure| failure.times).saturating_add(1);
                self.failed = Some(Failure { reason: cause(error), at: Instant::now(), times });
            }
        }
    }
}

/// The address of an issuer's keys.
struct Source {
    issuer: String,
    http: reqwest::Client,
    /// Set for a customer's issuer, which must not lead into our own network; then, whether this machine is permitted.
    foreign: Option<bool>,
}

/// A query to an issuer, which ends when this is dropped.
struct Asking(Arc<Mutex<Keys>>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asking = None;
    }
}

/// One trusted issuer. Its waiting callers share one query at a time, which continues when they have all gone.
pub struct Oidc {
    source: Arc<Source>,
    audience: String,
    keys: Arc<Mutex<Keys>>,
    /// [`ASK_AGAIN`], but for tests.
    ask_again: Duration,
}

impl Oidc {
    /// Trusts `issuer` for tokens that name `audience`. Its keys are fetched when the first token comes.
    pub fn new(issuer: String, audience: String) -> Result<Self, OidcError> {
        Self::reached_by(issuer, audience, None)
    }

    /// Like `new`, for an issuer that a customer has chosen: it and its keys are fetched from public addresses only. `local`
    /// permits those of this machine too.
    pub fn of_customer(issuer: String, audience: String, local: bool) -> Result<Self, OidcError> {
        Self::reached_by(issuer, audience, Some(local))
    }

    fn reached_by(issuer: String, audience: String, foreign: Option<bool>) -> Result<Self, OidcError> {
        let http = outward::client(foreign.unwrap_or(true), TIMEOUT);
        let http = http.map_err(|error| OidcError::Unavailable(cause(error)))?;
        let source = Arc::new(Source { issuer, http, foreign });
        Ok(Self { source, audience, keys: Arc::default(), ask_again: ASK_AGAIN })
    }

    /// Returns the `iss` of its tokens.
    pub fn issuer(&self) -> &str {
        &self.source.issuer
    }

    /// Verifies the token and returns the person.
    pub async fn verify(&self, token: &str) -> Result<Login, OidcError> {
        Ok(self.login(self.claims(token).await?))
    }

    /// Like `verify`, for a token that has this claim with this value, or with a list that has it; none without it.
    pub async fn verify_with(&self, token: &str, name: &str, value: &str) -> Result<Option<Login>, OidcError> {
        let claims = self.claims(token).await?;
        Ok(claims.say(name, value).then(|| self.login(claims)))
    }

    async fn claims(&self, token: &str) -> Result<Claims, OidcError> {
        let invalid = |reason: String| OidcError::Invalid(cause(reason));
        let header = decode_header(token).map_err(|error| OidcError::Invalid(cause(error)))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(invalid(format!("it is signed with {:?}; RS256, ES256 and EdDSA are accepted", header.alg)));
        }
        // RFC 7515, 4.1.11: a token with critical extensions that are not understood is invalid. None is known here.
        if let Some(names) = header.crit {
            return Err(invalid(format!(
                "its header says that {names:?} must be understood (crit), which this server does not"
            )));
        }
        let kid = header.kid.ok_or_else(|| invalid("its header names no key (kid)".to_owned()))?;
        let key = self.key(&kid).await?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[self.issuer()]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        Ok(decode::<Claims>(token, &key, &validation).map_err(|error| OidcError::Invalid(cause(error)))?.claims)
    }

    fn login(&self, claims: Claims) -> Login {
        Login {
            user: UserId::from_login(self.issuer(), &claims.sub),
            issuer: self.issuer().to_owned(),
            subject: claims.sub,
            verified_email: claims.email.clone().filter(|_| claims.email_verified),
            email: claims.email,
            second_factor: claims.amr.iter().any(|method| SECOND_FACTORS.contains(&method.as_str())),
        }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn key(&self, kid: &str) -> Result<DecodingKey, OidcError> {
        let mut told = {
            let mut keys = self.keys();
            if let Some((key, age)) = keys.find(kid)
                && age < KEEP
            {
                return key;
            }
            match &keys.asking {
                Some(asking) if self.is_strange(&keys) && asking.receiver_count() >= WAITING => {
                    let reason = cause("the issuer is being asked for its keys, and many wait for that");
                    return Err(OidcError::Unavailable(reason));
                }
                Some(asking) => asking.subscribe(),
                None if self.may_ask(&keys) => self.ask(&mut keys),
                None => return keys.answer(kid),
            }
        };
        // It carries no value, and is dropped when the answer is there.
        let _ = told.changed().await;
        self.keys().answer(kid)
    }

    /// Whether it is a customer's issuer that has never answered.
    fn is_strange(&self, keys: &Keys) -> bool {
        self.source.foreign.is_some() && keys.set.is_none()
    }

    fn may_ask(&self, keys: &Keys) -> bool {
        match (&keys.failed, &keys.set) {
            (Some(failure), _) => {
                let times = if self.source.foreign.is_some() { failure.times } else { 1 };
                let pause = TRY_AGAIN.saturating_mul(1_u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX));
                failure.at.elapsed() > pause.min(TRY_AGAIN_LATEST)
            }
            (None, Some((_, asked))) => asked.elapsed() > self.ask_again,
            (None, None) => true,
        }
    }

    /// Starts a query. It outlives its caller: later callers use the answer, too.
    fn ask(&self, keys: &mut Keys) -> watch::Receiver<()> {
        let (asking, told) = watch::channel(());
        keys.asking = Some(asking);
        let (source, asking) = (Arc::clone(&self.source), Asking(Arc::clone(&self.keys)));
        tokio::spawn(async move {
            let answer = timeout(TIMEOUT, source.fetch()).await;
            let answer = answer.unwrap_or(Err(FetchError::Late));
            asking.0.lock().unwrap_or_else(PoisonError::into_inner).fold(answer);
            drop(asking);
        });
        told
    }
}

impl Source {
    async fn fetch(&self) -> Result<JwkSet, FetchError> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let found: Discovery = self.get(&url).await?;
        if found.issuer != self.issuer {
            return Err(FetchError::Refused(format!("{url} is the configuration of {}", found.issuer)));
        }
        if self.foreign.is_some_and(|local| !is_public_url(&found.jwks_uri, local)) {
            let what = format!("{url} has its keys at an address that is not public: {}", found.jwks_uri);
            return Err(FetchError::Refused(what));
        }
        self.get::<Published>(&found.jwks_uri).await.map(JwkSet::from)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, FetchError> {
        let answer = self.http.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut answer = answer.map_err(FetchError::Silent)?;
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(FetchError::Silent)? {
            if body.len() + part.len() > MAX_ANSWER {
                return Err(FetchError::Refused(format!("{url} answers with more than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&part);
        }
        serde_json::from_slice(&body).map_err(|source| FetchError::Unreadable { url: url.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{Json, Router, extract::State, routing::get};
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::now;

    /// An issuer whose published keys can be changed, and that counts how often they are fetched.
    #[derive(Clone, Default)]
    struct Fake {
        url: String,
        keys: Arc<Mutex<Vec<Value>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Fake {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let fake = Self { url: format!("http://{}", listener.local_addr().unwrap()), ..Self::default() };
            let discovery = async |State(fake): State<Self>| {
                Json(json!({"issuer": fake.url, "jwks_uri": format!("{}/keys", fake.url)}))
            };
            let keys = async |State(fake): State<Self>| {
                fake.asked.fetch_add(1, Ordering::Relaxed);
                Json(json!({"keys": *fake.keys.lock().unwrap()}))
            };
            let router = Router::new().route("/.well-known/openid-configuration", get(discovery));
            let router = router.route("/keys", get(keys)).with_state(fake.clone());
            tokio::spawn(axum::serve(listener, router).into_future());
            fake
        }

        fn publish(&self, keys: &[&Key]) {
            *self.keys.lock().unwrap() = keys.iter().map(|key| key.public()).collect();
        }

        fn oidc(&self) -> Oidc {
            Oidc { ask_again: Duration::ZERO, ..Oidc::new(self.url.clone(), "us".to_owned()).unwrap() }
        }
    }

    struct Key {
        kid: &'static str,
        algorithm: Algorithm,
        secret: EncodingKey,
    }

    impl Key {
        fn rsa(kid: &'static str) -> Self {
            let secret = EncodingKey::from_rsa_pem(include_bytes!("test_keys/rsa.pem")).unwrap();
            Self { kid, algorithm: Algorithm::RS256, secret }
        }

        fn ec(kid: &'static str) -> Self {
            let secret = EncodingKey::from_ec_pem(include_bytes!("test_keys/ec.pem")).unwrap();
            Self { kid, algorithm: Algorithm::ES256, secret }
        }

        fn public(&self) -> Value {
            let mut key = Jwk::from_encoding_key(&self.secret, self.algorithm).unwrap();
            key.common.key_id = Some(self.kid.to_owned());
            serde_json::to_value(key).unwrap()
        }

        /// A token about Ann, with `more` claims.
        fn sign(&self, issuer: &str, more: &Value) -> String {
            let seconds = now().unix_ms() / 1000;
            let mut claims = json!({"iss": issuer, "sub": "ann", "aud": "us", "exp": seconds + 600});
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) };
            encode(&header, &claims, &self.secret).unwrap()
        }
    }

    #[tokio::test]
    async fn a_customers_issuer_leads_nowhere_inward() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inward = json!({"issuer": url, "jwks_uri": "http://169.254.169.254/latest/meta-data"});
        let discovery = async move || Json(inward);
        let app = Router::new().route("/.well-known/openid-configuration", get(discovery));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        let asked = Oidc::of_customer(url, "us".to_owned(), true).unwrap().source.fetch().await;
        assert!(asked.is_err_and(|error| error.to_string().contains("not public: http://169.254.169.254")));
        serving.abort();
        let named = Oidc::of_customer("https://localhost:1".to_owned(), "us".to_owned(), false).unwrap();
        assert!(named.source.fetch().await.is_err());
    }

    #[tokio::test]
    async fn a_token_is_checked_with_the_key_that_it_names() {
        let fake = Fake::start().await;
        let (rsa, ec) = (Key::rsa("r"), Key::ec("e"));
        // A key of an unknown kind does not spoil the others.
        fake.publish(&[&rsa, &ec]);
        fake.keys.lock().unwrap().push(json!({"kty": "AKP", "kid": "x", "alg": "ML-DSA-44", "pub": "AA"}));
        let oidc = fake.oidc();
        for key in [&rsa, &ec] {
            let login = oidc.verify(&key.sign(&fake.url, &json!({}))).await.unwrap();
            assert_eq!(login.user, UserId::from_login(&fake.url, "ann"));
            assert_eq!((login.subject.as_str(), login.email, login.verified_email), ("ann", None, None));
        }
        let crossed = Key { kid: "e", ..Key::rsa("e") }.sign(&fake.url, &json!({}));
        assert!(matches!(oidc.verify(&crossed).await, Err(OidcError::Invalid(_))));
    }

    #[tokio::test]
    async fn what_must_be_understood_and_is_not_is_refused() {
        let fake = Fake::start().await;
        let key = Key::ec("e");
        fake.publish(&[&key]);
        let seconds = now().unix_ms() / 1000;
        let claims = json!({"iss": fake.url, "sub": "ann", "aud": "us", "exp": seconds + 600});
        for (crit, counts) in [(None, true), (Some(vec!["exp".to_owned()]), false), (Some(vec![]), false)] {
            let header = Header { kid: Some("e".to_owned()), crit, ..Header::new(key.algorithm) };
            let token = encode(&header, &claims, &key.secret).unwrap();
            let verified = fake.oidc().verify(&token).await;
            assert_eq!(verified.is_ok(), counts, "{header:?}: {verified:?}");
        }
    }

    #[tokio::test]
    async fn a_claim_is_a_text_or_one_of_a_list() {
        let fake = Fake::start().await;
        let key = Key::ec("e");
        fake.publish(&[&key]);
        let oidc = fake.oidc();
        for (groups, counts) in [
            (json!("ops"), true),
            (json!(["staff", "ops"]), true),
            (json!(["staff"]), false),
            (json!("ops staff"), false),
            (json!({"ops": true}), false),
            (json!(null), false),
        ] {
            let token = key.sign(&fake.url, &json!({"groups": groups}));
            let found = oidc.verify_with(&token, "groups", "ops").await.unwrap();
            assert_eq!(found.is_some(), counts, "{groups}");
        }
        assert!(oidc.verify_with(&key.sign(&fake.url, &json!({})), "groups", "ops").await.unwrap().is_none());
        // The name of a claim is not the name of another part of the token.
        assert!(oidc.verify_with(&key.sign(&fake.url, &json!({})), "sub", "ann").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_a_token_says_of_a_person_is_read_strictly() {
        let fake = Fake::start().await;
        let key = Key::ec("e");
        fake.publish(&[&key]);
        let oidc = fake.oidc();
        let email = "ann@acme.example";
        for (verified, counts) in [(json!(true), true), (json!("true"), true), (json!(false), false), (json!(1), false)]
        {
            let claims = json!({"email": email, "email_verified": verified});
            let login = oidc.verify(&key.sign(&fake.url, &claims)).await.unwrap();
            assert_eq!(login.verified_email.is_some(), counts, "{verified}");
            assert_eq!(login.email.as_deref(), Some(email));
        }
        for (amr, counts) in
            [(json!(["pwd"]), false), (json!([]), false), (json!(["pwd", "otp"]), true), (json!(["mfa"]), true)]
        {
            let login = oidc.verify(&key.sign(&fake.url, &json!({"amr": amr}))).await.unwrap();
            assert_eq!(login.second_factor, counts, "{amr}");
        }
        let seconds = now().unix_ms() / 1000;
        for (wrong, why) in [
            (json!({"exp": seconds - 60}), "expired"),
            (json!({"nbf": seconds + 60}), "not yet"),
            (json!({"aud": "them"}), "another audience"),
            (json!({"iss": "https://other.example"}), "another issuer"),
        ] {
            let refused = oidc.verify(&key.sign(&fake.url, &wrong)).await;
            assert!(matches!(refused, Err(OidcError::Invalid(_))), "{why}: {refused:?}");
        }
        // Some clock skew is tolerated.
        assert!(oidc.verify(&key.sign(&fake.url, &json!({"exp": seconds - 10}))).await.is_ok());
    }

    #[tokio::test]
    async fn a_new_key_is_asked_for_and_an_unknown_one_not_again_and_again() {
        let fake = Fake::start().await;
        let (old, new) = (Key::ec("old"), Key::rsa("new"));
        fake.publish(&[&old]);
        let oidc = fake.oidc();
        oidc.verify(&old.sign(&fake.url, &json!({}))).await.unwrap();
        fake.publish(&[&new]);
        oidc.verify(&new.sign(&fake.url, &json!({}))).await.unwrap();
        assert!(matches!(oidc.verify(&old.sign(&fake.url, &json!({}))).await, Err(OidcError::Invalid(_))));

        let oidc = Oidc { ask_again: ASK_AGAIN, ..fake.oidc() };
        let before = fake.asked.load(Ordering::Relaxed);
        for _ in 0..20 {
            assert!(matches!(oidc.verify(&old.sign(&fake.url, &json!({}))).await, Err(OidcError::Invalid(_))));
        }
        assert_eq!(fake.asked.load(Ordering::Relaxed), before + 1);
    }

    #[tokio::test]
    async fn an_issuer_that_does_not_answer_makes_no_token_wrong() {
        let key = Key::ec("e");
        let nobody = Oidc::new("http://127.0.0.1:1".to_owned(), "us".to_owned()).unwrap();
        let refused = nobody.verify(&key.sign("http://127.0.0.1:1", &json!({}))).await;
        assert!(matches!(refused, Err(OidcError::Unavailable(_))), "{refused:?}");

        // Known keys stay valid during an outage; unknown ones cannot be judged.
        let fake = Fake::start().await;
        fake.publish(&[&key]);
        let oidc = fake.oidc();
        let token = key.sign(&fake.url, &json!({}));
        oidc.verify(&token).await.unwrap();
        {
            let mut keys = oidc.keys();
            keys.failed = Some(Failure { reason: cause("away"), at: Instant::now(), times: 1 });
            keys.set.as_mut().unwrap().1 -= KEEP;
        }
        oidc.verify(&token).await.unwrap();
        let unknown = oidc.verify(&Key::rsa("r").sign(&fake.url, &json!({}))).await;
        assert!(matches!(unknown, Err(OidcError::Unavailable(_))), "{unknown:?}");
        oidc.keys().set.as_mut().unwrap().1 -= KEEP_UNREACHABLE;
        assert!(matches!(oidc.verify(&token).await, Err(OidcError::Unavailable(_))));
    }

    #[tokio::test]
    async fn an_issuer_that_is_silent_is_asked_once_and_few_wait_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let silent = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                held.push(connection);
            }
        });
        let oidc = Arc::new(Oidc::of_customer(url.clone(), "us".to_owned(), true).unwrap());
        let token = Key::ec("e").sign(&url, &json!({}));
        let began = Instant::now();
        let asked = (0..200).map(|_| {
            let (oidc, token) = (Arc::clone(&oidc), token.clone());
            tokio::spawn(async move { (oidc.verify(&token).await.is_err(), began.elapsed()) })
        });
        let mut waited = 0;
        for asked in asked.collect::<Vec<_>>() {
            let (is_refused, after) = asked.await.unwrap();
            assert!(is_refused && after < TIMEOUT + TRY_AGAIN, "{after:?}");
            waited += usize::from(after > TIMEOUT / 2);
        }
        assert_eq!((waited, connections.load(Ordering::Relaxed)), (WAITING, 1));
        // The outage is known by then, and no request waits for it again.
        let began = Instant::now();
        assert!(matches!(oidc.verify(&token).await, Err(OidcError::Unavailable(_))));
        assert!(began.elapsed() < TRY_AGAIN);
        let mut keys = oidc.keys();
        for times in [1, 2, 4, 8, 16, 30, 30] {
            let failure = keys.failed.as_mut().unwrap();
            failure.at = Instant::now().checked_sub(Duration::from_secs(times).saturating_sub(TRY_AGAIN / 2)).unwrap();
            assert!(!oidc.may_ask(&keys), "{times}");
            keys.failed.as_mut().unwrap().at -= TRY_AGAIN;
            assert!(oidc.may_ask(&keys), "{times}");
            keys.fold(Err(FetchError::Late));
        }
        drop(keys);
        silent.abort();
    }
}
