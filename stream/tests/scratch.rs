#![allow(missing_docs, dead_code, clippy::all, clippy::pedantic)]
#[path = "../../tests/it/stream.rs"]
mod stream;
mod support;

use crate::support::Nats;
use futures_util::StreamExt;
use orgstream_events::*;
use orgstream_stream::*;
use std::time::{Duration, Instant};
use stream::{options, org_number, record_commit, record_number};

fn cpu(pid: u32) -> f64 {
    let s = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

async fn show(c: &async_nats::Client, what: &str, msgs: Vec<(&str, Vec<(&str, &str)>)>) {
    let n = msgs.len();
    for (i, (s, hs)) in msgs.into_iter().enumerate() {
        let mut h = async_nats::HeaderMap::new();
        for (k, v) in hs {
            h.insert(k, v);
        }
        if i + 1 < n {
            c.publish_with_headers(s.to_owned(), h, "x".into()).await.unwrap();
        } else {
            let r = c.request_with_headers(s.to_owned(), h, "x".into()).await.unwrap();
            println!("{what}: {}", String::from_utf8_lossy(&r.payload));
        }
    }
}

#[tokio::test]
async fn experiment() {
    let nats = Nats::start(true).await;
    let log = Log::connect(&options(&nats)).await.unwrap();
    println!("{:?}", log.ensure_streams().await.unwrap());
    let c = log.client();
    const E: &str = "Nats-Expected-Last-Subject-Sequence";
    let b = |id: &'static str, seq: &'static str| vec![("Nats-Batch-Id", id), ("Nats-Batch-Sequence", seq)];
    let mk = |id, seq, extra: &[(&'static str, &'static str)]| {
        let mut v = b(id, seq);
        v.extend_from_slice(extra);
        v
    };
    show(c, "plain a msgid m1", vec![("ev.0.a", vec![(E, "0"), ("Nats-Msg-Id", "m1")])]).await;
    show(c, "plain again same expectation", vec![("ev.0.a", vec![(E, "0"), ("Nats-Msg-Id", "m1")])]).await;
    show(c, "plain again right expectation", vec![("ev.0.a", vec![(E, "1"), ("Nats-Msg-Id", "m1")])]).await;
    show(c, "other subject same msgid", vec![("ev.0.b", vec![(E, "0"), ("Nats-Msg-Id", "m1")])]).await;
    show(
        c,
        "batch 3 ok",
        vec![
            ("ev.0.c", mk("B1", "1", &[(E, "0"), ("Nats-Msg-Id", "b1")])),
            ("ev.0.d", mk("B1", "2", &[(E, "0"), ("Nats-Msg-Id", "b2")])),
            ("ev.0.e", mk("B1", "3", &[(E, "0"), ("Nats-Msg-Id", "b3"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(
        c,
        "same batch again",
        vec![
            ("ev.0.c", mk("B2", "1", &[(E, "0"), ("Nats-Msg-Id", "b1")])),
            ("ev.0.d", mk("B2", "2", &[(E, "0"), ("Nats-Msg-Id", "b2")])),
            ("ev.0.e", mk("B2", "3", &[(E, "0"), ("Nats-Msg-Id", "b3"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(
        c,
        "batch with old msgid on other subject, right expectations",
        vec![
            ("ev.0.f", mk("B3", "1", &[(E, "0"), ("Nats-Msg-Id", "b1")])),
            ("ev.0.g", mk("B3", "2", &[(E, "0"), ("Nats-Msg-Id", "b9"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(
        c,
        "batch with twice the same msgid",
        vec![
            ("ev.0.f", mk("B4", "1", &[(E, "0"), ("Nats-Msg-Id", "q1")])),
            ("ev.0.g", mk("B4", "2", &[(E, "0"), ("Nats-Msg-Id", "q1"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(
        c,
        "batch stale first",
        vec![
            ("ev.0.c", mk("B5", "1", &[(E, "77"), ("Nats-Msg-Id", "r1")])),
            ("ev.0.g", mk("B5", "2", &[(E, "0"), ("Nats-Msg-Id", "r2"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(
        c,
        "batch stale last",
        vec![
            ("ev.0.g", mk("B6", "1", &[(E, "0"), ("Nats-Msg-Id", "r3")])),
            ("ev.0.c", mk("B6", "2", &[(E, "77"), ("Nats-Msg-Id", "r4"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(
        c,
        "plain g after aborted batches, msgid r2 (was in the aborted)",
        vec![("ev.0.g", vec![(E, "0"), ("Nats-Msg-Id", "r2")])],
    )
    .await;
    show(
        c,
        "same subject twice in a batch, second expects the first batch seq",
        vec![
            ("ev.0.h", mk("B7", "1", &[(E, "0")])),
            ("ev.0.h", mk("B7", "2", &[(E, "0"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(c, "dup of a batch member as a plain publish", vec![("ev.0.d", vec![(E, "3"), ("Nats-Msg-Id", "b2")])]).await;
    show(
        c,
        "batch missing member",
        vec![
            ("ev.0.k", mk("B8", "1", &[(E, "0")])),
            ("ev.0.l", mk("B8", "3", &[(E, "0"), ("Nats-Batch-Commit", "1")])),
        ],
    )
    .await;
    show(c, "commit of an unknown batch", vec![("ev.0.l", mk("B9", "3", &[(E, "0"), ("Nats-Batch-Commit", "1")]))])
        .await;
    let r = c.request("$JS.API.STREAM.MSG.GET.EV_0", r#"{"seq":3}"#.into()).await.unwrap();
    println!("{}", String::from_utf8_lossy(&r.payload));
    let r = c.request("$JS.API.STREAM.INFO.EV_0", "".into()).await.unwrap();
    println!("{}", String::from_utf8_lossy(&r.payload));
    for body in [
        r#"{"seq":1,"next_by_subj":"ev.0.>","batch":2}"#,
        r#"{"seq":1,"next_by_subj":"ev.0.>","batch":10,"max_bytes":1}"#,
        r#"{"seq":1,"next_by_subj":"ev.0.c","batch":10}"#,
        r#"{"seq":1,"next_by_subj":"ev.0.zzz","batch":10}"#,
        r#"{"seq":1000,"next_by_subj":"ev.0.>","batch":10}"#,
    ] {
        let inbox = c.new_inbox();
        let mut s = c.subscribe(inbox.clone()).await.unwrap();
        c.publish_with_reply("$JS.API.DIRECT.GET.EV_0", inbox, body.into()).await.unwrap();
        println!("DIRECT {body}");
        while let Ok(Some(m)) = tokio::time::timeout(Duration::from_millis(300), s.next()).await {
            println!("   status {:?} {:?} {:?}", m.status, m.description, m.headers);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_append() {
    let only = std::env::var("ONLY").is_ok();
    for (sync, modes) in [
        (true, if only { vec![SyncMode::Durable] } else { vec![SyncMode::Durable, SyncMode::Relaxed] }),
        (false, if only { vec![] } else { vec![SyncMode::Relaxed, SyncMode::Durable] }),
    ] {
        for mode in modes {
            for writers in (if only { vec![16usize, 64, 256] } else { vec![1usize, 16, 64, 256] }) {
                for spread in [1u16, 16] {
                    let nats = Nats::start(sync).await;
                    let log = Log::connect(&LogOptions { sync: mode, shards: spread, ..options(&nats) }).await.unwrap();
                    log.ensure_streams().await.unwrap();
                    let until = Instant::now() + Duration::from_millis(1500);
                    let started = Instant::now();
                    let c0 = cpu(nats.pid());
                    let mut tasks = Vec::new();
                    for w in 0..writers {
                        let log = log.clone();
                        tasks.push(tokio::spawn(async move {
                            let org = org_number(w as u64);
                            let placement = log.place(org).await.unwrap();
                            let mut expected = 0;
                            let mut n = 0u64;
                            let mut worst = Duration::ZERO;
                            let mut lat = Vec::new();
                            while Instant::now() < until {
                                let commit = record_commit(org, record_number(w as u64), (w as u64) << 32 | n, "x");
                                let t = Instant::now();
                                expected = log.append(&placement, &commit, expected, None).await.unwrap().seq;
                                worst = worst.max(t.elapsed());
                                lat.push(t.elapsed());
                                n += 1;
                            }
                            (n, lat)
                        }));
                    }
                    let mut total = 0;
                    let mut lat = Vec::new();
                    for t in tasks {
                        let (n, l) = t.await.unwrap();
                        total += n;
                        lat.extend(l);
                    }
                    lat.sort();
                    println!(
                        "sync_always={sync} {mode:?} writers={writers} shards={spread}: {:.0}/s p50 {:?} p99 {:?} max {:?} server cpu {:.2}",
                        total as f64 / started.elapsed().as_secs_f64(),
                        lat[lat.len() / 2],
                        lat[lat.len() * 99 / 100],
                        lat[lat.len() - 1],
                        cpu(nats.pid()) - c0
                    );
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_cursor() {
    let nats = Nats::start(false).await;
    let log = Log::connect(&LogOptions { sync: SyncMode::Durable, ..options(&nats) }).await.unwrap();
    log.ensure_streams().await.unwrap();
    let org = org_number(1);
    let placement = log.place(org).await.unwrap();
    let t = Instant::now();
    let total = 200_000u64;
    futures_util::stream::iter(0..total)
        .for_each_concurrent(1000, |n| {
            let (log, placement) = (&log, &placement);
            async move {
                log.append(
                    placement,
                    &record_commit(org, record_number(n), n, "x"),
                    0,
                    Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
                )
                .await
                .unwrap();
            }
        })
        .await;
    println!("append {total} in {:?}", t.elapsed());
    for _ in 0..3 {
        let mut cursor = log.cursor(placement.shard, 0).await.unwrap();
        let t = Instant::now();
        let c0 = cpu(std::process::id());
        let s0 = cpu(nats.pid());
        for _ in 0..total {
            cursor.next().await.unwrap();
        }
        println!(
            "cursor {:.0}/s, cpu client {:.2} server {:.2}",
            total as f64 / t.elapsed().as_secs_f64(),
            cpu(std::process::id()) - c0,
            cpu(nats.pid()) - s0
        );
    }
    let t = Instant::now();
    let mut n = 0;
    let replay = log.replay(&placement, 1);
    futures_util::pin_mut!(replay);
    while let Some(m) = replay.next().await {
        m.unwrap();
        n += 1;
    }
    println!("replay {n}: {:.0}/s", n as f64 / t.elapsed().as_secs_f64());
    let mut cursors = Vec::new();
    for shard in log.shards() {
        cursors.push(log.cursor(shard, log.shard_state(shard).await.unwrap().last_seq).await.unwrap());
    }
    let (c0, s0) = (cpu(std::process::id()), cpu(nats.pid()));
    let _ = tokio::time::timeout(
        Duration::from_secs(20),
        futures_util::future::join_all(cursors.iter_mut().map(|c| c.next())),
    )
    .await;
    println!("16 idle cursors 20 s: client {:.3} s server {:.3} s", cpu(std::process::id()) - c0, cpu(nats.pid()) - s0);
}
