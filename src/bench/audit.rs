//! What the audit log's tree costs: a leaf beside projecting an event, a proof in a long log, and a head.

use std::time::{Duration, Instant};

use anyhow::Context;
use orgstream_projections::{
    BoundOrg,
    audit::{self, SigningDatabase},
};
use orgstream_transparency::{Frontier, LogSigner, Plan, leaf_hash, verify_inclusion};
use serde::Serialize;

use super::{load, rig::Rig};
use crate::{
    audit::signer::{Pace, Signer},
    config::DatabaseArgs,
};

/// What the audit log's tree costs: a leaf, a proof in a long log, a head.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Events of the long log.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    events: u64,
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
    /// SHA-256 alone over the same bytes, and with tree, each per event.
    raw_hash_us: f64,
    leaf_us: f64,
    /// The first head of a log that had none: all its tiles.
    first_head_s: f64,
    /// A head after 256 more events.
    next_head_ms: f64,
    proof_ms_p50: f64,
    proof_ms_p99: f64,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let rig = Rig::start(false).await?;
    let figures = measure(&rig, &args).await;
    rig.stop().await?;
    let figures = figures?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    let Figures { events, raw_hash_us, leaf_us, first_head_s, next_head_ms, proof_ms_p50, proof_ms_p99 } = figures;
    println!("a leaf and its part of the tree   {leaf_us:.2} µs (SHA-256 of the same bytes: {raw_hash_us:.2} µs)");
    println!("first head over {events} events   {first_head_s:.1} s");
    println!("a head after 256 more             {next_head_ms:.1} ms");
    println!("a proof                           {proof_ms_p50:.2} ms median, {proof_ms_p99:.2} ms p99");
    Ok(())
}

async fn measure(rig: &Rig, args: &Args) -> anyhow::Result<Figures> {
    let (raw_hash_us, leaf_us) = hashing(rig)?;
    let org = BoundOrg::named_by_operator(orgstream_events::OrgId::fresh(1, rand::random()));
    rig.stack.db.invent_audit_log(org, args.events).await?;
    let database = DatabaseArgs {
        database_url: rig.stack.database_url.clone(),
        database_password: Some(rig.stack.secrets.database_password.clone()),
        database_connections: 2,
    };
    let db = SigningDatabase::connect(&database.options(2)).await?;
    let key = LogSigner::from_seed("bench".parse()?, &rand::random());
    let signer = Signer::new(db, key, "quorum none\n", Pace::default())?;
    let begun = Instant::now();
    let head = signer.sign(org).await?.context("the log has a head")?;
    let first_head = begun.elapsed();

    let mut times = Vec::new();
    for _ in 0..args.proofs {
        let index = rand::random_range(0..head.size);
        let begun = Instant::now();
        let mut tx = rig.stack.db.read(org).await?;
        let entry = audit::from_idx(&mut tx, index, 1).await?;
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
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    Ok(Figures {
        events: args.events,
        raw_hash_us,
        leaf_us,
        first_head_s: first_head.as_secs_f64(),
        next_head_ms: ms(next_head),
        proof_ms_p50: ms(at(0.5)),
        proof_ms_p99: ms(at(0.99)),
    })
}

/// Microseconds for the hash of an event's header alone, and for the leaf with its part of the tree, stored after each.
fn hashing(rig: &Rig) -> anyhow::Result<(f64, f64)> {
    use sha2::{Digest as _, Sha256};

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
