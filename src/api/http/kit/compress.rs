//! Answers made smaller for whoever takes them like that (`Accept-Encoding: gzip`): what is read, is all there, and is
//! worth it. Not what streams, which would wait inside for more of it; and no answer to a command, some of which have a
//! secret in them beside what the caller wrote, whose length would then tell of it.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::Next,
    response::Response,
};
use http_body::Body;
use tower_http::compression::{CompressionLayer, predicate::Predicate};

/// From how many bytes on it is worth it.
const WORTH: u64 = 1_024;

/// What is read and not changed.
#[derive(Debug, Clone, Copy)]
struct MayShrink;

/// Marks the answers to reads.
pub(crate) async fn may_shrink(request: Request, next: Next) -> Response {
    let reads = request.method() == Method::GET;
    let mut response = next.run(request).await;
    if reads {
        response.extensions_mut().insert(MayShrink);
    }
    response
}

/// Compresses what is marked.
pub(crate) fn layer() -> CompressionLayer<WorthIt> {
    CompressionLayer::new().compress_when(WorthIt)
}

/// Whether an answer is compressed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorthIt;

impl Predicate for WorthIt {
    fn should_compress<B: Body>(&self, response: &axum::http::Response<B>) -> bool {
        let is_whole = response.body().size_hint().exact().is_some_and(|bytes| bytes >= WORTH);
        is_whole && response.extensions().get::<MayShrink>().is_some() && is_text(response.headers())
    }
}

fn is_text(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let (kind, kept) = (text(header::CONTENT_TYPE), text(header::CACHE_CONTROL));
    let is_text = kind.starts_with("text/") || ["json", "javascript"].iter().any(|name| kind.contains(name));
    // Of what nobody may keep some has secrets in it.
    is_text && !kept.contains("no-store")
}

/// The tag of what was compressed is not that of the bytes as they were any more.
pub(crate) fn weaken(response: &mut Response) {
    let headers = response.headers_mut();
    if !headers.contains_key(header::CONTENT_ENCODING) {
        return;
    }
    let strong = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| tag.starts_with('"'));
    if let Some(weak) = strong.and_then(|tag| HeaderValue::from_str(&format!("W/{tag}")).ok()) {
        headers.insert(header::ETAG, weak);
    }
}
