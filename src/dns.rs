//! What DNS says about a domain: a port, because what it says in tests is for the tests to decide.

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    proto::rr::{RData, RecordType},
};
use tokio::time::timeout;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why DNS gave no answer. A name without records is an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DnsError(pub String);

/// Looks up the TXT records of a name.
pub trait TxtRecords: fmt::Debug + Send + Sync + 'static {
    /// All of them, each in one piece; none when the name has none.
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, DnsError>>;
}

/// The resolver that this machine is configured to use.
#[derive(Debug, Default)]
pub struct SystemDns;

impl TxtRecords for SystemDns {
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, DnsError>> {
        Box::pin(async move {
            let failed = |error: hickory_resolver::net::NetError| DnsError(error.to_string());
            // Made for each question: they are rare, and whoever just changed their DNS must not be told what was before.
            let resolver = TokioResolver::builder_tokio().and_then(ResolverBuilder::build).map_err(failed)?;
            // The dot at the end keeps the machine's own search domains out.
            let asked = timeout(TIMEOUT, resolver.lookup(format!("{name}."), RecordType::TXT)).await;
            match asked.map_err(|_| DnsError("no answer in time".to_owned()))? {
                Ok(found) => Ok(found.answers().iter().filter_map(|record| text(&record.data)).collect()),
                Err(error) if error.is_no_records_found() => Ok(Vec::new()),
                Err(error) => Err(failed(error)),
            }
        })
    }
}

/// A record's text; long ones come in pieces.
fn text(data: &RData) -> Option<String> {
    let RData::TXT(txt) = data else { return None };
    let pieces = txt.txt_data.iter().map(|piece| String::from_utf8_lossy(piece));
    Some(pieces.collect())
}
