//! `orgstream serve`: an API process.

use crate::{
    config::{Auth0Args, DatabaseArgs, IdentityArgs, MailArgs, NatsArgs, SecretArgs},
    mail::Mailer,
    node, telemetry,
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
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    secrets: SecretArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    mail: MailArgs,
    #[command(flatten)]
    auth0: Auth0Args,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = node::stop_when_asked()?;
    let metrics = telemetry::metrics()?;
    let (mail, idp) = (Mailer::new(&args.mail)?, args.auth0.provider()?);
    let outside = node::Outside { mail, idp, producers: args.nats.producers()?, ..node::Outside::default() };
    let opening = async {
        let db = node::open_database(&args.database, 1).await?;
        Ok((node::open_log(&args.nats, &db).await?, db))
    };
    let Some((log, db)) = node::unless_asked(&stop, opening).await? else { return Ok(()) };
    let api = node::Api::new(log, db, &args.secrets, &args.identity, metrics, None, outside)?;
    let listener = node::listen(&args.http).await?;
    tracing::info!(address = %listener.local_addr()?, "the API answers");
    api.run(listener, stop).await
}
