//! Reports of publicly leaked keys: the finder sends one here, and the key is revoked.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::HeaderName,
};
use orgstream_domain::credentials::key::KeyToken;
use orgstream_events::Fingerprint;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::{
        command_body::parse_json,
        http::{
            App,
            kit::extract::{header_text, info, read_body},
        },
    },
    app::{admit::Signed, problem::Problem},
    secret::Secret,
};

const IDENTIFIER: HeaderName = HeaderName::from_static("github-public-key-identifier");
const SIGNATURE: HeaderName = HeaderName::from_static("github-public-key-signature");
/// The maximum number of findings of one report.
const MAX_FINDINGS: usize = 1_000;

/// One finding, as code hosts send it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct LeakedKey {
    /// Token that was found, all of it.
    #[schema(example = "os_live_…")]
    #[schema(value_type = String)]
    pub token: Secret,
    /// Type of token, as the reporter names it.
    #[serde(rename = "type")]
    #[schema(example = "orgstream_api_key")]
    pub token_type: String,
    /// Address of the place where it was found.
    #[serde(default)]
    #[schema(example = "https://github.com/acme/app/blob/main/.env")]
    pub url: Option<String>,
    /// Kind of place where it was found, such as `content` or `commit`.
    #[serde(default)]
    #[schema(example = "commit")]
    pub source: Option<String>,
}

/// What was made of one finding.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LeakedKeyVerdict {
    /// SHA-256 of the token, hexadecimal; the token itself is not repeated.
    pub token_hash: String,
    /// Type of token, as reported.
    pub token_type: String,
    /// `true_positive` for a key, which has ended now; otherwise `false_positive`.
    #[schema(example = "true_positive")]
    pub label: &'static str,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(report), Policy::Public, Shape::Plain, AuditTrail::Events)
}

/// Report leaked keys
///
/// For code hosts that look for secrets (GitHub's secret scanning partners). The body is signed: the headers
/// `Github-Public-Key-Identifier` and `Github-Public-Key-Signature` name the key and hold an ECDSA signature (P-256,
/// SHA-256, base64 of DER). Keys that are trusted are in the file that `ORGSTREAM_LEAK_REPORTER_KEYS` names; without it
/// no report is taken. A key whose whole token is known to the public is revoked at once, and its organization
/// reads in its audit log where it was found.
#[utoipa::path(
    post, path = "/v1/leaked-keys", operation_id = "report_leaked_keys", tag = "api keys",
    request_body = Vec<LeakedKey>,
    responses((status = 200, description = "What became of each", body = Vec<LeakedKeyVerdict>)),
)]
pub async fn report(State(app): State<Arc<App>>, request: Request) -> Result<Json<Vec<LeakedKeyVerdict>>, Problem> {
    if app.leak_reporters.is_empty() {
        return Err(Problem::not_found());
    }
    let (parts, body) = request.into_parts();
    let header = |name: &HeaderName| {
        let text = header_text(&parts.headers, name)?.map(str::to_owned);
        text.ok_or_else(|| Problem::bad_request(format!("send the header {name}: reports are signed")))
    };
    let (identifier, signature) = (header(&IDENTIFIER)?, header(&SIGNATURE)?);
    let origin = info(&parts).origin();
    let (_, bytes) = read_body(&app, Request::from_parts(parts, body)).await?;
    let signed = Signed { key: &identifier, signature: &signature, body: &bytes };
    app.admit(&origin).provider(&app.leak_reporters, &signed)?;
    let findings: Vec<LeakedKey> = parse_json(&bytes)?;
    if findings.len() > MAX_FINDINGS {
        return Err(Problem::too_large(format!("a report has at most {MAX_FINDINGS} findings")));
    }
    let mut verdicts = Vec::with_capacity(findings.len());
    for LeakedKey { token, token_type, url, source } in findings {
        let key = match token.reveal().parse::<KeyToken>() {
            Ok(parsed) => app.auth.keys().owner(&parsed).await?,
            Err(_) => None,
        };
        if let Some((org, id)) = key {
            let place = [source, url].into_iter().flatten().collect::<Vec<_>>().join(" ");
            app.gateway.revoke_leaked(org, id, &place, &origin).await?;
        }
        let label = if key.is_some() { "true_positive" } else { "false_positive" };
        let token_hash = Fingerprint::of(&[token.reveal().as_bytes()]).to_string();
        verdicts.push(LeakedKeyVerdict { token_hash, token_type, label });
    }
    Ok(Json(verdicts))
}
