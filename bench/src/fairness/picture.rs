//! The picture: the waiting times of quiet organizations over time, through a neighbour's burst.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{measure::quantile, scenarios::Row};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
/// Seconds per point of a line.
const STEP: f64 = 0.25;
const COLOURS: [(&str, &str); 4] =
    [("orgstream", "#0b7a4b"), ("fifo", "#c0392b"), ("rr100", "#b9770e"), ("held", "#7f8c8d")];

/// The p99 of quiet lags over time, a line for each policy, of the burst among the largest crowd that all were measured
/// with. None when there was no burst.
pub(super) fn draw(rows: &[Row]) -> Option<String> {
    let bursts: Vec<&Row> = rows.iter().filter(|row| row.scenario == "F1").collect();
    let orgs = bursts.iter().map(|row| row.orgs).max()?;
    let mut lines = Vec::new();
    for (policy, colour) in COLOURS {
        if let Some(row) = bursts.iter().find(|row| row.orgs == orgs && row.policy == policy) {
            lines.push((policy, colour, line(row), row.trace.drained_s));
        }
    }
    let end = lines.iter().map(|(.., drained)| *drained).fold(1.0, f64::max).ceil() + 1.0;
    let highest = lines.iter().flat_map(|(_, _, line, _)| line.iter().map(|(_, ms)| *ms)).fold(10.0, f64::max);
    let decades = highest.log10().ceil();
    let x = |at: f64| LEFT + (at + 2.0) / (end + 2.0) * (WIDTH - LEFT - RIGHT);
    let y = |ms: f64| HEIGHT - BOTTOM - (ms.max(1.0).log10() / decades) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\" fill=\"#222\">What {orgs} quiet organizations wait while one dumps a \
         burst: p99 of each {STEP} s</text>\n"
    );
    for decade in 0..=(decades as i32) {
        let ms = 10_f64.powi(decade);
        let label = if ms < 1000.0 { format!("{ms} ms") } else { format!("{} s", ms / 1000.0) };
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y(ms) + 4.0,
            y = y(ms),
        );
    }
    let every = (end / 8.0).ceil().max(1.0);
    let mut second = 0.0;
    while second <= end {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{second} s</text>",
            x(second),
            HEIGHT - BOTTOM + 18.0
        );
        second += every;
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>\
         <text x=\"{:.1}\" y=\"{}\" fill=\"#555\">the burst begins</text>",
        HEIGHT - BOTTOM,
        x(0.0) + 5.0,
        TOP - 6.0,
        x = x(0.0),
    );
    // Labels beside the ends of the lines, the highest first, none over another.
    let mut labels: Vec<(f64, &str, &str)> = Vec::new();
    for (policy, colour, line, drained) in &lines {
        let points: String = line.iter().map(|(at, ms)| format!("{:.1},{:.1} ", x(*at), y(*ms))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <line x1=\"{d:.1}\" x2=\"{d:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.trim_end(),
            HEIGHT - BOTTOM - 8.0,
            HEIGHT - BOTTOM,
            d = x(*drained),
        );
        let peak = line.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
        labels.push((y(peak), policy, colour));
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut above = f64::MIN;
    for (wanted, policy, colour) in labels {
        above = wanted.max(above + 16.0);
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{above:.1}\" fill=\"{colour}\">{policy}</text>", WIDTH - RIGHT + 10.0);
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">a tick on the axis: that policy has worked the burst off</text>\n</svg>",
        HEIGHT - 8.0
    );
    Some(svg)
}

fn line(row: &Row) -> Vec<(f64, f64)> {
    let mut buckets: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for point in &row.trace.points {
        buckets.entry((point.at / STEP).floor() as i64).or_default().push(point.ms);
    }
    let mut line = Vec::with_capacity(buckets.len());
    for (bucket, mut lags) in buckets {
        lags.sort_unstable_by(f64::total_cmp);
        line.push(((bucket as f64 + 0.5) * STEP, quantile(&lags, 0.99)));
    }
    line
}
