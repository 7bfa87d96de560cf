//! The demo of `orgstream dev`: two organizations of two people, through the same APIs that customers use.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use orgstream_domain::{Command, CreateOrganization, CreateRecord, IssueApiKey};
use orgstream_events::{KeyEnvironment, OrgId, Role, TenantType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::issuer::DevIssuer;
use crate::{
    app::{
        problem::Problem,
        submit::{Gateway, Origin},
    },
    auth::{Authenticator, Principal, authenticator::OrgName},
    commands::request::{Accepted, Request},
    terminal::out::{OutputError, say},
};

/// The file in the data folder where `orgstream dev` writes settings for scripts.
pub const FILE: &str = "demo.json";
/// The lifetime of the demo's sign-ins.
const SIGN_IN: Duration = Duration::from_secs(30 * 24 * 3600);
/// The demo organizations: slug, name, and owner.
const ORGS: [(&str, &str, &str); 2] =
    [("acme", "Acme Corp", "ann@acme.example"), ("globex", "Globex Industries", "bob@globex.example")];

/// The content of `<data-dir>/demo.json`.
#[derive(Serialize, Deserialize)]
pub struct DemoFile {
    /// The URL of the API.
    pub base_url: String,
    /// The address of the streams' server.
    pub nats_url: String,
    /// The folder with the NATS credentials, by their holders.
    pub nats_access: PathBuf,
    /// The monitoring address of the streams' server.
    pub nats_monitor_url: String,
    /// The URL of the database, with the login that owns it.
    pub postgres_url: String,
    /// The URL of the built-in OpenID Connect issuer.
    pub issuer_url: String,
    /// The URL of the payment provider that moves no money, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payments_url: Option<String>,
    /// The platform operator's bearer token.
    pub platform_admin_token: String,
    /// People and organizations.
    #[serde(flatten)]
    pub demo: Demo,
}

/// The people and organizations of the demo.
#[derive(Default, Serialize, Deserialize)]
pub struct Demo {
    /// The people who can sign in.
    pub users: Vec<DemoUser>,
    /// Their organizations.
    pub orgs: Vec<DemoOrg>,
}

/// A person.
#[derive(Serialize, Deserialize)]
pub struct DemoUser {
    /// The e-mail address.
    pub email: String,
    /// A bearer token of the built-in issuer.
    pub token: String,
}

/// An organization.
#[derive(Serialize, Deserialize)]
pub struct DemoOrg {
    /// Its id.
    pub id: OrgId,
    /// Its name in URLs.
    pub slug: String,
    /// The display name.
    pub name: String,
    /// An API key with the role admin.
    pub api_key: String,
}

/// Creates the demo, or finds it as it was created: every command has an idempotency key.
pub async fn seed(gateway: &Gateway, auth: &Authenticator, issuer: &DevIssuer) -> anyhow::Result<Demo> {
    let mut demo = Demo::default();
    for (slug, name, email) in ORGS {
        let token = issuer.mint(email, SIGN_IN)?;
        let principal = auth.principal(Some(&format!("Bearer {token}"))).await?;
        let org = make_organization(gateway, &principal, slug, name).await?;
        let access = auth.access(&principal, &OrgName::Id(org)).await?;
        let key = IssueApiKey {
            name: "demo".to_owned(),
            role: Role::Admin,
            environment: KeyEnvironment::Live,
            expires_at: None,
            expires_in_days: None,
            scopes: None,
            allowed_ips: Vec::new(),
        };
        let issued = gateway
            .submit(&access, &Origin::default(), keyed(key.into(), "demo-key"))
            .await
            .map_err(|problem| explained(&problem))?;
        let token_text = issued.token.context("a new key has a token")?.reveal();
        for (number, data) in models().into_iter().enumerate() {
            let record = CreateRecord { kind: "model".parse()?, data, id: None };
            let request = keyed(record.into(), &format!("demo-model-{number}"));
            gateway.submit(&access, &Origin::default(), request).await.map_err(|problem| explained(&problem))?;
        }
        demo.users.push(DemoUser { email: email.to_owned(), token });
        demo.orgs.push(DemoOrg { id: org, slug: slug.to_owned(), name: name.to_owned(), api_key: token_text });
    }
    Ok(demo)
}

async fn make_organization(gateway: &Gateway, owner: &Principal, slug: &str, name: &str) -> anyhow::Result<OrgId> {
    let command = CreateOrganization {
        name: name.to_owned(),
        slug: slug.parse()?,
        tenant_type: TenantType::Organization,
        auth0_organization_id: None,
    };
    let request = keyed(command.into(), &format!("demo-{slug}"));
    let made: Accepted =
        gateway.create_organization(owner, &Origin::default(), request).await.map_err(|problem| explained(&problem))?;
    Ok(made.position.org)
}

fn keyed(command: Command, key: &str) -> Request {
    Request { idempotency_key: Some(key.to_owned()), ..command.into() }
}

fn explained(problem: &Problem) -> anyhow::Error {
    anyhow!("{} ({})", problem.detail, problem.code)
}

fn models() -> [Value; 3] {
    [
        json!({"name": "sonnet-small", "provider": "in-house", "version": "1.2", "modality": ["text"]}),
        json!({"name": "vision-large", "provider": "in-house", "version": "0.9", "modality": ["text", "image"]}),
        json!({"name": "whisperer", "provider": "partner", "version": "3.0", "modality": ["audio"]}),
    ]
}

impl DemoFile {
    /// Reads the file of a data folder.
    pub fn read(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(FILE);
        let text = std::fs::read(&path)
            .with_context(|| format!("{} is not there: is orgstream dev running?", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Prints the commands to try, ready to paste.
    pub(crate) fn print_card(&self, data_dir: &Path) -> Result<(), OutputError> {
        let url = &self.base_url;
        say!("\nOrgstream is ready.\n")?;
        say!("  API    {url}        docs  {url}/docs")?;
        for org in &self.demo.orgs {
            say!("  org    {:<8} {}  {}", org.slug, org.id, org.name)?;
        }
        say!("  more   {}: keys, tokens, server addresses", data_dir.join(FILE).display())?;
        if let Some(org) = self.demo.orgs.first() {
            say!("\nTry it:\n")?;
            say!("  curl -s {url}/v1/organizations/{}/records -H 'Authorization: Bearer {}'", org.slug, org.api_key)?;
        }
        say!("\nCtrl-C stops everything; the data stays.\n")
    }
}
