//! Public mailbox domains, where anyone can have an e-mail address: no organization can prove that one of them is its own.
//!
//! The large free mailbox providers and disposable mailboxes, as the providers name their own domains. Only the provider
//! could set a TXT record there, so the list saves people from a claim that leads nowhere; the proof is what counts.

use orgstream_events::DomainName;

const PUBLIC: &str = include_str!("public_domains.txt");

/// Whether the domain is a public mailbox domain.
pub(super) fn is_public(domain: &DomainName) -> bool {
    PUBLIC.lines().any(|line| line == domain.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_domain_and_they_are_in_order() {
        let lines: Vec<&str> = PUBLIC.lines().collect();
        assert!(lines.iter().all(|line| line.parse::<DomainName>().is_ok()), "{lines:?}");
        assert!(lines.windows(2).all(|pair| pair[0] < pair[1]), "in alphabetical order, each once");
        assert!(is_public(&"gmail.com".parse().unwrap()) && !is_public(&"mail.acme.example".parse().unwrap()));
    }
}
