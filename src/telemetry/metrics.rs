//! All metrics that the program exposes under `/metrics`: name, kind, labels and meaning, declared here once. Metrics with
//! known labels exist from the start, at 0, so that an alarm on the first incident has something to compare with.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use orgstream_events::Pipeline;

use crate::jobs::JobName;

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only increases.
    Counter,
    /// It increases and decreases.
    Gauge,
    /// The distribution of values, in buckets.
    Histogram,
}

/// The process that has the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// `orgstream serve`.
    Api,
    /// `orgstream work`.
    Worker,
    /// `orgstream sign`.
    Signer,
    /// Each process that has the event log: API and workers.
    Both,
}

/// The values of a label: all of them where they are known beforehand, and their bound where they are not.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// These and no others.
    Known(&'static [&'static str]),
    /// As many as there are of this.
    Bounded(&'static str),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// The unit.
    pub unit: &'static str,
    /// The process.
    pub process: Process,
    /// The labels.
    pub labels: &'static [(&'static str, Values)],
    /// The meaning, and the action to take.
    pub help: &'static str,
}

const fn figure(
    kind: Kind,
    process: Process,
    name: &'static str,
    unit: &'static str,
    labels: &'static [(&'static str, Values)],
    help: &'static str,
) -> Figure {
    Figure { name, kind, unit, process, labels, help }
}

use Kind::{Counter, Gauge, Histogram};
use Process::{Api, Both, Signer, Worker};
use Values::{Bounded, Known};

const PIPELINE: (&str, Values) = ("pipeline", Known(Pipeline::NAMES));

/// The table.
pub const FIGURES: &[Figure] = &[
    figure(
        Histogram,
        Api,
        "orgstream_http_request_seconds",
        "seconds",
        &[("method", Bounded("routes")), ("route", Bounded("routes"))],
        "From a request to the head of its answer.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_http_requests_total",
        "requests",
        &[("method", Bounded("routes")), ("route", Bounded("routes")), ("status", Bounded("classes"))],
        "Requests that were answered, by class of status (2xx, 4xx, …).",
    ),
    figure(Gauge, Api, "orgstream_http_connections", "connections", &[], "Open connections."),
    figure(Gauge, Api, "orgstream_http_tails", "streams", &[], "Open streams of events."),
    figure(
        Counter,
        Api,
        "orgstream_http_refused_total",
        "refusals",
        &[(
            "reason",
            Known(&[
                "connections",
                "connections_of_address",
                "requests_of_org",
                "requests_of_caller",
                "requests_of_network",
                "streams",
                "streams_of_org",
                "streams_of_caller",
                "bodies",
                "bodies_of_org",
            ]),
        )],
        "Requests over a bound of this process: a common one (`connections`, `streams`, `bodies`) or one caller's.",
    ),
    figure(
        Histogram,
        Api,
        "orgstream_nats_request_seconds",
        "seconds",
        &[("status", Bounded("statuses"))],
        "From a command by NATS to its answer.",
    ),
    figure(
        Histogram,
        Api,
        "orgstream_command_seconds",
        "seconds",
        &[("outcome", Known(&["accepted", "replayed", "refused", "failed"]))],
        "What carrying out a command takes.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_commands_total",
        "commands",
        &[("command", Bounded("commands")), ("outcome", Bounded("outcomes"))],
        "Commands, by what became of them.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_commands_refused_total",
        "commands",
        &[("reason", Known(&["rate"]))],
        "Commands that were over an organization's rate.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_reads_refused_total",
        "reads",
        &[("reason", Known(&["rate"]))],
        "Reads that were over an organization's rate.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_quota_counts_total",
        "commands",
        &[],
        "Commands whose additions were counted in the log because a quota was near its limit.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_quota_refused_total",
        "refusals",
        &[(
            "quota",
            Known(&[
                "invitations",
                "organizations",
                "secret_uses",
                "members",
                "api_keys",
                "webhooks",
                "storage_bytes",
                "own_kinds",
            ]),
        )],
        "What was over an hourly limit or a quota.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_append_conflicts_total",
        "appends",
        &[],
        "Appends that others were faster than, and that were decided again.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_account_commits_total",
        "commits",
        &[],
        "Commits to accounts, each of the commands that waited for one account at the same time.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_account_forwards_total",
        "commands",
        &[("outcome", Known(&["answered", "declined", "unreachable", "late", "busy", "too_large"]))],
        "Commands of accounts that were sent to the process that serves the account. All but those `answered` were decided where \
         they came to: look at that process if they are many.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_account_forwards_refused_total",
        "commands",
        &[("reason", Known(&["not_authentic", "expired", "no_right", "no_place", "busy"]))],
        "Commands and answers of other processes that were not taken. One that is `not_authentic` was signed with no commit key of \
         this process: a key is missing, or another program writes to the broker.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_access_events_total",
        "facts",
        &[("fact", Bounded("facts")), ("code", Bounded("codes and routes"))],
        "Access events: denied requests, refused keys, reads of the audit log.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_access_events_lost_total",
        "facts",
        &[],
        "Such facts that could not be written down. More than a few: the log does not keep up.",
    ),
    figure(
        Counter,
        Both,
        "orgstream_traces_lost_total",
        "spans",
        &[],
        "Spans that the collector of --otlp-url did not take.",
    ),
    figure(
        Counter,
        Both,
        "orgstream_isolation_failures_total",
        "rows",
        &[],
        "Rows that were another organization's. Anything but 0 is an incident.",
    ),
    figure(Counter, Api, "orgstream_leaked_keys_total", "keys", &[], "Keys that were found in public and revoked."),
    figure(
        Counter,
        Api,
        "orgstream_key_uses_lost_total",
        "uses",
        &[],
        "Uses of keys that were not noted, as the database was away.",
    ),
    figure(
        Counter,
        Both,
        "orgstream_job_restarts_total",
        "restarts",
        &[("job", Known(JobName::NAMES))],
        "Background jobs that failed and were started again. Look at the log for the reason.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_mails_total",
        "mails",
        &[("outcome", Known(&["sent", "void", "given_up", "later"]))],
        "Mails, by what became of them. Look at those given up.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_payment_failures_total",
        "failures",
        &[],
        "Attempts to tell the payment provider something that failed. Each is repeated later.",
    ),
    figure(Counter, Api, "orgstream_deletions_total", "organizations", &[], "Organizations that were deleted."),
    figure(
        Counter,
        Api,
        "orgstream_deletion_failures_total",
        "failures",
        &[],
        "Steps of deletions that failed. Each is taken again.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_payments_unmatched_total",
        "payments",
        &[],
        "Payments that the payment provider has of what is not open. Each is in the log, for an operator to pay back.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_audit_webhook_posts_total",
        "posts",
        &[("outcome", Known(&["confirmed", "failed"]))],
        "Parts of audit logs that were sent to where organizations want them.",
    ),
    figure(
        Histogram,
        Both,
        "orgstream_append_seconds",
        "seconds",
        &[("outcome", Known(&["stored", "replayed", "conflict", "key_reused", "unavailable", "refused"]))],
        "What the log takes for an append.",
    ),
    figure(
        Counter,
        Both,
        "orgstream_append_retries_total",
        "appends",
        &[],
        "Appends that were tried again, as the log did not answer.",
    ),
    figure(Histogram, Both, "orgstream_append_batch_size", "commits", &[], "Commits that share a batch."),
    figure(
        Counter,
        Worker,
        "orgstream_cursor_messages_total",
        "messages",
        &[],
        "Messages that were read from the log.",
    ),
    figure(
        Counter,
        Worker,
        "orgstream_cursor_gaps_total",
        "gaps",
        &[],
        "Gaps in what the server delivered, which were read again.",
    ),
    figure(
        Counter,
        Worker,
        "orgstream_stream_gaps_total",
        "gaps",
        &[],
        "Gaps in the log itself. Anything but 0 means lost history.",
    ),
    figure(
        Counter,
        Both,
        "orgstream_streams_lost_total",
        "streams",
        &[],
        "Streams that were found not to be what they were. Anything but 0 means lost history: see `orgstream history`.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_load_messages_total",
        "messages",
        &[],
        "Messages read to load aggregates that were not in memory, or not as new. Much more than commands: long histories without snapshots.",
    ),
    figure(
        Counter,
        Api,
        "orgstream_snapshots_total",
        "snapshots",
        &[("outcome", Known(&["kept", "impossible", "failed"]))],
        "Snapshots of aggregates with long histories. A failed one costs time at the next load: may the process write on snap.> at NATS?",
    ),
    figure(
        Counter,
        Api,
        "orgstream_secrets_total",
        "secrets",
        &[("action", Known(&["sealed", "opened", "rewrapped", "destroyed"]))],
        "What was done with the values of records' secrets.",
    ),
    figure(
        Counter,
        Both,
        "orgstream_forged_messages_total",
        "messages",
        &[],
        "Messages in the log that no process of ours signed. Anything but 0 is an incident: see who can publish to the broker.",
    ),
    figure(
        Counter,
        Worker,
        "orgstream_stray_messages_total",
        "messages",
        &[],
        "Messages that are of no organization where they are.",
    ),
    figure(
        Counter,
        Both,
        "orgstream_search_target_failures_total",
        "failures",
        &[("target", Bounded("search targets"))],
        "Calls that a search target did not answer as it must: the organizations whose index is there wait for it. See `orgstream \
         search targets`.",
    ),
    figure(
        Counter,
        Worker,
        "orgstream_parked_total",
        "events",
        &[PIPELINE],
        "Events that could not be applied and were set aside: `orgstream park list` names them.",
    ),
    figure(
        Gauge,
        Worker,
        "orgstream_orgs_stalled",
        "organizations",
        &[],
        "Organizations whose checkpoint does not move although their stream goes on. Anything but 0 is an incident: `orgstream lag --all` names them.",
    ),
    figure(
        Gauge,
        Worker,
        "orgstream_readers_stalled",
        "shards",
        &[],
        "Shards with messages that no worker reads. Anything but 0 is an incident.",
    ),
    figure(Gauge, Worker, "orgstream_shards_owned", "shards", &[], "Shards that this worker works on."),
    figure(
        Gauge,
        Worker,
        "orgstream_lanes",
        "lanes",
        &[("state", Known(&["attached", "catching_up", "backing_off"]))],
        "Organizations with something to do, by where it is: in memory, in the log, or waiting after a failure.",
    ),
    figure(Gauge, Worker, "orgstream_lane_bytes", "bytes", &[], "Messages in memory."),
    figure(
        Gauge,
        Worker,
        "orgstream_orgs",
        "organizations",
        &[("weight", Bounded("weights of plans"))],
        "Organizations with something to do, by weight.",
    ),
    figure(
        Gauge,
        Worker,
        "orgstream_org_lag_seconds",
        "seconds",
        &[PIPELINE, ("quantile", Known(&["0.5", "0.9", "0.99", "1"]))],
        "How far behind organizations are, by quantile.",
    ),
    figure(
        Gauge,
        Worker,
        "orgstream_worst_org_lag_seconds",
        "seconds",
        &[("rank", Bounded("ranks"))],
        "How far behind those are that are the furthest behind.",
    ),
    figure(
        Histogram,
        Worker,
        "orgstream_projection_lag_seconds",
        "seconds",
        &[PIPELINE],
        "From the append of an event to its commit in the tables.",
    ),
    figure(
        Histogram,
        Worker,
        "orgstream_stage_seconds",
        "seconds",
        &[PIPELINE, ("stage", Known(&["deliver", "wait", "run"]))],
        "Where that time goes, for the first event of each slice: until a worker has it, until it has a slot, until it is committed.",
    ),
    figure(Histogram, Worker, "orgstream_batch_seconds", "seconds", &[PIPELINE], "Database time of a slice."),
    figure(Histogram, Worker, "orgstream_batch_messages", "messages", &[PIPELINE], "Messages of a slice."),
    figure(
        Counter,
        Worker,
        "orgstream_batch_retries_total",
        "slices",
        &[("cause", Known(&["moved", "fenced", "undone", "unavailable", "timed_out", "failed"]))],
        "Slices that were not committed and are tried again.",
    ),
    figure(
        Gauge,
        Worker,
        "orgstream_rebuilds_active",
        "rebuilds",
        &[],
        "Versions of read models that are being built.",
    ),
    figure(Gauge, Worker, "orgstream_rebuild_share", "share", &[], "The part of the slots' time that rebuilds have."),
    figure(Counter, Worker, "orgstream_rebuild_events_total", "events", &[], "Events that rebuilds have applied."),
    figure(Counter, Signer, "orgstream_audit_checkpoints_total", "heads", &[], "Heads of audit logs that were signed."),
    figure(
        Counter,
        Signer,
        "orgstream_audit_refused_total",
        "logs",
        &[],
        "Logs that contradict what was signed. Anything but 0 is an incident.",
    ),
    figure(
        Counter,
        Signer,
        "orgstream_audit_cosignatures_total",
        "signatures",
        &[("witness", Bounded("witnesses"))],
        "Signatures of witnesses.",
    ),
    figure(
        Counter,
        Signer,
        "orgstream_audit_witness_failures_total",
        "failures",
        &[("witness", Bounded("witnesses"))],
        "Heads that a witness did not sign.",
    ),
];

/// Registers the description of every metric for `/metrics`.
pub fn describe() {
    for figure in FIGURES {
        let unit = if figure.unit == "seconds" { Unit::Seconds } else { Unit::Count };
        match figure.kind {
            Counter => describe_counter!(figure.name, unit, figure.help),
            Gauge => describe_gauge!(figure.name, unit, figure.help),
            Histogram => describe_histogram!(figure.name, unit, figure.help),
        }
    }
}

/// Starts the metrics of a process at 0, as far as their labels are known.
pub fn begin(processes: &[Process]) {
    let has_log = processes.iter().any(|process| matches!(process, Api | Worker));
    for figure in FIGURES {
        if processes.contains(&figure.process) || (figure.process == Both && has_log) {
            for labels in combinations(figure.labels) {
                match figure.kind {
                    Counter => counter!(figure.name, &labels).increment(0),
                    Gauge => gauge!(figure.name, &labels).increment(0),
                    Histogram => drop(histogram!(figure.name, &labels)),
                }
            }
        }
    }
}

/// Returns every combination of the values of labels; none when one of them is not known beforehand.
fn combinations(labels: &'static [(&'static str, Values)]) -> Vec<Vec<(&'static str, &'static str)>> {
    let mut all = vec![Vec::new()];
    for (name, values) in labels {
        let Known(values) = values else { return Vec::new() };
        all = all
            .into_iter()
            .flat_map(|rest: Vec<_>| values.iter().map(move |value| [&rest[..], &[(*name, *value)]].concat()))
            .collect();
    }
    all
}

/// Returns the table as a page.
pub fn page() -> String {
    let mut page = "# Metrics\n\nWhat `/metrics` shows, in Prometheus' text format. Written by `DOCS_WRITE=1` from \
                    `src/telemetry/metrics.rs`.\n\n| metric | kind | of | labels | meaning |\n|---|---|---|---|---|\n"
        .to_owned();
    for figure in FIGURES {
        let kind = match figure.kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        };
        let process = match figure.process {
            Api => "`serve`",
            Worker => "`work`",
            Signer => "`sign`",
            Both => "`serve`, `work`",
        };
        let label = |(name, values): &(&str, Values)| match values {
            Known(values) => format!("`{name}`: {}", values.join(", ")),
            Bounded(what) => format!("`{name}` ({what})"),
        };
        let labels: Vec<String> = figure.labels.iter().map(label).collect();
        let (name, unit, help) = (figure.name, figure.unit, figure.help);
        page.push_str(&format!("| `{name}` | {kind}, {unit} | {process} | {} | {help} |\n", labels.join("; ")));
    }
    page
}
