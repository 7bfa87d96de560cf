//! Late answers of the log: a stored command is never reported as a lost race.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use orgstream::{
    adapters::dns::SystemDns,
    commands::{
        handler::CommandHandler,
        request::{Caller, Request},
    },
};
use orgstream_domain::{Command, Scopes, credentials::key::Pepper};
use orgstream_events::{Actor, ActorType, Context, PLATFORM_ORG, Role};
use orgstream_stream::{Log, LogOptions, SyncMode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use crate::support::{Nats, commit_keys};

/// Longer than a command retries against other writers, and than one try's timeout; shorter than the timeout of all
/// tries.
const LATE: Duration = Duration::from_millis(5_500);

/// A proxy to the server that, once it is armed, delays every answer from the next event on.
async fn way_to(url: &str, armed: Arc<AtomicBool>) -> String {
    let (_, server) = url.split_once("://").unwrap();
    let server = server.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_server, mut to_server) = TcpStream::connect(&server).await.unwrap().into_split();
            let (mut from_client, mut to_client) = client.into_split();
            let late = Arc::new(AtomicBool::new(false));
            let (armed, is_late) = (Arc::clone(&armed), Arc::clone(&late));
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                    let is_event = bytes[..count].windows(8).any(|text| text == b"HPUB ev.");
                    if is_event && armed.swap(false, Ordering::SeqCst) {
                        is_late.store(true, Ordering::SeqCst);
                    }
                    if to_server.write_all(&bytes[..count]).await.is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                    if late.swap(false, Ordering::SeqCst) {
                        sleep(LATE).await;
                    }
                    if to_client.write_all(&bytes[..count]).await.is_err() {
                        return;
                    }
                }
                let _ = copy(&mut from_server, &mut to_client).await;
            });
        }
    });
    way
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_answer_came_late_is_a_success_and_no_lost_race() {
    let nats = Nats::start(false).await;
    let armed = Arc::new(AtomicBool::new(false));
    let direct = LogOptions {
        creds: Some(nats.access.admin()),
        shards: 1,
        sync: SyncMode::Relaxed,
        ..LogOptions::new(&nats.url, commit_keys())
    };
    assert_eq!(Log::connect(&direct).await.unwrap().ensure_streams().await.unwrap(), []);
    let url = way_to(&nats.url, Arc::clone(&armed)).await;
    let log = Log::connect(&LogOptions { url, ..direct }).await.unwrap();
    let pepper = Pepper::new(b"a pepper that is long enough for a test").unwrap();
    let handler = CommandHandler::new(log, pepper, "local".to_owned(), Arc::new(SystemDns));
    let caller = Caller {
        org: PLATFORM_ORG,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        role: Role::Owner,
        scopes: Scopes::ALL,
        creator: None,
        proof: None,
        right: None,
        context: Context::default(),
        request_id: None,
        trace: None,
    };
    let register = async |kind: &str| {
        let command = json!({"type": "register_kind", "kind": kind, "title": kind, "visibility": "private",
            "cost": 1, "schema": {"type": "object"}});
        let command = Command::read(command).unwrap();
        let request = Request { idempotency_key: Some(kind.to_owned()), ..command.into() };
        handler.handle(&caller, request).await
    };
    register("alpha").await.unwrap();
    armed.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let answered = register("beta").await;
    assert!(begun.elapsed() >= LATE, "the answer did not come late");
    let answered = answered.unwrap();
    assert_eq!(answered.version, 1);
    assert_eq!(register("beta").await.unwrap().position, answered.position);
}
