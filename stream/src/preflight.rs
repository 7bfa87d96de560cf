//! What must hold on the NATS side before anything starts, as one clear line for each thing that does not.

use std::fmt;

use serde::Deserialize;

use crate::{Log, StreamError};

/// Something that is not as it must be, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// How to put it right.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; fix: {}", self.what, self.fix)
    }
}

#[derive(Deserialize)]
struct Jsz {
    config: JszConfig,
}

#[derive(Deserialize)]
struct JszConfig {
    #[serde(default)]
    sync_always: bool,
}

/// Compares the server and the streams that exist with what must hold. Missing streams are no finding: see
/// [`Log::ensure_streams`].
///
/// `monitor_url` is the server's monitoring address: the only place where it tells how it syncs. A single copy on a
/// server that acknowledges before it syncs can lose acknowledged commits to a power cut, so that is a finding, and so
/// is not knowing; `allow_unsafe_sync` drops both.
pub async fn preflight(
    log: &Log,
    monitor_url: Option<&str>,
    allow_unsafe_sync: bool,
) -> Result<Vec<Finding>, StreamError> {
    let mut findings = Vec::new();
    if !log.client().is_server_compatible(2, 14, 0) {
        findings.push(Finding {
            what: format!("nats-server is {}, and must be 2.14 or newer", log.client().server_info().version),
            fix: "upgrade nats-server".to_owned(),
        });
    }
    if log.inner.options.replicas == 1 && !allow_unsafe_sync {
        findings.extend(unsafe_sync(monitor_url).await);
    }
    findings.extend(log.compare_streams().await?);
    Ok(findings)
}

async fn unsafe_sync(monitor_url: Option<&str>) -> Option<Finding> {
    let fix = "set `sync_interval: always` in the jetstream block, run three replicas, or allow unsafe sync".to_owned();
    let Some(monitor_url) = monitor_url else {
        let what = "whether nats-server syncs every write is not known without its monitoring address".to_owned();
        return Some(Finding { what, fix: format!("give the monitoring address; {fix}") });
    };
    match fetch_jsz(monitor_url).await {
        Ok(jsz) if jsz.config.sync_always => None,
        Ok(_) => {
            let what = "nats-server acknowledges commits before they are on disk, and keeps one copy".to_owned();
            Some(Finding { what, fix })
        }
        Err(error) => {
            let what = format!("nats-server's monitoring address cannot be read: {error}");
            Some(Finding {
                what,
                fix: "correct the address, and enable `http` in nats-server's configuration".to_owned(),
            })
        }
    }
}

async fn fetch_jsz(monitor_url: &str) -> Result<Jsz, reqwest::Error> {
    let url = format!("{}/jsz?config=true", monitor_url.trim_end_matches('/'));
    let request = reqwest::Client::new().get(url).timeout(std::time::Duration::from_secs(5));
    request.send().await?.error_for_status()?.json().await
}
