//! Auth0's Management API, limited to organizations.

use std::{
    fmt,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use orgstream_events::{OrgId, cause};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::{IdentityOrganizations, IdpError};

const TIMEOUT: Duration = Duration::from_secs(8);
/// How long before its expiry a token is no longer used.
const MARGIN: Duration = Duration::from_secs(60);

/// One Auth0 tenant, and the machine-to-machine application that may manage its organizations.
pub struct Auth0 {
    url: String,
    client_id: String,
    client_secret: String,
    http: reqwest::Client,
    token: Mutex<Option<(String, Instant)>>,
}

impl fmt::Debug for Auth0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth0").field("url", &self.url).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
    expires_in: u64,
}

#[derive(Deserialize)]
struct Organization {
    id: String,
}

impl Auth0 {
    /// Uses the tenant at `url`, for example `https://acme.eu.auth0.com`.
    pub fn new(url: &str, client_id: String, client_secret: String) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { url, client_id, client_secret, http, token: Mutex::new(None) })
    }

    /// Returns a token of the application, renewed shortly before the last one expires.
    async fn token(&self) -> Result<String, IdpError> {
        let mut held = self.token.lock().await;
        if let Some((token, ends)) = &*held
            && Instant::now() < *ends
        {
            return Ok(token.clone());
        }
        let body = json!({
            "grant_type": "client_credentials",
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "audience": format!("{}/api/v2/", self.url),
        });
        let asked = self.http.post(format!("{}/oauth/token", self.url)).json(&body).send().await;
        let token: Token = answer(asked)?.json().await.map_err(failed)?;
        let life = Duration::from_secs(token.expires_in).saturating_sub(MARGIN);
        *held = Some((token.access_token.clone(), Instant::now() + life));
        Ok(token.access_token)
    }

    async fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, IdpError> {
        let token = self.token().await?;
        Ok(self.http.request(method, format!("{}/api/v2/organizations{path}", self.url)).bearer_auth(token))
    }

    async fn make(&self, org: OrgId, display_name: &str) -> Result<String, IdpError> {
        // Names there are in lower case, of at most 50 characters, and must not look like their own ids.
        let name = org.to_string().replace("org_", "orgstream-");
        let body = json!({"name": name, "display_name": display_name, "metadata": {"orgstream_id": org}});
        let made = self.request(Method::POST, "").await?.json(&body).send().await;
        let made = match made {
            Ok(response) if response.status() == StatusCode::CONFLICT => {
                // An earlier attempt succeeded.
                self.request(Method::GET, &format!("/name/{name}")).await?.send().await
            }
            other => other,
        };
        let made: Organization = answer(made)?.json().await.map_err(failed)?;
        Ok(made.id)
    }
}

impl IdentityOrganizations for Auth0 {
    fn provision<'a>(&'a self, org: OrgId, name: &'a str) -> BoxFuture<'a, Result<Option<String>, IdpError>> {
        Box::pin(async move { self.make(org, name).await.map(Some) })
    }

    fn exists<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool, IdpError>> {
        Box::pin(async move {
            match self.request(Method::GET, &format!("/{id}")).await?.send().await {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => Ok(false),
                other => answer(other).map(|_| true),
            }
        })
    }
}

/// Returns the response, if it is successful.
fn answer(response: reqwest::Result<Response>) -> Result<Response, IdpError> {
    response.and_then(Response::error_for_status).map_err(failed)
}

/// Describes an error, without the address: its path identifies the organization, and its host is in the settings.
fn failed(error: reqwest::Error) -> IdpError {
    let (what, cause) = match error.status() {
        Some(status) => (format!("it answers {status}"), None),
        None if error.is_timeout() => ("no answer in time".to_owned(), None),
        // The decoder quotes what it read, which may be a secret.
        None if error.is_decode() => ("an unreadable answer".to_owned(), None),
        None => ("it cannot be reached".to_owned(), Some(cause(error.without_url()))),
    };
    IdpError { what: format!("Auth0: {what}"), cause }
}
