//! The conditions on the NATS side for a start, with one message for each that does not hold.

use std::fmt;

use orgstream_events::Chain;
use serde::Deserialize;

use crate::{Log, StreamError};

/// A condition that does not hold, and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The problem.
    pub what: String,
    /// The remedy.
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

/// Compares the server and the existing streams with the requirements. Missing streams are no finding: see
/// [`Log::ensure_streams`].
///
/// `monitor_url` is the server's monitoring address: the only place where it reports how it syncs. A single copy on a
/// server that acknowledges before it syncs can lose acknowledged commits to a power cut, so that is a finding, and so
/// is an unknown sync mode; `allow_unsafe_sync` drops both.
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
            let what = format!("nats-server's monitoring address cannot be read: {}", Chain(&error));
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
