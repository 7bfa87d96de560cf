//! A disk that is full under NATS: the shard says so, and goes on once there is space and the server was started again.

use std::{path::PathBuf, process::Command};

use async_nats::jetstream;
use orgstream::servers::Nats;
use orgstream_events::OrgId;
use orgstream_stream::{Log, LogOptions, SyncMode};
use uuid::Uuid;

use crate::{
    cluster::eventually,
    parking::{commit, created, fresh_record},
    support::{TempDir, commit_keys, connect_as},
};

/// A disk of its own, as only an administrator can make one.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let size = ["-t", "tmpfs", "-o", "size=24m", "tmpfs"];
        let mounted = Command::new("mount").args(size).arg(&at).output().ok()?;
        mounted.status.success().then_some(Self(at))
    }

    fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=256m"]).arg(&self.0).status().unwrap();
        assert!(grown.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_disk_was_full_says_so_and_goes_on_after_a_restart() {
    let dir = TempDir::new();
    let Some(disk) = Disk::mount(dir.path().join("nats/jetstream")) else {
        eprintln!("no disk can be mounted here; what a shard in trouble says of itself is tested beside its source");
        return;
    };
    let mut nats = Nats::start(&dir.path().join("nats"), true).await.unwrap();
    let options = LogOptions::new(&nats.url, commit_keys());
    let options = LogOptions { creds: Some(nats.access.admin()), shards: 1, sync: SyncMode::Durable, ..options };
    let log = Log::connect(&options).await.unwrap();
    log.ensure_streams().await.unwrap();
    let org = log.place(OrgId::from_uuid(Uuid::now_v7())).await.unwrap();
    let write = async || {
        let commit = commit(org.org, fresh_record(), 0, vec![created("written")]);
        log.append(&org, &commit, 0, None).await
    };
    write().await.unwrap();
    assert_eq!(log.troubles(), Vec::new());

    let jetstream = jetstream::new(connect_as(&nats.url, &nats.access.admin()).await);
    for _ in 0..100 {
        let filler = jetstream.publish(format!("ev.0.{}.record.filler", org.org), vec![0; 500_000].into()).await;
        if filler.unwrap().await.is_err() {
            break;
        }
    }
    write().await.unwrap_err();
    let troubles = log.troubles();
    assert!(troubles.len() == 1 && troubles[0].0 == org.shard, "{troubles:?}");
    disk.grow();
    nats.restart().await.unwrap();
    eventually("the shard to take appends again", async || write().await.ok()).await;
    assert_eq!(log.troubles(), Vec::new());
    nats.stop().await;
}
