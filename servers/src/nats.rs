//! A private nats-server with JetStream on disk, and with the accounts that production has.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use orgstream_events::{Cause, Chain, cause};
use orgstream_stream::broker::{self, AccessFiles};
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    ServerError,
    folder::{Folder, write_private},
    process::{Server, Spec, end_leftovers},
    tools,
};

const NAME: &str = "nats-server";
/// The folder of its accounts, inside its own.
const ACCESS: &str = "access";
/// Timeout of a start: a server with much in its streams reads it before it answers.
const READY_TIME: Duration = Duration::from_mins(2);
const STOP_TIME: Duration = Duration::from_secs(20);
/// Free bytes below which a disk counts as full: the size of a block of messages, the unit in which a stream is
/// written.
const LEAST_SPACE: u64 = 8 << 20;
/// Tries of a start when another process took a port in between.
const TRIES: usize = 4;

/// A running nats-server, stopped when dropped.
pub struct Nats {
    /// The URL for clients.
    pub url: String,
    /// The URL of its monitoring API, over HTTP.
    pub monitor_url: String,
    /// The credentials. Connections without any are denied.
    pub access: AccessFiles,
    ports: [u16; 2],
    program: PathBuf,
    server: Server,
    sync_always: bool,
    // Last, so that the folder is free only when the server is gone.
    folder: Folder,
}

impl Nats {
    /// Starts a server that keeps everything in `dir`, which is its own; returns when it answers.
    ///
    /// With `sync_always`, acknowledged messages are on disk. Without, a power failure can lose the last two minutes.
    pub async fn start(dir: &Path, sync_always: bool) -> Result<Self, ServerError> {
        let program = tools::nats_server().await?;
        let folder = Folder::take(dir)?;
        end_leftovers(&folder.join("children.json"), Signal::TERM, STOP_TIME).await?;
        let before = folder.join("jetstream/jetstream/$G/streams");
        if before.exists() {
            return Err(ServerError::BeforeAccounts { dir: before });
        }
        let mut access = AccessFiles::at(&folder.join(ACCESS));
        if !access.exist() {
            access = broker::make(&folder.join(ACCESS))?;
        }
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            let ports = folder.ports()?;
            match launch(&program, &folder, ports, sync_always).await {
                Ok(server) => {
                    let url = format!("nats://127.0.0.1:{}", ports[0]);
                    let monitor_url = format!("http://127.0.0.1:{}", ports[1]);
                    return Ok(Self { url, monitor_url, access, ports, program, server, sync_always, folder });
                }
                Err(error) if tries_left == 0 || !lost_a_port(&error) => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Returns the exit status, if it ended without being stopped.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.server.ended()
    }

    /// Whether the disk of its streams has room for more than a few of the largest messages.
    pub fn has_space(&self) -> bool {
        let disk = rustix::fs::statvfs(self.folder.join("jetstream"));
        disk.is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) > LEAST_SPACE)
    }

    /// Stops it gracefully.
    pub async fn stop(mut self) {
        self.server.stop(STOP_TIME).await;
    }

    /// Kills it as a crash would, and returns when it is gone.
    pub async fn kill9(&mut self) {
        self.server.kill().await;
    }

    /// Restarts it with the same data on the same ports; a running one is stopped first.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.server.stop(STOP_TIME).await;
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            match launch(&self.program, &self.folder, self.ports, self.sync_always).await {
                Ok(server) => {
                    self.server = server;
                    return Ok(());
                }
                Err(error) if tries_left == 0 || !lost_a_port(&error) => return Err(error),
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    }
}

fn lost_a_port(error: &ServerError) -> bool {
    matches!(error, ServerError::NotReady { tail, .. } if tail.contains("address already in use"))
}

async fn launch(program: &Path, folder: &Folder, ports: [u16; 2], sync_always: bool) -> Result<Server, ServerError> {
    let config = folder.join("nats.conf");
    write_private(&config, configuration(&folder.join("jetstream"), ports, sync_always).as_bytes())?;
    let (log, children) = (folder.join("nats.log"), folder.join("children.json"));
    let spec = Spec {
        name: NAME,
        program,
        args: vec!["--config".to_owned(), config.to_string_lossy().into_owned()],
        log: &log,
        children: &children,
        account: None,
        stop: Signal::TERM,
        on_our_death: "KILL",
        abort: Signal::KILL,
    };
    let mut server = Server::spawn(spec).await?;
    let deadline = Instant::now() + READY_TIME;
    loop {
        if let Some(status) = server.ended() {
            return Err(ServerError::not_ready(NAME, format!("it ended with {status}"), &log));
        }
        match answers(ports).await {
            Ok(()) => return Ok(server),
            Err(reason) if Instant::now() > deadline => {
                server.stop(STOP_TIME).await;
                let reason = format!("after {} s, {}", READY_TIME.as_secs(), Chain(&reason));
                return Err(ServerError::not_ready(NAME, reason, &log));
            }
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

fn configuration(store: &Path, [port, http]: [u16; 2], sync_always: bool) -> String {
    let sync = if sync_always { "sync_interval: always" } else { "" };
    let store = serde_json::Value::from(store.to_string_lossy()).to_string();
    format!(
        "# Written at every start.\n\
         server_name: orgstream\n\
         listen: \"127.0.0.1:{port}\"\n\
         http: \"127.0.0.1:{http}\"\n\
         include \"{ACCESS}/server/access.conf\"\n\
         jetstream {{\n  store_dir: {store}\n  {sync}\n}}\n"
    )
}

/// Whether a client gets the server's greeting and JetStream has read its storage.
async fn answers([port, http]: [u16; 2]) -> Result<(), Cause> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let greeting = async {
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let mut line = String::new();
        BufReader::new(connection.take(64 * 1024)).read_line(&mut line).await?;
        Ok::<_, std::io::Error>(line)
    };
    let line = timeout(TIMEOUT, greeting).await.map_err(|_| cause("it sends no greeting"))?.map_err(cause)?;
    if !line.starts_with("INFO ") {
        return Err(cause("something else answers on its port"));
    }
    let health = async {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, http)).await?;
        connection.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
        let mut reply = String::new();
        connection.take(64 * 1024).read_to_string(&mut reply).await?;
        Ok::<_, std::io::Error>(reply)
    };
    let reply = timeout(TIMEOUT, health).await.map_err(|_| cause("its monitor is silent"))?.map_err(cause)?;
    let status = reply.split_ascii_whitespace().nth(1);
    if status == Some("200") {
        Ok(())
    } else {
        Err(cause(format!("it is not healthy: {}", reply.lines().last().unwrap_or_default())))
    }
}
