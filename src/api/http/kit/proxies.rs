//! The client's address: reported by the trusted proxies in front of the API, and by no other party. A caller's own
//! `X-Forwarded-For` decides about no network list and appears in no audit log.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::HeaderMap,
    middleware::Next,
    response::Response,
};
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The networks of the proxies in front.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Trusts these networks, and no others.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().collect())
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns the client behind `peer`: the last address that no trusted proxy has; none when the peer is the client
    /// itself.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.trusts(peer.to_canonical()) {
            return None;
        }
        let values: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        let hops = values.iter().flat_map(|value| value.split(',')).map(address);
        for hop in hops.collect::<Vec<_>>().into_iter().rev() {
            // Entries before an unparsable one were not written by a trusted proxy.
            let address = hop?.to_canonical();
            if !self.trusts(address) {
                return Some(address);
            }
        }
        None
    }
}

/// Parses an address as proxies write it: bare, with a port, in brackets, in quotes.
fn address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let hop = hop.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(hop);
    let bare = || hop.parse().ok();
    let with_port = || hop.parse().ok().map(|address: SocketAddr| address.ip());
    let in_brackets = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    bare().or_else(with_port).or_else(in_brackets)
}

/// Replaces the proxy's address by the client's.
pub async fn forwarded(State(proxies): State<TrustedProxies>, mut request: Request, next: Next) -> Response {
    if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>().copied()
        && let Some(client) = proxies.client(peer.ip(), request.headers())
    {
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, peer.port())));
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str]) -> Option<String> {
        let proxies = TrustedProxies::new(["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        proxies.client(peer.parse().unwrap(), &headers).map(|address| address.to_string())
    }

    #[test]
    fn a_caller_cannot_say_where_they_come_from() {
        assert_eq!(client("192.0.2.7", &["198.51.100.1"]), None);
        assert_eq!(client("10.0.0.1", &["198.51.100.1, 192.0.2.7"]).as_deref(), Some("192.0.2.7"));
        assert_eq!(client("10.0.0.1", &["198.51.100.1", "192.0.2.7, 10.0.0.2"]).as_deref(), Some("192.0.2.7"));
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:192.0.2.7"]).as_deref(), Some("192.0.2.7"));
        for (written, meant) in [
            ("192.0.2.7:4711", "192.0.2.7"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("\"[2001:db8::1]:443\"", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
            ("192.0.2.7:4711, 10.0.0.2:80", "192.0.2.7"),
        ] {
            assert_eq!(client("10.0.0.1", &[written]).as_deref(), Some(meant), "{written}");
        }
        for nothing in [
            &[][..],
            &["unknown"],
            &["192.0.2.7:"],
            &["192.0.2.7:port"],
            &["[192.0.2.7]"],
            &["_hidden"],
            &["10.0.0.3, 10.0.0.2"],
            &["192.0.2.7, unknown"],
        ] {
            assert_eq!(client("10.0.0.1", nothing), None, "{nothing:?}");
        }
    }
}
