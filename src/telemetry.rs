//! Logs, traces and metrics of the running program.

use std::{
    ffi::OsStr,
    io::IsTerminal,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use reqwest::Url;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    cli::progress::LogLines,
    config::{LogArgs, LogFormat},
    figures::{self, Process},
};

/// Keeps the exporters alive; flushes what is left when the program ends.
pub struct Telemetry {
    tracer: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.tracer.take().map(|tracer| tracer.shutdown()) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Sets up logs on standard error and, if asked for, traces to a collector. Call once, inside the runtime.
///
/// What ends by itself (`is_service` false) has its own words for what goes wrong, and logs errors only.
pub fn init(args: &LogArgs, is_service: bool) -> anyhow::Result<Telemetry> {
    let default =
        if is_service { "info,async_nats=warn,async_nats::connector=off,sqlx=warn" } else { "error,async_nats=off" };
    let filter = args.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?} is not a filter"))?;
    // A line that cannot be written is gone: there is nowhere else to say so.
    let text = tracing_subscriber::fmt::layer().with_writer(LogLines).log_internal_errors(false);
    let colored = is_colored(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    let format = match args.log_format {
        LogFormat::Text => text.with_ansi(colored).with_target(false).boxed(),
        LogFormat::Json => text.json().flatten_event(true).boxed(),
    };
    let tracer = args.otlp_url.as_deref().map(tracer).transpose()?;
    let traces = tracer.as_ref().map(|tracer| tracing_opentelemetry::layer().with_tracer(tracer.tracer("orgstream")));
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    tracing_subscriber::registry().with(filter).with(format).with(traces).init();
    Ok(Telemetry { tracer })
}

/// On a terminal, unless its user wants none; see no-color.org.
fn is_colored(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Where traces are posted to: an address without a path is that of a collector, which takes them at `/v1/traces`.
fn traces_url(text: &str) -> anyhow::Result<Url> {
    let refused = || format!("--otlp-url {text:?} is no address of a collector: it looks like http://127.0.0.1:4318");
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
        .with_context(|| format!("--otlp-url {url:?} cannot be used"))?;
    let resource = Resource::builder().with_service_name("orgstream").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The same registry however often it is asked for: for programs that start several stacks one after the other.
pub fn metrics_once() -> anyhow::Result<PrometheusHandle> {
    static ONCE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut held = ONCE.lock().unwrap_or_else(PoisonError::into_inner);
    if held.is_none() {
        *held = Some(metrics(&[Process::Api, Process::Worker, Process::Signer])?);
    }
    held.clone().context("there is a registry")
}

/// Sets up the metrics registry, with the figures of these processes at 0; the handle renders what `/metrics` shows.
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
    figures::describe();
    figures::begin(processes);
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
    fn colors_are_for_terminals_whose_users_want_them() {
        assert!(is_colored(true, None) && is_colored(true, Some(OsStr::new(""))));
        assert!(!is_colored(true, Some(OsStr::new("1"))) && !is_colored(false, None));
    }
}
