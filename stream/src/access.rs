//! What of JetStream each kind of user asks, as subjects: all that it must be allowed, and all that it may be.
//!
//! Below [`JETSTREAM`], or wherever an account imports it to. Whoever changes what a verb of this crate asks changes it here
//! too, and the broker's accounts have to be made again.

/// Where JetStream is asked, where nothing says otherwise.
pub const JETSTREAM: &str = "$JS.API";
/// Reads with one answer.
pub const READS: [&str; 2] = ["STREAM.INFO.*", "STREAM.MSG.GET.*"];
/// Reads with several answers.
pub const BATCHES: [&str; 2] = ["DIRECT.GET.*", "DIRECT.GET.*.>"];
/// Making consumers, which only a worker does.
pub const CONSUMERS: [&str; 2] = ["CONSUMER.CREATE.*.*", "CONSUMER.CREATE.*.*.>"];
/// Asking them, which has several answers.
pub const DELIVERIES: [&str; 1] = ["CONSUMER.MSG.NEXT.*.*"];
/// The subjects of the streams, which whoever appends, places and claims writes to.
pub const WRITES: [&str; 2] = ["ev.>", "sys.>"];
