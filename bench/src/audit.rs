//! The cost of a verifiable audit log: a leaf beside projecting an event, a proof and a head in a long log, an export
//! and its verification beside hashing the same bytes.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use orgstream::{
    audit::{
        export::Export,
        signer::{Pace, Signer},
    },
    client::Api,
    config::DatabaseArgs,
    terminal::out::say,
};
use orgstream_projections::{
    BoundOrg,
    audit::{self, SigningDatabase},
};
use orgstream_transparency::{Frontier, LogKey, LogSigner, Plan, leaf_hash, verify_inclusion};
use orgstream_verifier::{Outcome, Request, verify};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{load, project, rig::Rig, warn_of_debug_build};

/// What it costs that the audit log can be verified: a leaf, a proof and a head in a long log, an export, a verification.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Events of the long log.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    events: u64,
    /// Events that are projected, exported and verified.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    exported: u64,
    /// Proofs that are asked for.
    #[arg(long, default_value_t = 500, value_name = "N")]
    proofs: u64,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Figures {
    events: u64,
    /// SHA-256 alone over the same bytes, and with the tree, each per event.
    raw_hash_us: f64,
    leaf_us: f64,
    /// Projecting an event of one org with a backlog, into all pipelines.
    projecting_us: f64,
    /// The first head of a log that had none: all its tiles.
    first_head_s: f64,
    /// A head after 256 more events.
    next_head_ms: f64,
    proof_ms_p50: f64,
    proof_ms_p99: f64,
    /// An export's events and bytes, and the seconds that it, its verification and SHA-256 of the same bytes took.
    exported: u64,
    bundle_mb: f64,
    export_s: f64,
    verify_s: f64,
    hash_s: f64,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let mut rig = Rig::start(false).await?;
    let figures = measure(&mut rig, &args).await;
    rig.stop().await?;
    let figures = figures?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&figures)?)?;
        return Ok(());
    }
    let Figures { events, raw_hash_us, leaf_us, projecting_us, exported, bundle_mb, .. } = figures;
    let Figures { first_head_s, next_head_ms, proof_ms_p50, proof_ms_p99, export_s, verify_s, hash_s, .. } = figures;
    let share = 100.0 * leaf_us / projecting_us;
    say!("a leaf and its part of the tree   {leaf_us:.2} µs (SHA-256 of the same bytes: {raw_hash_us:.2} µs)")?;
    say!("projecting an event               {projecting_us:.1} µs, of which the leaf is {share:.1} %")?;
    say!("first head over {events} events   {first_head_s:.1} s")?;
    say!("a head after 256 more             {next_head_ms:.1} ms")?;
    say!("a proof                           {proof_ms_p50:.2} ms median, {proof_ms_p99:.2} ms p99")?;
    let speed = |seconds: f64| format!("{:.0} events/s, {:.0} MB/s", exported as f64 / seconds, bundle_mb / seconds);
    say!("export of {exported} events        {} ({bundle_mb:.0} MB)", speed(export_s))?;
    say!("its verification                  {}", speed(verify_s))?;
    say!("SHA-256 of the same bytes         {}", speed(hash_s))?;
    Ok(())
}

async fn measure(rig: &mut Rig, args: &Args) -> anyhow::Result<Figures> {
    let (raw_hash_us, leaf_us) = hashing(rig)?;
    let projecting_us = project::one_org(rig, args.exported).await?.as_secs_f64() * 1e6 / args.exported as f64;
    let org = BoundOrg::named_by_operator(orgstream_events::OrgId::fresh(1, rand::random()));
    rig.stack.db.invent_audit_log(org, args.events).await?;
    let database = DatabaseArgs {
        database_url: rig.stack.database_url.clone().into(),
        database_password: Some(rig.stack.secrets.database_password.clone().into()),
        login_passwords: Vec::new(),
        database_connections: None,
        log_key: None,
    };
    let db = SigningDatabase::connect(&database.options(2)).await?;
    let key = LogSigner::from_seed("bench".parse()?, &rand::random());
    let pin = key.verifier().clone();
    let signer = Signer::new(db.clone(), key, "quorum none\n", Pace::default())?;
    db.say_policy(&pin.to_string(), "quorum none\n", &[]).await?;
    let begun = Instant::now();
    let head = signer.sign(org).await?.context("the log has a head")?;
    let first_head = begun.elapsed();

    let mut times = Vec::new();
    for _ in 0..args.proofs {
        let index = rand::random_range(0..head.size);
        let begun = Instant::now();
        let mut tx = rig.stack.db.read(org).await?;
        let entry = audit::from_idx(&mut tx, index, 1).await?.entries;
        let proof = audit::prove(&mut tx, &Plan::inclusion(index, head.size)?).await?;
        times.push(begun.elapsed());
        let header = entry.first().context("the event is there")?;
        verify_inclusion(leaf_hash(&header.sealed.header), index, head, &proof)?;
    }
    times.sort_unstable();
    let at =
        |share: f64| times.get((times.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or_default();
    rig.stack.db.invent_audit_log(org, 256).await?;
    let begun = Instant::now();
    signer.sign(org).await?;
    let next_head = begun.elapsed();
    let stop = CancellationToken::new();
    let signing = tokio::spawn(signer.run(stop.clone()));
    let bundle = std::env::temp_dir().join(format!("orgstream-bench-audit-{}", std::process::id()));
    let taken = take_away(rig, pin, &bundle).await;
    let _ = fs::remove_dir_all(&bundle);
    stop.cancel();
    signing.await?;
    let TakenAway { events: exported, bytes, export, verify, hash } = taken?;
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    Ok(Figures {
        exported,
        bundle_mb: bytes as f64 / 1e6,
        export_s: export.as_secs_f64(),
        verify_s: verify.as_secs_f64(),
        hash_s: hash.as_secs_f64(),
        events: args.events,
        raw_hash_us,
        leaf_us,
        projecting_us,
        first_head_s: first_head.as_secs_f64(),
        next_head_ms: ms(next_head),
        proof_ms_p50: ms(at(0.5)),
        proof_ms_p99: ms(at(0.99)),
    })
}

/// An export, and the durations of it and its verification.
struct TakenAway {
    events: u64,
    bytes: u64,
    export: Duration,
    verify: Duration,
    hash: Duration,
}

/// Exports the log of the rig's organization, verifies it, and hashes all of its bytes.
async fn take_away(rig: &Rig, pin: LogKey, bundle: &Path) -> anyhow::Result<TakenAway> {
    let api = Api::with(&rig.stack.base_url, rig.api_key.clone())?;
    let begun = Instant::now();
    let exported = Export::new(api, &rig.org.to_string(), bundle.to_owned()).run(&ProgressBar::new(0)).await?;
    let export = begun.elapsed();
    let request = Request { bundle: bundle.to_owned(), pin, policy: None, known: Vec::new() };
    let folder = bundle.to_owned();
    let (verify, bytes, hash) = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        let report = verify(&request);
        let verified = begun.elapsed();
        ensure!(report.outcome() == Outcome::NotWitnessed, "the export does not verify: {:?}", report.outcome());
        let (mut hash, begun) = (Sha256::new(), Instant::now());
        let bytes = hash_all(&folder, &mut hash)?;
        std::hint::black_box(hash.finalize());
        anyhow::Ok((verified, bytes, begun.elapsed()))
    })
    .await??;
    Ok(TakenAway { events: exported.events, bytes, export, verify, hash })
}

fn hash_all(folder: &Path, hash: &mut Sha256) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            bytes += hash_all(&entry.path(), hash)?;
        } else {
            let content = fs::read(entry.path())?;
            bytes += content.len() as u64;
            hash.update(&content);
        }
    }
    Ok(bytes)
}

/// Microseconds for the hash of an event's header alone, and for the leaf with its part of the tree, stored after each.
fn hashing(rig: &Rig) -> anyhow::Result<(f64, f64)> {
    const ROUNDS: u32 = 200_000;
    let commit = load::commit(rig.org, 1)?;
    let header = &commit.events.first().context("a commit has events")?.header;
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        std::hint::black_box(Sha256::digest(std::hint::black_box(header)));
    }
    let raw = begun.elapsed();
    let mut tree = Frontier::default();
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        tree.append(leaf_hash(std::hint::black_box(header)));
        std::hint::black_box(tree.to_bytes());
    }
    let leaf = begun.elapsed();
    let us = |time: Duration| time.as_secs_f64() * 1_000_000.0 / f64::from(ROUNDS);
    Ok((us(raw), us(leaf)))
}
