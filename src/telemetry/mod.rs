//! Logs, traces and metrics of the running program.

pub mod metrics;

use std::{
    ffi::OsStr,
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ::metrics::counter;
use anyhow::{Context, bail};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter as Export},
};
use orgstream_events::Chain;
use reqwest::Url;
use tracing::Level;
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

use self::metrics::Process;
use crate::{
    config::{LogArgs, LogFormat},
    terminal::progress::LogLines,
};

/// Keeps the exporters alive; flushes pending data when the program ends.
pub struct Telemetry {
    tracer: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.tracer.take().map(|tracer| tracer.shutdown()) {
            tracing::warn!(error = %Chain(&error), "the last traces could not be sent");
        }
    }
}

/// Sets up logs on standard error and, if requested, traces to a collector. Call once, inside the runtime.
///
/// A command that ends by itself (`is_service` false) reports its own errors, and logs errors only.
pub fn init(args: &LogArgs, is_service: bool) -> anyhow::Result<Telemetry> {
    let default =
        if is_service { "info,async_nats=warn,async_nats::connector=off,sqlx=warn" } else { "error,async_nats=off" };
    let filter = args.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?} is not a filter"))?;
    // A line that cannot be written is lost: there is nowhere else to report it.
    let text = tracing_subscriber::fmt::layer().with_writer(LogLines).log_internal_errors(false);
    let colored = is_colored(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    let format = match args.log_format {
        LogFormat::Text => text.with_ansi(colored).with_target(false).boxed(),
        LogFormat::Json => text.json().flatten_event(true).boxed(),
    };
    let tracer = args.otlp_url.as_ref().map(|url| tracer(url.whole())).transpose()?;
    let traces = tracer.as_ref().map(|tracer| tracing_opentelemetry::layer().with_tracer(tracer.tracer("orgstream")));
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    // At this level the client of NATS logs what it receives, and commands may have secrets.
    let bodies = filter_fn(|about| *about.level() != Level::TRACE || !about.target().starts_with("async_nats"));
    tracing_subscriber::registry().with(filter).with(bodies).with(format).with(traces).init();
    Ok(Telemetry { tracer })
}

/// Whether to color the output: on a terminal, unless its user wants none; see no-color.org.
fn is_colored(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Returns the URL that traces are posted to: an address without a path is a collector's, which accepts them at
/// `/v1/traces`.
fn traces_url(text: &str) -> anyhow::Result<Url> {
    // It is not repeated: it may hold a key.
    let refused = || {
        "--otlp-url (ORGSTREAM_OTLP_URL) is no address of a collector: it looks like http://127.0.0.1:4318".to_owned()
    };
    let mut url: Url = text.parse().with_context(refused)?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        bail!("{}", refused());
    }
    if url.path() == "/" {
        url.set_path("/v1/traces");
    }
    Ok(url)
}

fn tracer(url: &str) -> anyhow::Result<SdkTracerProvider> {
    let endpoint = traces_url(url)?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()
        .context("--otlp-url (ORGSTREAM_OTLP_URL) cannot be used")?;
    let exporter = Heard { exporter, told: Mutex::new(None) };
    let resource = Resource::builder().with_service_name("orgstream").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The minimum interval between reports of lost spans.
const QUIET: Duration = Duration::from_secs(600);

/// Exports spans; when they are not accepted, counts them and reports that, rate-limited.
#[derive(Debug)]
struct Heard<E> {
    exporter: E,
    told: Mutex<Option<Instant>>,
}

impl<E: Export> Heard<E> {
    /// Whether a report is due (again).
    fn is_due(&self, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told.is_none_or(|told| now.saturating_duration_since(told) >= QUIET);
        if is_due {
            *told = Some(now);
        }
        is_due
    }
}

impl<E: Export> Export for Heard<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        if let Err(error) = &sent {
            counter!("orgstream_traces_lost_total").increment(spans as u64);
            // Without the library's own words, which repeat the address with a possible key.
            let why =
                if matches!(error, OTelSdkError::Timeout(_)) { "no answer in time" } else { "not reached, or refused" };
            if self.is_due(Instant::now()) {
                tracing::warn!(
                    spans,
                    why,
                    "the collector of --otlp-url does not take traces, and these are lost; it is said again in ten \
                     minutes at the earliest, and orgstream_traces_lost_total counts"
                );
            }
        }
        // It is handled: the library would report it again, each time.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Returns the same registry on every call: for programs that start several stacks one after the other.
pub fn metrics_once() -> anyhow::Result<PrometheusHandle> {
    static ONCE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut held = ONCE.lock().unwrap_or_else(PoisonError::into_inner);
    if held.is_none() {
        *held = Some(metrics(&[Process::Api, Process::Worker, Process::Signer])?);
    }
    held.clone().context("there is a registry")
}

/// Sets up the metrics registry, with the metrics of these processes at 0; the handle renders `/metrics`.
pub fn metrics(processes: &[Process]) -> anyhow::Result<PrometheusHandle> {
    const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
    const ANSWERS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        // One of these for every route.
        .set_buckets_for_metric(Matcher::Full("orgstream_http_request_seconds".to_owned()), ANSWERS)?
        .set_buckets(&[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0])?
        .install_recorder()
        .context("the metrics registry is already set up")?;
    metrics::describe();
    metrics::begin(processes);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collectors_address_gets_its_path_and_what_is_none_is_refused() {
        for (given, posted) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://collector/otlp/v1/traces", "https://collector/otlp/v1/traces"),
            ("https://collector/?key=a", "https://collector/v1/traces?key=a"),
        ] {
            assert_eq!(traces_url(given).unwrap().as_str(), posted);
        }
        for refused in ["nonsense", "127.0.0.1:4318", "collector:4318", "ftp://collector", "http://", ""] {
            assert!(format!("{:#}", traces_url(refused).unwrap_err()).contains("--otlp-url"), "{refused}");
        }
    }

    #[test]
    fn spans_that_are_lost_are_told_of_once_in_a_while() {
        #[derive(Debug)]
        struct Deaf;

        impl Export for Deaf {
            async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
                Err(OTelSdkError::Timeout(Duration::ZERO))
            }
        }

        let (heard, now) = (Heard { exporter: Deaf, told: Mutex::new(None) }, Instant::now());
        let due: Vec<bool> = [0, 1, 599, 600, 601, 1_200].map(|s| heard.is_due(now + Duration::from_secs(s))).into();
        assert_eq!(due, [true, false, false, true, false, true]);
    }

    #[test]
    fn colors_are_for_terminals_whose_users_want_them() {
        assert!(is_colored(true, None) && is_colored(true, Some(OsStr::new(""))));
        assert!(!is_colored(true, Some(OsStr::new("1"))) && !is_colored(false, None));
    }
}
