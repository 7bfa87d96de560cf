//! URLs that customers choose: which of them may be requested at all, judging by their text.

use orgstream_events::DomainName;

/// The longest URL, in characters.
const MAX_URL: usize = 255;

/// Whether this program may send something to the URL. A customer chooses it, so it must not lead into our own network: only
/// public names are permitted, no IP addresses, and no scheme but `https`. `local` permits this machine too.
pub fn is_public_url(url: &str, local: bool) -> bool {
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
