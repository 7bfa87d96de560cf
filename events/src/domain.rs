//! Events of a domain that an organization says is its own.

use serde::{Deserialize, Serialize};

use crate::{DomainName, codec::event_enum};

event_enum! {
    /// What happens to a domain.
    DomainEvent {
        Claimed(DomainClaimed) = "domain.claimed", 1;
        Proven(DomainProven) = "domain.proven", 1;
        Removed(DomainRemoved) = "domain.removed", 1;
    }
}

/// The organization says that the domain is its own, which is worth nothing until it is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainClaimed {
    /// Which.
    pub domain: DomainName,
    /// What a TXT record of the domain must say.
    pub challenge: String,
}

/// The domain's own DNS said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainProven {
    /// Which.
    pub domain: DomainName,
}

/// It is not the organization's any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRemoved {
    /// Which.
    pub domain: DomainName,
}
