//! The wall clock, read here and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use orgstream_events::Timestamp;

/// Returns the time, in milliseconds since 1970.
pub fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}
