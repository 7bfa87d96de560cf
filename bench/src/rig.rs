//! A stack to measure: private servers in a temporary folder, one organization, one key. All of it is removed
//! afterwards.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use orgstream::{
    app::submit::Origin,
    auth::authenticator::OrgName,
    dev::stack::{Stack, StackOptions},
    telemetry,
};
use orgstream_domain::{Command, CreateOrganization, IssueApiKey};
use orgstream_events::{KeyEnvironment, OrgId, Role, TenantType};
use orgstream_stream::{Log, Placement};

const SIGN_IN: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Rig {
    pub(super) stack: Stack,
    /// The organization that everything is written for.
    pub(super) org: OrgId,
    /// A key of that organization.
    pub(super) api_key: String,
    dir: PathBuf,
}

impl Rig {
    /// Starts the servers and makes the organization; the worker stops once that is done.
    pub(super) async fn start(sync_always: bool) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("orgstream-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        let options = StackOptions { sync_always, ..StackOptions::new(&dir) };
        let metrics = telemetry::metrics_once()?;
        let mut stack = Stack::start(options, metrics, |_| {}).await?;
        let (org, api_key) = organization(&stack).await?;
        stack.stop_worker().await;
        Ok(Self { stack, org, api_key, dir })
    }

    pub(super) fn log(&self) -> &Log {
        &self.stack.log
    }

    pub(super) async fn placement(&self) -> anyhow::Result<Placement> {
        self.log().placement(self.org).await?.context("the organization has a place")
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stack.stop().await?;
        let _ = std::fs::remove_dir_all(&self.dir);
        Ok(())
    }
}

async fn organization(stack: &Stack) -> anyhow::Result<(OrgId, String)> {
    let token = stack.issuer.mint("bench@example.org", SIGN_IN)?;
    let principal = stack.auth.principal(Some(&format!("Bearer {token}"))).await?;
    let command = CreateOrganization {
        name: "Benchmark".to_owned(),
        slug: "benchmark".parse()?,
        tenant_type: TenantType::Organization,
        auth0_organization_id: None,
    };
    let explained =
        |problem: orgstream::app::problem::Problem| anyhow::anyhow!("{} ({})", problem.detail, problem.code);
    let origin = Origin::default();
    let made = stack.gateway.create_organization(&principal, &origin, Command::from(command).into()).await;
    let org = made.map_err(explained)?.position.org;
    let access = stack.auth.access(&principal, &OrgName::Id(org)).await?;
    let issue = IssueApiKey {
        name: "bench".to_owned(),
        role: Role::Admin,
        environment: KeyEnvironment::Test,
        expires_at: None,
        expires_in_days: None,
        scopes: None,
        allowed_ips: Vec::new(),
    };
    let issued = stack.gateway.submit(&access, &origin, Command::from(issue).into()).await.map_err(explained)?;
    Ok((org, issued.token.context("a new key has a token")?.reveal()))
}
