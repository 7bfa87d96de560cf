//! The JetStream subjects that each kind of user requests: everything it must be allowed, and the most it may be
//! allowed.
//!
//! The subjects are relative to [`JETSTREAM`], or to the subject under which an account imports it. A change to what a
//! verb of this crate requests has to be made here too, and the broker's accounts have to be made again.

/// The JetStream API prefix, unless configured otherwise.
pub const JETSTREAM: &str = "$JS.API";
/// Read requests with a single reply.
pub const READS: [&str; 2] = ["STREAM.INFO.*", "STREAM.MSG.GET.*"];
/// Read requests with several replies.
pub const BATCHES: [&str; 2] = ["DIRECT.GET.*", "DIRECT.GET.*.>"];
/// Requests that create consumers; only workers send them.
pub const CONSUMERS: [&str; 2] = ["CONSUMER.CREATE.*.*", "CONSUMER.CREATE.*.*.>"];
/// Requests for a consumer's next messages, with several replies.
pub const DELIVERIES: [&str; 1] = ["CONSUMER.MSG.NEXT.*.*"];
/// The subjects of the streams, written by every process that appends, places and claims, and keeps snapshots and secrets.
pub const WRITES: [&str; 4] = ["ev.>", "snap.>", "sys.>", "vault.>"];
