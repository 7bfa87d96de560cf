//! Requests to addresses that customers choose: issuers of their own, webhooks. They must not lead into our own network,
//! neither by the text of an address nor by what its name resolves to.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

/// Creates a client for such addresses, which follows no redirects. `local` lets it reach this machine and its network too.
///
/// It uses no proxy, whatever the environment says: a proxy would resolve the names itself, and reach addresses that are
/// forbidden to us.
pub(crate) fn client(local: bool, timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    let http = reqwest::Client::builder().timeout(timeout).redirect(Policy::none()).no_proxy();
    if local { http.build() } else { http.dns_resolver(Arc::new(PublicOnly)).build() }
}

/// Resolves names to public addresses only: a customer chooses where posts go, and it must not be into our own network.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<_> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("the name leads to no public address".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// IPv4 ranges that are not public (IANA's special-purpose registry), besides multicast and reserved ones.
const NOT_FOR_ALL_V4: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 52, 193, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
];
/// The IPv6 range that is assigned for public use.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// The parts of it that are not: protocols (Teredo among them), documentation, 6to4, and more documentation. Teredo and 6to4
/// embed an IPv4 address, which may be any.
const NOT_FOR_ALL_V6: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether an address belongs to the public internet, and does not stand for another address.
fn is_public(ip: IpAddr) -> bool {
    let within = |(network, length): (IpAddr, u8)| IpNet::new(network, length).is_ok_and(|net| net.contains(&ip));
    match ip {
        IpAddr::V4(v4) => {
            let is_for_few = NOT_FOR_ALL_V4.iter().any(|(network, length)| within((IpAddr::V4(*network), *length)));
            !is_for_few && v4.octets().first().is_some_and(|first| *first < 224)
        }
        IpAddr::V6(_) => {
            let is_for_few = NOT_FOR_ALL_V6.iter().any(|(network, length)| within((IpAddr::V6(*network), *length)));
            within((IpAddr::V6(GLOBAL_V6.0), GLOBAL_V6.1)) && !is_for_few
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posts_go_to_public_addresses_only() {
        for inward in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "240.0.0.1",
            // Addresses that stand for others: mapped, compatible, NAT64 (both prefixes), 6to4, Teredo.
            "::ffff:8.8.8.8",
            "::8.8.8.8",
            "64:ff9b::a00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::a00:1",
            "2002:a00:1::1",
            "2002:808:808::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            // Site local, discard, benchmarks, ORCHID, documentation, SRv6.
            "fec0::1",
            "100::1",
            "2001:2::1",
            "2001:20::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
        ] {
            assert!(!is_public(inward.parse().unwrap()), "{inward}");
        }
        for public in [
            "1.1.1.1",
            "93.184.216.34",
            "100.128.0.1",
            "172.32.0.1",
            "2606:2800:220:1::1",
            "2a00:1450::1",
            "2001:4860:4860::8888",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_inward_is_not_asked() {
        let request = |local| async move {
            let http = client(local, Duration::from_secs(5)).unwrap();
            format!("{:?}", http.get("http://localhost:1/").send().await.unwrap_err())
        };
        assert!(request(false).await.contains("no public address"));
        assert!(!request(true).await.contains("no public address"));
    }
}
