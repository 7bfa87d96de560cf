//! The API client of the client commands: one connection pool, one key, errors in the API's own words.

pub mod session;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::{client::session::StoredSession, config::ClientArgs, secret::Address, terminal::out::note};

const CONNECT: Duration = Duration::from_secs(5);
const WHERE_KEYS_ARE: &str = "Give one in ORGSTREAM_API_KEY: eval \"$(orgstream demo acme)\" sets it to that of a demo \
    organization, and POST /v1/organizations/{org}/api-keys issues one. Or sign in as a person: orgstream login.";

/// A client of one API, with one key.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    key: String,
    stored: bool,
}

/// An error of the API, in its wire form.
#[derive(Debug, Deserialize)]
struct Problem {
    code: String,
    detail: String,
    #[serde(default)]
    errors: Vec<Field>,
    request_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Field {
    pointer: String,
    detail: String,
}

impl Api {
    /// Creates a client of the API in the settings, with their credential or the stored session.
    pub fn new(args: &ClientArgs) -> anyhow::Result<Self> {
        let given =
            [&args.api_key, &args.session].into_iter().flatten().find(|credential| !credential.reveal().is_empty());
        if let Some(credential) = given {
            return Self::with(&args.url, credential.reveal().to_owned());
        }
        let stored = StoredSession::read(args.url.trim_end_matches('/'));
        let stored = stored.with_context(|| {
            format!("there is no API key to ask {} with. {WHERE_KEYS_ARE}", Address::from(args.url.clone()))
        })?;
        Ok(Self { stored: true, ..Self::with(&args.url, stored.token)? })
    }

    /// Creates a client with this credential.
    pub fn with(url: &str, key: String) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(CONNECT).build()?;
        Ok(Self { http, base: url.trim_end_matches('/').to_owned(), key, stored: false })
    }

    /// Returns the URL of the API.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether the credential is the session that `orgstream login` stores.
    pub fn is_stored(&self) -> bool {
        self.stored
    }

    /// Creates a request to `path` of that API, with the credential.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key)
    }

    /// Returns the answer to `GET path`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.send(self.request(Method::GET, path)).await?.json().await?)
    }

    /// Returns the answer to `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Ok(self.send(self.request(Method::POST, path).json(body)).await?.json().await?)
    }

    /// Returns the organization for commands: the named one, or by default the one that the key belongs to.
    pub async fn org(&self, named: Option<String>) -> anyhow::Result<String> {
        if let Some(named) = named {
            return Ok(named);
        }
        let me = self.get("/v1/me").await?;
        match me.pointer("/org_id").and_then(Value::as_str) {
            Some(org) => Ok(org.to_owned()),
            None => bail!("this credential belongs to no single organization: name one with --org"),
        }
    }

    /// Sends, and turns an error of the API into one for people.
    pub async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.map_err(|error| self.unreachable(error))?;
        if answer.status().is_success() { Ok(answer) } else { Err(Self::problem(answer).await) }
    }

    /// Like `send`, for a read that includes everything up to `head`, or all of it that could be applied: a user who reads
    /// past what could not is warned.
    pub async fn send_at(&self, request: RequestBuilder, head: &str, wait: u32) -> anyhow::Result<Response> {
        let at = request.try_clone().map(|at| at.header("Min-Position", head).header("Prefer", format!("wait={wait}")));
        let Some(at) = at else { return self.send(request).await };
        let answer = at.send().await.map_err(|error| self.unreachable(error))?;
        let answer = match answer.status() {
            status if status.is_success() => answer,
            StatusCode::CONFLICT => self.send(request).await?,
            _ => return Err(Self::problem(answer).await),
        };
        if let Some(first) = answer.headers().get("projection-parked").and_then(|first| first.to_str().ok()) {
            note!(
                "what is read here is without some messages that could not be applied, the first at {first}: \
                 `orgstream lag --json` names them"
            );
        }
        Ok(answer)
    }

    /// Returns the error for an API that does not answer.
    pub fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let base = Address::from(self.base.clone());
        anyhow::Error::new(error)
            .context(format!("the API at {base} does not answer: is it running? (--url or ORGSTREAM_URL says where)"))
    }

    /// Returns the API's error.
    pub async fn problem(answer: Response) -> anyhow::Error {
        let status = answer.status();
        let problem: Problem = match answer.json().await {
            Ok(problem) => problem,
            Err(_) => return anyhow!("the API answered {status}"),
        };
        let mut text = format!("{} ({status}, {})", problem.detail, problem.code);
        for field in &problem.errors {
            text.push_str(&format!("\n  {}: {}", field.pointer, field.detail));
        }
        if status == StatusCode::UNAUTHORIZED {
            text.push_str(&format!("\n{WHERE_KEYS_ARE}"));
        }
        if status.is_server_error()
            && let Some(id) = problem.request_id
        {
            text.push_str(&format!("\nThe server's log has it as request {id}."));
        }
        anyhow!(text)
    }
}
