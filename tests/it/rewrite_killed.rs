//! The rewrite of a shard by the command line, killed at each of its steps and run again.

use std::{
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use orgstream_stream::{Erased, Placement, RewriteStep};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::{
    rewrite::{delivered, erase, has_bytes, messages_of, write},
    stream::{neighbours, open, options, record_commit, record_number},
    support::{COMMIT_KEYS, Nats},
};

const PATIENCE: Duration = Duration::from_secs(60);
const STEPS: [RewriteStep; 9] = [
    RewriteStep::Copy,
    RewriteStep::Erase,
    RewriteStep::CopyAgain,
    RewriteStep::Compare,
    RewriteStep::Fence,
    RewriteStep::Switch,
    RewriteStep::Delete,
    RewriteStep::Promote,
    RewriteStep::Settle,
];

fn command(nats: &Nats, placement: &Placement, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orgstream"));
    command.args(["shard", "rewrite", "--shards", "4", "--shard", &placement.shard.to_string()]).args(more);
    command.env("ORGSTREAM_NATS_URL", &nats.url).env("ORGSTREAM_NATS_CREDS", nats.access.admin());
    command.env("ORGSTREAM_COMMIT_KEYS", COMMIT_KEYS).kill_on_drop(true);
    command
}

async fn finish(command: &mut Command) -> Output {
    timeout(PATIENCE, command.output()).await.expect("the command to end").unwrap()
}

#[tokio::test]
async fn a_rewrite_may_be_killed_at_every_step() {
    let nats = Nats::start(false).await;
    let log = open(&options(&nats)).await;
    let orgs = neighbours(&log, STEPS.len() + 1).await;
    let (kept, shard) = (&orgs[0], orgs[0].shard);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(log.clone(), kept.clone(), 1, Arc::clone(&stop)));
    let mut erased = Vec::new();
    for (step, gone) in STEPS.iter().zip(&orgs[1..]) {
        let canary = format!("canary-of-{}", gone.org);
        for number in 0..5 {
            let commit = record_commit(gone.org, record_number(number), number, &canary);
            log.append(gone, &commit, 0, None).await.unwrap();
        }
        let fence = erase(&log, gone).await;
        let plan = finish(&mut command(&nats, kept, &["--dry-run"])).await;
        assert!(String::from_utf8_lossy(&plan.stdout).contains(&gone.org.to_string()), "{plan:?}");

        let mut killed = command(&nats, kept, &[]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(killed.stderr.take().unwrap()).lines();
        let has_begun = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.ends_with(&step.to_string()) {
                    return true;
                }
            }
            false
        };
        assert!(timeout(PATIENCE, has_begun).await.expect("the step to begin"), "{step}");
        killed.kill().await.unwrap();

        let again = finish(&mut command(&nats, kept, &[])).await;
        assert!(again.status.success(), "after {step}: {}", String::from_utf8_lossy(&again.stderr));
        erased.push(Erased { org: gone.org, to: fence, messages: Some(5) });
        erased.sort_by_key(|erased| erased.org);
        assert_eq!(log.erased(shard).await.unwrap(), erased, "after {step}");
        assert!(messages_of(&log, gone).await.is_empty(), "after {step}");
    }
    stop.store(true, Ordering::Relaxed);
    let (acknowledged, slowest) = timeout(PATIENCE, writer).await.unwrap().unwrap();
    eprintln!("{} appended, slowest {slowest:?}", acknowledged.len());
    let stored = messages_of(&log, kept).await;
    assert!(stored.iter().map(|message| message.seq).eq(acknowledged.iter().map(|(seq, _)| *seq)));
    for (message, (_, commit)) in stored.iter().zip(&acknowledged) {
        assert_eq!(message.open(log.keys()).unwrap().commit.command_id, commit.command_id);
    }
    let list = Command::new(env!("CARGO_BIN_EXE_orgstream"))
        .args(["shard", "list", "--shards", "4", "--nats-url", &nats.url, "--commit-keys", COMMIT_KEYS])
        .env("ORGSTREAM_NATS_CREDS", nats.access.admin())
        .output();
    let list = String::from_utf8(timeout(PATIENCE, list).await.expect("the command to end").unwrap().stdout).unwrap();
    let line = list.lines().find(|line| line.contains(&format!(" EV_{shard}_g"))).expect("the line of the shard");
    let ends: Vec<&str> = line.split_whitespace().rev().take(3).collect();
    assert_eq!(ends, ["-", "0", "45"], "{list}");
    let state = log.shard_state(shard).await.unwrap();
    assert_eq!(state.messages + 5 * STEPS.len() as u64, state.last_seq);
    assert_eq!(delivered(&log, shard, 0, state.last_seq).await.len() as u64, state.messages);
    crate::cluster::eventually("the bytes to be gone", async || {
        (!has_bytes(nats.store(), b"canary-of-")).then_some(())
    })
    .await;
}
