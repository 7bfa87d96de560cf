//! `orgstream serve`: an API process.

use crate::{
    api::http::platform::health,
    config::{
        Auth0Args, DatabaseArgs, HttpArgs, IdentityArgs, KeyRingArgs, MailArgs, NatsArgs, PaymentArgs, SearchArgs,
        SecretArgs,
    },
    process as node,
    telemetry::{self, metrics::Process},
};

/// Run the API: HTTP, and commands by NATS request.
///
/// Any number of these processes may run behind one address; they share nothing but NATS and PostgreSQL. At least one
/// `orgstream work` must run too.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to listen.
    #[arg(long, env = "ORGSTREAM_HTTP", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    http: String,
    /// An address where `/metrics` is shown without a credential; without it, none.
    #[arg(long, env = "ORGSTREAM_METRICS_HTTP", value_name = "ADDRESS", help_heading = "HTTP")]
    metrics_http: Option<String>,
    #[command(flatten)]
    bounds: HttpArgs,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    secrets: SecretArgs,
    #[command(flatten)]
    key_ring: KeyRingArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    mail: MailArgs,
    #[command(flatten)]
    auth0: Auth0Args,
    #[command(flatten)]
    payments: PaymentArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = node::stop_when_asked()?;
    let metrics = telemetry::metrics(&[Process::Api])?;
    let (mail, idp) = (args.mail.mailer()?, args.auth0.provider()?);
    let producers = args.nats.producers()?;
    let key_ring = args.key_ring.ring().await?;
    let targets = args.search.targets()?;
    let outside = node::Adapters {
        mail,
        idp,
        producers,
        key_ring: key_ring.clone(),
        payments: args.payments.provider()?,
        http: args.bounds,
        ..node::Adapters::default()
    };
    let opening = async {
        let db = node::open_database(&args.database, 1).await?.searching(targets);
        let log = node::open_log(&args.nats, &db).await?;
        node::check_key_ring(&log, key_ring).await?;
        Ok((log, db))
    };
    let Some((log, db)) = node::unless_asked(&stop, opening).await? else { return Ok(()) };
    let api = node::Api::new(log, db, &args.secrets, &args.identity, metrics.clone(), None, outside)?;
    let listener = node::listen(&args.http).await?;
    tracing::info!(address = %listener.local_addr()?, "the API answers");
    if let Some(address) = &args.metrics_http {
        let listener = node::listen(address).await?;
        tracing::info!(address = %listener.local_addr()?, "the figures are shown");
        tokio::spawn(health::serve_figures(listener, metrics, stop.clone()));
    }
    api.run(listener, stop).await
}
