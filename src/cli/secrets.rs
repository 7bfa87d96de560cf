//! `orgstream secrets`: the key ring of records' secrets, for the platform's operator.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use orgstream_events::OrgId;
use orgstream_servers::write_private;
use zeroize::Zeroizing;

use crate::{
    adapters::key_ring::{DataKey, FileRing, RingFile},
    commands::vault::{ABANDONED_AFTER, Rewrapped, Vault, VaultStatus},
    config::{KeyRingArgs, NatsArgs},
    process as node,
    terminal::out::{note, say},
};

#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// Make a key ring in a file. What is there already is never written over.
    Init(FileArgs),
    /// Add a key to the key ring of a file, by which everything is wrapped from now on.
    Rotate(FileArgs),
    /// Wrap the data keys of all secrets with the current key, while everything runs. The old keys may be taken out of the ring
    /// afterwards. Values that no record has are destroyed.
    Rewrap(VaultArgs),
    /// Show which keys the secrets are wrapped by.
    Status(VaultArgs),
}

#[derive(clap::Args)]
pub(crate) struct FileArgs {
    /// The file.
    #[arg(long, env = "ORGSTREAM_KEY_RING", default_value = "key-ring.json", value_name = "FILE")]
    key_ring: PathBuf,
    /// The id of the new key: 1 to 64 of A-Z, a-z, 0-9, -, _ and the dot. By default it is made of random digits.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct VaultArgs {
    /// An organization, by id; without it, all of them.
    #[arg(long, value_name = "ORG")]
    org: Option<OrgId>,
    #[command(flatten)]
    ring: KeyRingArgs,
    #[command(flatten)]
    nats: NatsArgs,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Init(args) => init(&args),
        Job::Rotate(args) => rotate(&args).await,
        Job::Rewrap(args) => rewrap(args).await,
        Job::Status(args) => status(args).await,
    }
}

/// Returns a new key, and its id.
fn new_key(args: &FileArgs) -> (String, DataKey) {
    let id = args.key.clone().unwrap_or_else(|| format!("{:08x}", rand::random::<u32>()));
    (id, Zeroizing::new(rand::random()))
}

fn init(args: &FileArgs) -> anyhow::Result<()> {
    let path = &args.key_ring;
    if path.exists() {
        bail!("there is a file {} already: `orgstream secrets rotate` adds a key to it", path.display());
    }
    let (id, key) = new_key(args);
    write_private(path, RingFile::new(&id, &key)?.to_text()?.as_bytes())?;
    say!("{}", path.display())?;
    note!(
        "the key ring has the key {id}: give the file to every `orgstream serve` (ORGSTREAM_KEY_RING), and keep a copy of it apart \
         from those of the streams: without it no secret is read again"
    );
    Ok(())
}

async fn rotate(args: &FileArgs) -> anyhow::Result<()> {
    let path = &args.key_ring;
    let mut ring = FileRing::open(path.clone()).await?.read().await?;
    let (id, key) = new_key(args);
    ring.add(&id, &key)?;
    // Beside it, and then in its place: a process that reads it in between finds the one or the other.
    let mut beside = path.clone().into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    write_private(&beside, ring.to_text()?.as_bytes())
        .with_context(|| format!("remove {} if an earlier try has left it", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("{} cannot be replaced", path.display()))?;
    note!(
        "{id} is the current key of {}: give the file to every `orgstream serve`, and then run `orgstream secrets rewrap`",
        path.display()
    );
    Ok(())
}

async fn open(args: VaultArgs) -> anyhow::Result<(Vault, Option<OrgId>)> {
    let ring = args.ring.ring().await?;
    if ring.is_none() {
        bail!("there is no key ring: set --key-ring (ORGSTREAM_KEY_RING) or --vault-url (ORGSTREAM_VAULT_URL)");
    }
    Ok((Vault::new(node::connect_log(&args.nats).await?, ring), args.org))
}

async fn rewrap(args: VaultArgs) -> anyhow::Result<()> {
    let (vault, org) = open(args).await?;
    let Rewrapped { rewrapped, unchanged, abandoned, failed } = vault.rewrap(org, ABANDONED_AFTER).await?;
    note!(
        "{rewrapped} secrets are wrapped by the current key now, {unchanged} were before; {abandoned} of no record were destroyed"
    );
    if failed > 0 {
        bail!("{failed} secrets stay as they were: see the log, keep the old keys in the ring, and do it again");
    }
    Ok(())
}

async fn status(args: VaultArgs) -> anyhow::Result<()> {
    let (vault, org) = open(args).await?;
    let VaultStatus { by_key, destroyed, unreadable } = vault.status(org).await?;
    for (key, secrets) in by_key {
        say!("{key:<32}  {secrets}")?;
    }
    note!("{destroyed} secrets were destroyed, {unreadable} cannot be read");
    vault.check().await.context("what shows the right key ring is not opened by this one")?;
    Ok(())
}
