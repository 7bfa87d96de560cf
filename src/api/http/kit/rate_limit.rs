//! The header fields `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers) of answers to commands and reads: what
//! the organization may send, and what of that is left here, before anything is refused.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

use super::middleware::RequestInfo;
use crate::{api::http::App, limits::command_rate::RateState};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Adds the header fields to answers of requests that the rate of an organization counts.
pub async fn show(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let info = request.extensions().get::<RequestInfo>().cloned();
    let mut response = next.run(request).await;
    if let Some((org, rate)) = info.as_ref().and_then(RequestInfo::rate) {
        let [policy, limit] = fields(app.gateway.admission().state(org, rate));
        for (name, value) in [(POLICY, policy), (LIMIT, limit)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
    response
}

/// Returns the values: the quota `q` of a window of `w` seconds, and what remains of it (`r`) until it is whole again in `t`
/// seconds.
fn fields(RateState { rate, left, full_in }: RateState) -> [String; 2] {
    let window = rate.window().as_secs();
    let full_in = full_in.as_millis().div_ceil(1_000);
    let name = rate.of.name();
    [format!("\"{name}\";q={};w={window}", rate.burst), format!("\"{name}\";r={left};t={full_in}")]
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use super::*;
    use crate::limits::command_rate::{CommandRate, LimitedBy, Rated};

    #[test]
    fn the_fields_are_structured_as_the_draft_has_them() {
        let number = |number| NonZeroU32::new(number).unwrap();
        let rate = CommandRate { of: Rated::Commands, per_second: number(20), burst: number(200), by: LimitedBy::Plan };
        let state = RateState { rate, left: 150, full_in: Duration::from_millis(2_001) };
        assert_eq!(fields(state), ["\"commands\";q=200;w=10", "\"commands\";r=150;t=3"]);
        let reads = RateState { rate: CommandRate { of: Rated::Reads, ..rate }, ..state };
        assert_eq!(fields(reads)[0], "\"reads\";q=200;w=10");
    }
}
