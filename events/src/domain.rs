//! Events of a domain that an organization claims.

use serde::{Deserialize, Serialize};

use crate::{DomainName, codec::event_enum};

event_enum! {
    /// The events of a domain.
    DomainEvent about aggregate {
        Claimed(DomainClaimed) = "domain.claimed", 1;
        Proven(DomainProven) = "domain.proven", 1;
        Removed(DomainRemoved) = "domain.removed", 1;
    }
}

/// The organization claimed the domain, which has no effect until it is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainClaimed {
    /// The domain.
    pub domain: DomainName,
    /// The text that a TXT record of the domain must have.
    pub challenge: String,
}

/// The domain's own DNS proved the claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainProven {
    /// The domain.
    pub domain: DomainName,
}

/// The domain is no longer the organization's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRemoved {
    /// The domain.
    pub domain: DomainName,
}
