//! W3C trace context: continued where a request comes in, carried with the commit, continued again by the worker.
//!
//! It works without a collector too: the `traceparent` then passes through the event header unchanged, so that the
//! caller's own tracing still finds the following operations.

use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const HEADER: &str = "traceparent";

/// A carrier of one header.
struct Incoming<'a>(&'a str);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == HEADER).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![HEADER]
    }
}

/// Makes `span`, which must not have been entered yet, a part of the caller's trace. Returns the `traceparent` for
/// everything that follows from the request; a malformed `incoming` one is not used.
pub fn join(span: &Span, incoming: Option<&str>) -> String {
    let incoming = incoming.filter(|text| is_traceparent(text));
    if let Some(text) = incoming {
        // Without a collector there is no layer to set the parent on, and nothing is lost.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Incoming(text)));
    }
    let context = span.context();
    let here = context.span().span_context().clone();
    if here.is_valid() {
        return format!("00-{}-{}-{:02x}", here.trace_id(), here.span_id(), here.trace_flags().to_u8());
    }
    // Flags 00: the spans of this trace are not recorded.
    incoming.map_or_else(
        || format!("00-{:032x}-{:016x}-00", rand::random::<u128>().max(1), rand::random::<u64>().max(1)),
        str::to_owned,
    )
}

/// Whether the spans of this trace are recorded.
pub fn is_sampled(trace: &str) -> bool {
    let flags = trace.get(53..55).and_then(|flags| u8::from_str_radix(flags, 16).ok());
    flags.is_some_and(|flags| flags & 1 == 1)
}

/// Version 00, or a later one read as the specification allows: 32, 16 and 2 lower-case hexadecimal digits.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut digits = |length: usize| {
        parts.next().filter(|part| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let (version, trace, span, flags) = (digits(2), digits(32), digits(16), digits(2));
    let not_zero = |part: Option<&str>| part.is_some_and(|part| part.bytes().any(|b| b != b'0'));
    let known = version.is_some_and(|version| version != "ff");
    known && not_zero(trace) && not_zero(span) && flags.is_some() && (version != Some("00") || parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_last_bit_says_whether_anybody_looks() {
        assert!(is_sampled(GOOD));
        assert!(!is_sampled(&GOOD.replace("-01", "-00")));
        assert!(!is_sampled("short"));
    }

    #[test]
    fn a_callers_trace_is_passed_on() {
        assert_eq!(join(&Span::none(), Some(GOOD)), GOOD);
    }

    #[test]
    fn without_one_a_trace_begins() {
        let trace = join(&Span::none(), None);
        assert!(is_traceparent(&trace), "{trace}");
        assert_ne!(trace, join(&Span::none(), None));
    }

    #[test]
    fn a_malformed_one_is_not_passed_on() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_ne!(join(&Span::none(), Some(bad)), bad);
        }
        assert!(is_traceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"));
    }
}
