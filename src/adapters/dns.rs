//! DNS records of a domain: a port, so that tests decide the answers.

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    net::NetError,
    proto::rr::{RData, RecordType},
};
use tokio::time::timeout;

/// The timeout of an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The reason for a missing DNS answer. A name without records is an answer.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The resolver's timeout, or ours.
    #[error("no answer in time")]
    Late,
    /// An error of the resolver.
    #[error(transparent)]
    Failed(#[from] NetError),
}

/// Looks up the TXT records of a name.
pub trait TxtRecords: fmt::Debug + Send + Sync + 'static {
    /// Returns all of them, each joined; none when the name has none.
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, DnsError>>;
}

/// The resolver that this machine is configured to use.
#[derive(Debug, Default)]
pub struct SystemDns;

impl TxtRecords for SystemDns {
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, DnsError>> {
        Box::pin(async move {
            // Created for each query: they are rare, and a caller who has just changed the DNS must not get a cached answer.
            let resolver = TokioResolver::builder_tokio().and_then(ResolverBuilder::build)?;
            ask(&resolver, name).await
        })
    }
}

async fn ask(resolver: &TokioResolver, name: &str) -> Result<Vec<String>, DnsError> {
    // The trailing dot excludes the machine's own search domains.
    let asked = timeout(TIMEOUT, resolver.lookup(format!("{name}."), RecordType::TXT)).await;
    match asked.map_err(|_| DnsError::Late)? {
        Ok(found) => Ok(found.answers().iter().filter_map(|record| text(&record.data)).collect()),
        Err(error) if error.is_no_records_found() => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Returns a record's text; long ones come in pieces.
fn text(data: &RData) -> Option<String> {
    let RData::TXT(txt) = data else { return None };
    let pieces = txt.txt_data.iter().map(|piece| String::from_utf8_lossy(piece));
    Some(pieces.collect())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use hickory_resolver::{
        config::{NameServerConfig, ResolverConfig},
        net::runtime::TokioRuntimeProvider,
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// A name server for two names: one that has two records, and one that exists without any. It does not answer for
    /// `silent`, and knows no others.
    async fn name_server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1_500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let query = &buffer[..length];
                // After the header: labels up to an empty one, type and class.
                let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
                let name = query[13..end].to_ascii_lowercase();
                if name.starts_with(b"silent") {
                    continue;
                }
                let long = [b"orgstream=".as_slice(), &[b'x'; 245], &[200], &[b'y'; 200]].concat();
                let records: &[&[&[u8]]] = if name.starts_with(b"_orgstream-challenge") {
                    &[&[b"\x0bv=spf1 -all"], &[b"\xff", &long]]
                } else {
                    &[]
                };
                let is_known = name.starts_with(b"_orgstream-challenge") || name.starts_with(b"empty");
                let mut answer = query[..2].to_vec();
                answer.extend([0x81, if is_known { 0x80 } else { 0x83 }, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
                answer.extend(&query[12..end]);
                for data in records {
                    let data = data.concat();
                    answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0]);
                    answer.extend((data.len() as u16).to_be_bytes());
                    answer.extend(data);
                }
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_name_server_is_asked_and_its_records_are_put_together() {
        let address = name_server().await;
        let mut server = NameServerConfig::udp(address.ip());
        server.connections[0].port = address.port();
        let config = ResolverConfig::from_name_servers(vec![server]);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
        let long = format!("orgstream={}{}", "x".repeat(245), "y".repeat(200));
        let found = ask(&resolver, "_orgstream-challenge.acme.test").await.unwrap();
        assert_eq!(found, ["v=spf1 -all".to_owned(), long]);
        for without in ["empty.acme.test", "unknown.acme.test"] {
            assert_eq!(ask(&resolver, without).await.unwrap(), Vec::<String>::new(), "{without}");
        }
        assert!(ask(&resolver, "silent.acme.test").await.is_err());
    }
}
