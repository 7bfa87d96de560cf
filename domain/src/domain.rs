//! One domain of an organization: claimed, then proven by its DNS records, then perhaps removed.

use orgstream_events::{
    AggregateId, AggregateType, DomainClaimed, DomainEvent, DomainId, DomainName, DomainProven, DomainRemoved, Event,
    OrgId, Role,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope, grants::Grant, public_domains,
};

/// The name below the domain where its TXT record is queried.
pub const RECORD: &str = "_orgstream-challenge";
/// The text before the challenge in the record.
pub const RECORD_KEY: &str = "orgstream-domain-verification=";

/// The state of a domain. By default it is unclaimed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Domain {
    claim: Option<DomainClaimed>,
    proven: bool,
}

impl Domain {
    /// Returns the claim, while there is one.
    pub fn claim(&self) -> Option<&DomainClaimed> {
        self.claim.as_ref()
    }

    /// Whether the domain's DNS proved that it is the organization's.
    pub fn is_proven(&self) -> bool {
        self.proven
    }
}

/// Returns the name of a domain's TXT record.
pub fn record_name(domain: &DomainName) -> String {
    format!("{RECORD}.{domain}")
}

/// The commands of a domain.
#[derive(Debug, Clone, PartialEq)]
pub enum DomainCommand {
    /// Claims the domain.
    Claim {
        /// The command as received.
        command: ClaimDomain,
        /// The text that a TXT record of the domain must have.
        challenge: String,
    },
    /// Proves the claim.
    Prove {
        /// The contents of the domain's TXT records.
        records: Vec<String>,
    },
    /// Removes the domain.
    Remove,
}

/// Says that a domain is the organization's own. What must be put into its DNS to prove it is shown with the domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimDomain {
    /// Domain name in lower case. Domains of public mail services are refused.
    #[schema(value_type = String, example = "acme.example")]
    pub domain: DomainName,
}

impl Declared for ClaimDomain {
    const SPEC: CommandSpec = CommandSpec {
        name: "claim_domain",
        requires: Requires::Permission(Permission::ManageDomains),
        events: &["domain.claimed"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Domain(DomainId::of(org, &self.domain)))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Looks whether the domain's DNS says what it must.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProveDomain {
    /// Domain id (`dom_` and 26 characters).
    #[schema(value_type = String, example = "dom_01h455vb4pex5vsknk084sn02q")]
    pub id: DomainId,
}

impl Declared for ProveDomain {
    const SPEC: CommandSpec = CommandSpec {
        name: "prove_domain",
        requires: Requires::Permission(Permission::ManageDomains),
        events: &["domain.proven"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Domain(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        // Every owner of an address of the domain may become a member.
        vec![Grant::Role(Role::Member)]
    }
}

/// Joins an organization by an address of a domain that it has proven to be its own, where it lets people in like that. For
/// people who sign in, at their own address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinByDomain {
    /// Domain name, the one of the caller's verified e-mail address.
    #[schema(value_type = String, example = "acme.example")]
    pub domain: DomainName,
}

impl Declared for JoinByDomain {
    const SPEC: CommandSpec = CommandSpec {
        name: "join_by_domain",
        requires: Requires::Person,
        events: &["member.added"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: false,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Member(org))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Offered]
    }
}

/// Gives a domain up. Members who came by it stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveDomain {
    /// Domain id (`dom_` and 26 characters).
    #[schema(value_type = String, example = "dom_01h455vb4pex5vsknk084sn02q")]
    pub id: DomainId,
}

impl Declared for RemoveDomain {
    const SPEC: CommandSpec = CommandSpec {
        name: "remove_domain",
        requires: Requires::Permission(Permission::ManageDomains),
        events: &["domain.removed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Domain(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for Domain {
    type Command = DomainCommand;
    type Event = DomainEvent;
    type Error = DomainError;
    const TYPE: AggregateType = AggregateType::Domain;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &DomainEvent) {
        match event {
            DomainEvent::Claimed(event) => *self = Self { claim: Some(event.clone()), proven: false },
            DomainEvent::Proven(_) => self.proven = true,
            DomainEvent::Removed(_) => *self = Self::default(),
        }
    }

    fn decide(&self, command: DomainCommand, _: &DecisionContext) -> Result<Vec<DomainEvent>, DomainError> {
        match (command, &self.claim) {
            (DomainCommand::Claim { .. }, Some(_)) => Err(DomainError::AlreadyExists),
            (DomainCommand::Claim { command: ClaimDomain { domain }, challenge }, None) => {
                if public_domains::is_public(&domain) {
                    return Err(DomainError::Public(domain));
                }
                Ok(vec![DomainEvent::Claimed(DomainClaimed { domain, challenge })])
            }
            (DomainCommand::Prove { .. } | DomainCommand::Remove, None) => Err(DomainError::NotFound),
            (DomainCommand::Prove { .. }, Some(_)) if self.proven => Ok(vec![]),
            (DomainCommand::Prove { records }, Some(claim)) => {
                let wanted = format!("{RECORD_KEY}{}", claim.challenge);
                if records.iter().any(|record| record.trim() == wanted) {
                    Ok(vec![DomainEvent::Proven(DomainProven { domain: claim.domain.clone() })])
                } else {
                    Err(DomainError::NotProven { name: record_name(&claim.domain), wanted })
                }
            }
            (DomainCommand::Remove, Some(claim)) => {
                Ok(vec![DomainEvent::Removed(DomainRemoved { domain: claim.domain.clone() })])
            }
        }
    }

    fn wrap(event: DomainEvent) -> Event {
        Event::Domain(event)
    }

    fn event_of(event: &Event) -> Option<&DomainEvent> {
        if let Event::Domain(event) = event { Some(event) } else { None }
    }
}

/// The reasons why a domain command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The domain is the organization's already.
    #[error("the organization has claimed this domain already")]
    AlreadyExists,
    /// The domain is not the organization's.
    #[error("there is no such domain in this organization")]
    NotFound,
    /// The domain is a public mailbox provider's.
    #[error("{0} gives addresses to the public, so no organization can claim it; give your own domain")]
    Public(DomainName),
    /// The domain's DNS does not have the record.
    #[error("{name} has no TXT record {wanted:?}; add it, and try again when your DNS shows it")]
    NotProven {
        /// The name of the record.
        name: String,
        /// The required content.
        wanted: String,
    },
}

impl From<DomainError> for Rejection {
    fn from(error: DomainError) -> Self {
        let (kind, code) = match &error {
            DomainError::AlreadyExists => (RejectionKind::Conflict, "domain_exists"),
            DomainError::NotFound => (RejectionKind::NotFound, "not_found"),
            DomainError::Public(_) => {
                let field = FieldError {
                    pointer: "/domain".to_owned(),
                    code: "public_domain".into(),
                    detail: error.to_string(),
                };
                return Self::invalid(vec![field]);
            }
            DomainError::NotProven { .. } => (RejectionKind::Conflict, "domain_not_proven"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fields, given, rejection};

    fn claim(domain: &str) -> DomainCommand {
        let command = ClaimDomain { domain: domain.parse().unwrap() };
        DomainCommand::Claim { command, challenge: "abc".to_owned() }
    }

    fn claimed() -> DomainEvent {
        DomainEvent::Claimed(DomainClaimed { domain: "acme.example".parse().unwrap(), challenge: "abc".to_owned() })
    }

    fn proven() -> DomainEvent {
        DomainEvent::Proven(DomainProven { domain: "acme.example".parse().unwrap() })
    }

    fn removed() -> DomainEvent {
        DomainEvent::Removed(DomainRemoved { domain: "acme.example".parse().unwrap() })
    }

    fn prove(records: &[&str]) -> DomainCommand {
        DomainCommand::Prove { records: records.iter().map(|&record| record.to_owned()).collect() }
    }

    #[test]
    fn a_domain_is_proven_by_the_record_that_was_asked_for() {
        assert_eq!(given::<Domain>(&[]).when(claim("acme.example")), Ok(vec![claimed()]));
        let domain = given::<Domain>(&[claimed()]);
        let right = ["v=spf1 -all", "orgstream-domain-verification=abc"];
        assert_eq!(domain.when(prove(&right)), Ok(vec![proven()]));
        for wrong in [&[][..], &["abc"], &["orgstream-domain-verification=abcd"]] {
            assert_eq!(rejection(domain.when(prove(wrong))).code, "domain_not_proven");
        }
        assert_eq!(given::<Domain>(&[claimed(), proven()]).when(prove(&[])), Ok(vec![]));
    }

    #[test]
    fn s2_17_domains_of_public_mail_services_are_refused() {
        for public in ["gmail.com", "outlook.com", "yahoo.co.uk", "proton.me"] {
            let found = fields(given::<Domain>(&[]).when(claim(public)));
            assert_eq!(found, [("/domain".to_owned(), "public_domain".to_owned())], "{public}");
        }
    }

    #[test]
    fn what_was_removed_can_be_claimed_and_must_be_proven_again() {
        assert_eq!(given::<Domain>(&[claimed()]).when(claim("acme.example")), Err(DomainError::AlreadyExists));
        assert_eq!(given::<Domain>(&[claimed(), proven()]).when(DomainCommand::Remove), Ok(vec![removed()]));
        let again = given::<Domain>(&[claimed(), proven(), removed(), claimed()]);
        assert_eq!(rejection(again.when(prove(&[]))).code, "domain_not_proven");
        assert_eq!(given::<Domain>(&[claimed(), removed()]).when(prove(&[])), Err(DomainError::NotFound));
    }
}
