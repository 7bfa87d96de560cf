//! The metrics under `/metrics`: all of them declared, and present before anything has happened.

use std::collections::BTreeSet;

use metrics_exporter_prometheus::PrometheusBuilder;
use orgstream::telemetry::{
    self,
    metrics::{FIGURES, Kind, Process, Values},
};

use crate::sources::{PRODUCT, Source, sources};

fn recorded() -> BTreeSet<(String, &'static str)> {
    let mut found = BTreeSet::new();
    for Source { text, .. } in sources(PRODUCT) {
        for kind in ["counter", "gauge", "histogram"] {
            for part in text.split(&format!("{kind}!(")).skip(1) {
                if let Some((name, _)) = part.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                    found.insert((name.to_owned(), kind));
                }
            }
        }
    }
    found
}

#[test]
fn every_figure_is_declared_and_every_declaration_is_of_a_figure() {
    let declared: BTreeSet<(String, &str)> = FIGURES
        .iter()
        .map(|figure| {
            let kind = match figure.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            (figure.name.to_owned(), kind)
        })
        .collect();
    assert_eq!(declared.len(), FIGURES.len(), "a figure is declared twice");
    let recorded = recorded();
    let undeclared: Vec<_> = recorded.difference(&declared).collect();
    assert!(undeclared.is_empty(), "declare these in src/telemetry/metrics.rs: {undeclared:?}");
    let unused: Vec<_> = declared.difference(&recorded).collect();
    assert!(unused.is_empty(), "nothing records these any more: {unused:?}");
}

#[test]
fn figures_are_there_at_zero_before_anything_has_happened() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        telemetry::metrics::describe();
        telemetry::metrics::begin(&[Process::Api, Process::Worker, Process::Signer]);
    });
    let shown = handle.render();
    for figure in FIGURES {
        let known = figure.labels.iter().all(|(_, values)| matches!(values, Values::Known(_)));
        if known {
            assert!(shown.contains(&format!("# HELP {} {}", figure.name, figure.help)), "{}", figure.name);
            assert!(shown.contains(&format!("\n{}", figure.name)), "{} is not there", figure.name);
        }
    }
    for line in [
        "orgstream_isolation_failures_total 0",
        "orgstream_stream_gaps_total 0",
        "orgstream_orgs_stalled 0",
        "orgstream_parked_total{pipeline=\"audit\"} 0",
        "orgstream_http_refused_total{reason=\"connections\"} 0",
        "orgstream_mails_total{outcome=\"given_up\"} 0",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in {shown}");
    }
}
