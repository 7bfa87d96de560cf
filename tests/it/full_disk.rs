//! A full disk under a server: a part that accepts no writes reports that, and continues once there is space.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use async_nats::jetstream;
use orgstream::{
    dev::stack::{Stack, StackOptions},
    telemetry,
};
use orgstream_events::OrgId;
use orgstream_servers::Nats;
use orgstream_stream::{Log, LogOptions, SyncMode};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    cluster::{Answer, Cluster, ClusterOptions, create, eventually},
    history::History,
    parking::{commit, created, fresh_record, parked},
    support::{TempDir, commit_keys, connect_as},
};

/// A disk of its own, which only an administrator can make.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("size={size},mode=755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).output().ok()?;
        if !mounted.status.success() {
            eprintln!("no disk can be mounted here; what is said of a full one is tested beside its source");
            return None;
        }
        Some(Self(at))
    }

    fn grow(&self, size: &str) {
        let size = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap().success());
    }

    /// Fills it completely.
    fn fill(&self) {
        let into = format!("of={}", self.filler().display());
        let output = Command::new("dd").args(["if=/dev/zero", "bs=64k", &into]).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

/// Publishes directly until the stream of the first shard accepts no more.
async fn fill_stream(nats: (&str, &Path), org: OrgId) {
    let jetstream = jetstream::new(connect_as(nats.0, nats.1).await);
    for _ in 0..100 {
        let filler = jetstream.publish(format!("ev.0.{org}.record.filler"), vec![0; 500_000].into()).await;
        if filler.unwrap().await.is_err() {
            return;
        }
    }
}

/// The answer of `/readyz`.
async fn readiness(base: &str) -> Result<(u16, String), reqwest::Error> {
    let answer = reqwest::get(format!("{base}/readyz")).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_disk_was_full_says_so_and_goes_on_after_a_restart() {
    let dir = TempDir::new();
    let Some(disk) = Disk::mount(dir.path().join("nats/jetstream"), "24m") else { return };
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

    fill_stream((&nats.url, &nats.access.admin()), org.org).await;
    write().await.unwrap_err();
    let troubles = log.troubles();
    assert!(troubles.len() == 1 && troubles[0].0 == org.shard, "{troubles:?}");
    disk.grow("256m");
    nats.restart().await.unwrap();
    eventually("the shard to take appends again", async || write().await.ok()).await;
    assert_eq!(log.troubles(), Vec::new());
    nats.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_starts_nats_again_once_its_disk_has_space_and_not_before() {
    let dir = TempDir::new();
    let Some(disk) = Disk::mount(dir.path().join("nats/jetstream"), "24m") else { return };
    let options = StackOptions { shards: 1, worker: None, ..StackOptions::new(dir.path()) };
    let mut stack = Stack::start(options, telemetry::metrics_once().unwrap(), |_| {}).await.unwrap();
    let (log, base, stop) = (stack.log.clone(), stack.base_url.clone(), CancellationToken::new());
    let (url, admin, pid) = (stack.nats.url.clone(), stack.nats.access.admin(), stack.nats.pid());
    let lives = || Path::new(&format!("/proc/{pid}")).exists();
    let scenario = async {
        let org = log.place(OrgId::from_uuid(Uuid::now_v7())).await.unwrap();
        let write = async || {
            let commit = commit(org.org, fresh_record(), 0, vec![created("written")]);
            log.append(&org, &commit, 0, None).await
        };
        write().await.unwrap();
        let ready = async || readiness(&base).await.ok().filter(|(status, _)| *status == 200);
        // It writes the kinds of a new installation when it starts, and ends if that fails for a minute.
        eventually("the process to be ready", ready).await;
        fill_stream((&url, &admin), org.org).await;
        write().await.unwrap_err();
        let (status, text) = readiness(&base).await.unwrap();
        assert!(status == 503 && text.contains("shard 0"), "{text}");
        // A restart while there is no room gains nothing.
        write().await.unwrap_err();
        assert!(lives(), "nats-server was started again on a full disk");
        disk.grow("256m");
        eventually("the shard to take appends again", async || write().await.ok()).await;
        assert!(!lives());
        eventually("the process to be ready", ready).await;
        stop.cancel();
    };
    tokio::join!(scenario, stack.watch_over(&stop));
    stack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_postgres_loses_and_parks_nothing_and_is_over_when_there_is_room() {
    let dir = TempDir::new();
    let Some(disk) = Disk::mount(dir.path().join("postgres"), "200m") else { return };
    let mut cluster = Cluster::start_in(dir, ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    assert!(cluster.postgres.data_dir().starts_with(&disk.0), "the tables are elsewhere");
    let tenant = cluster.tenant("full").await;
    cluster.client.command(&tenant, "before", &create("before")).await.expect(201);
    cluster.until_projected(&tenant).await;

    disk.fill();
    // The log accepts what the tables cannot: a command either is accepted and applied later, or is rejected as a whole.
    let mut accepted = Vec::new();
    let says_so = eventually("somebody to notice", async || {
        let name = format!("full-{}", accepted.len());
        let request = cluster.client.request(Method::POST, &tenant.path("commands"), &tenant.key);
        let large =
            json!({"type": "create_record", "kind": "model", "data": {"name": name, "notes": "x".repeat(100_000)}});
        let answer = Answer::of(request.header("Idempotency-Key", &name).json(&large)).await;
        match answer.map(|answer| (answer.status, answer)) {
            Some((201, answer)) => accepted.push(answer.text("id")),
            Some((503, _)) | None => {}
            Some((status, answer)) => panic!("{status}: {answer:?}"),
        }
        for program in std::iter::once(&cluster.api).chain(&cluster.workers) {
            if let Some((503, view)) = program.readiness().await
                && view.to_string().contains("database")
            {
                return Some(view.to_string());
            }
        }
        None
    })
    .await;
    eprintln!("on a full disk: {says_so}");
    disk.make_room();
    // A server that the full disk has ended is restarted by its supervisor.
    if cluster.postgres.ended().is_some() {
        eprintln!("PostgreSQL had ended");
        cluster.postgres.restart().await.unwrap();
    }
    cluster.ready().await;
    let made = eventually("commands to be taken", async || {
        let answer = cluster.client.command(&tenant, "after", &create("after")).await;
        (answer.status == 201).then_some(answer)
    })
    .await;
    accepted.push(made.text("id"));
    cluster.until_projected(&tenant).await;
    for id in accepted {
        cluster.client.get(&tenant.key, &tenant.path(&format!("records/{id}"))).await.expect(200);
    }
    assert_eq!(parked(&cluster, &tenant).await, Vec::<Value>::new());
    let mut database = cluster.superuser().await;
    History::read(&cluster.log().await, tenant.id).await.assert_projected(&mut database).await;
    // Before the folder that it is mounted in.
    drop(disk);
}
