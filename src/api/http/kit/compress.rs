//! Compression of answers for clients that accept it (`Accept-Encoding: gzip`): reads that are complete and large enough.
//! Not streams, which would be delayed in the buffer; and no answer to a command, some of which have a secret in them beside
//! the caller's own text, so that their length would disclose it.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::Next,
    response::Response,
};
use http_body::Body;
use tower_http::compression::{CompressionLayer, predicate::Predicate};

/// The minimum size in bytes.
const WORTH: u64 = 1_024;

/// The mark of an answer to a read.
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

/// Compresses marked answers.
pub(crate) fn layer() -> CompressionLayer<WorthIt> {
    CompressionLayer::new().compress_when(WorthIt)
}

/// Decides whether an answer is compressed.
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
    // Some of the answers that must not be stored have secrets in them.
    is_text && !kept.contains("no-store")
}

/// Weakens the tag, since the compressed bytes are no longer the original ones.
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
