//! Requests to addresses that customers choose: issuers of their own, webhooks. They must not lead into our own network,
//! neither by what is written in an address nor by what its name leads to.

use std::{net::IpAddr, sync::Arc, time::Duration};

use orgstream_events::DomainName;
use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

/// The longest address, in characters.
const MAX_URL: usize = 255;

/// Whether this program may send something to the address. It is a customer's to choose, so it must not lead into our own
/// network: only names that are public can be given, no numbers, and nothing but `https`. `local` allows this machine too.
pub(crate) fn is_outside(url: &str, local: bool) -> bool {
    let host_of = |rest: &str| rest.split(['/', ':', '?']).next().unwrap_or_default().to_owned();
    let plain = url.len() <= MAX_URL && url.bytes().all(|b| b.is_ascii_graphic()) && !url.contains(['#', '@', '\\']);
    let is_public = |host: &str| {
        let inward = ["localhost", "local", "internal", "lan", "home", "corp", "arpa", "svc"];
        host.to_ascii_lowercase().parse::<DomainName>().is_ok()
            && !host.rsplit('.').next().is_some_and(|last| inward.contains(&last.to_ascii_lowercase().as_str()))
    };
    let https = url.strip_prefix("https://").is_some_and(|rest| is_public(&host_of(rest)));
    let loopback = url.strip_prefix("http://").is_some_and(|rest| host_of(rest) == "127.0.0.1");
    plain && (https || (local && loopback))
}

/// A client for such addresses, which follows nobody elsewhere. `local` lets it reach this machine and its network too.
pub(crate) fn client(local: bool, timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    let http = reqwest::Client::builder().timeout(timeout).redirect(Policy::none());
    if local { http.build() } else { http.dns_resolver(Arc::new(PublicOnly)).build() }
}

/// Names lead to public addresses only: a customer chooses where posts go, and it must not be into our own network.
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

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let reserved = a == 0 || a >= 224 || (a == 198 && (18..20).contains(&b)) || (a == 192 && b == 0);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared || reserved)
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_public(IpAddr::V4(ip)),
            // Of the rest only what is for everybody: neither unique local, link local nor multicast.
            None => (ip.segments()[0] & 0xe000) == 0x2000,
        },
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
        ] {
            assert!(!is_public(inward.parse().unwrap()), "{inward}");
        }
        for public in ["1.1.1.1", "93.184.216.34", "100.128.0.1", "172.32.0.1", "2606:2800:220:1::1", "::ffff:8.8.8.8"]
        {
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
