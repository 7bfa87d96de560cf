//! A witness (C2SP tlog-witness): it signs a head of a log when that extends the last one that it signed, and stores it.
//!
//! It needs only the public keys of the logs that it follows, nothing else of their system, and should be run by another
//! party. Its state is one file, which is on disk in its new form before a signature leaves the process.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use orgstream_events::Chain;
use orgstream_transparency::{
    AddCheckpoint, LogKey, MAX_ADD_CHECKPOINT_BYTES, Refusal, SignatureLine, TreeHead, WitnessSigner,
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::sync::CancellationToken;

use super::keys::KeyFiles;

const STATE: &str = "witness.json";
const FORMAT: &str = "orgstream-witness/1";

/// The heads that were signed last, by the names of the logs.
#[derive(Debug, Serialize, Deserialize)]
struct Heads {
    format: String,
    heads: BTreeMap<String, Head>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    size: u64,
    root: String,
}

/// A witness.
pub struct Witness {
    key: WitnessSigner,
    logs: Vec<LogKey>,
    path: PathBuf,
    heads: Mutex<Heads>,
}

impl Witness {
    /// Opens the witness of a folder, which is created with its key when it is missing. `logs` are the keys of the logs that
    /// it follows; the key of a host stands for the logs of all its orgs.
    pub fn open(dir: &Path, name: &str, logs: Vec<LogKey>) -> anyhow::Result<Self> {
        let (keys, path) = (KeyFiles::of_witness(dir), dir.join(STATE));
        if !keys.exist() {
            let name = name.parse().context("--name")?;
            fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
            store(&path, &Heads { format: FORMAT.to_owned(), heads: BTreeMap::new() })?;
            keys.make::<orgstream_transparency::Witness>(name)?;
        }
        let key: WitnessSigner = keys.load()?;
        let text = fs::read(&path).with_context(|| {
            format!(
                "{} is gone: a witness that has forgotten what it signed must not go on under its key",
                path.display()
            )
        })?;
        let heads: Heads = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        if heads.format != FORMAT {
            bail!("{} is of the format {}, and this program reads {FORMAT}", path.display(), heads.format);
        }
        Ok(Self { key, logs, path, heads: Mutex::new(heads) })
    }

    /// Returns the key that verifies its signatures.
    pub fn key(&self) -> &WitnessSigner {
        &self.key
    }

    /// Returns the keys of a log, by its name.
    fn keys_of(&self, origin: &str) -> Vec<LogKey> {
        let of_log = |key: &LogKey| {
            let is_hosts = origin.strip_prefix(key.name().as_str()).is_some_and(|rest| rest.starts_with('/'));
            let named = origin.parse().ok().map(|name| key.named(name));
            named.filter(|_| is_hosts || origin == key.name().as_str())
        };
        self.logs.iter().filter_map(of_log).collect()
    }

    /// Decides, stores, signs: one request after the other, because a consistent order is the purpose.
    async fn add_checkpoint(&self, body: &[u8]) -> Result<SignatureLine, Failure> {
        let request = AddCheckpoint::parse(body).map_err(Refusal::from)?;
        let mut heads = self.heads.lock().await;
        let origin = request.origin().to_owned();
        let known = match heads.heads.get(&origin) {
            Some(head) => {
                let root = head.root.parse().map_err(|error| Failure::Storage(anyhow::Error::new(error)))?;
                Some(TreeHead { size: head.size, root })
            }
            None => None,
        };
        let accepted = request.decide(&self.keys_of(&origin), known)?;
        let TreeHead { size, root } = accepted.head();
        let before = heads.heads.insert(origin.clone(), Head { size, root: root.to_string() });
        if let Err(error) = tokio::task::block_in_place(|| store(&self.path, &heads)) {
            // Nothing was signed, so the file still has what was signed last.
            match before {
                Some(before) => heads.heads.insert(origin, before),
                None => heads.heads.remove(&origin),
            };
            return Err(Failure::Storage(error));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        tracing::info!(log = origin, size, "signed");
        Ok(accepted.cosign(&self.key, now))
    }

    /// Serves requests until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = Router::new()
            .route("/add-checkpoint", post(answer))
            .route("/healthz", get(|| async { "ok\n" }))
            .layer(DefaultBodyLimit::max(MAX_ADD_CHECKPOINT_BYTES))
            .with_state(Arc::new(self));
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

/// The reason why a request gets no signature.
enum Failure {
    Refused(Refusal),
    Storage(anyhow::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

async fn answer(State(witness): State<Arc<Witness>>, body: Bytes) -> Response {
    match witness.add_checkpoint(&body).await {
        Ok(line) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{line}\n")).into_response(),
        Err(Failure::Refused(refusal)) => {
            if matches!(refusal, Refusal::Fork { .. } | Refusal::Inconsistent(_)) {
                tracing::error!(
                    %refusal, request = %String::from_utf8_lossy(&body),
                    "a log does not continue what was signed of it: keep this line, it is evidence"
                );
            }
            let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
            (status, [(header::CONTENT_TYPE, refusal.content_type())], format!("{refusal}\n")).into_response()
        }
        Err(Failure::Storage(error)) => {
            tracing::error!(error = %Chain(error.as_ref()), "nothing can be signed, because nothing can be remembered");
            (StatusCode::SERVICE_UNAVAILABLE, "try again later\n").into_response()
        }
    }
}

/// Replaces the file, on disk when this returns.
fn store(path: &Path, heads: &Heads) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(heads)?)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The new name is part of the folder, which is synced separately.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}
