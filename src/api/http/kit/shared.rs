//! Answers that are the same for everybody: without a credential, with an entity tag, and for any cache to keep.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, header, request::Parts},
    response::Response,
};
use serde::Serialize;

use super::{
    conditional,
    extract::info,
    reply::{self, FOR_A_DAY, FOR_A_MINUTE},
};
use crate::{api::http::App, app::problem::Problem};

/// A reader without a credential, which has one of the slots of its network.
pub struct Reader {
    known: Option<HeaderValue>,
}

impl FromRequestParts<Arc<App>> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let info = info(parts);
        let address = info.origin().context.ip.and_then(|ip| ip.parse().ok());
        info.hold([app.bounds.request_of_network(address)?]);
        Ok(Self { known: parts.headers.get(header::IF_NONE_MATCH).cloned() })
    }
}

impl Reader {
    /// Returns the newest version of one thing.
    pub fn newest(&self, version: u64, thing: &impl Serialize) -> Result<Response, Problem> {
        self.one(version, thing, FOR_A_MINUTE)
    }

    /// Returns one version of a thing, which never changes.
    pub fn version(&self, version: u64, thing: &impl Serialize) -> Result<Response, Problem> {
        self.one(version, thing, FOR_A_DAY)
    }

    /// Returns a listing.
    pub fn listing(&self, rows: &impl Serialize) -> Result<Response, Problem> {
        let body = reply::json_bytes(rows)?;
        let tag = conditional::body_tag(&body);
        Ok(self.answer(&tag, body, FOR_A_MINUTE))
    }

    fn one(&self, version: u64, thing: &impl Serialize, keep: HeaderValue) -> Result<Response, Problem> {
        Ok(self.answer(&conditional::version_tag(version), reply::json_bytes(thing)?, keep))
    }

    fn answer(&self, tag: &str, body: Vec<u8>, keep: HeaderValue) -> Response {
        let mut response = conditional::answer(self.known.as_ref(), tag, body);
        response.headers_mut().insert(header::CACHE_CONTROL, keep);
        response
    }
}
