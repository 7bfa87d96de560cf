//! Names that people choose and that appear in subjects and URLs. Each is parsed once, into its newtype.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ConnectionId, OrgId, PLATFORM_ORG};

/// The word for the caller's own organization, where a slug or an id is accepted.
pub const CURRENT_ORG: &str = "current";

/// How the names of kinds begin that are an organization's own, and no others.
pub const OWN_KIND: &str = "x_";

/// The reason why a text is not a valid name. The message is meant for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    rule: &'static str,
    text: String,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $what:literal, $rule:literal, $valid:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                let valid: fn(&[u8]) -> bool = $valid;
                if valid(text.as_bytes()) {
                    Ok(Self(text))
                } else {
                    Err(NameError { what: $what, rule: $rule, text: text.chars().take(80).collect() })
                }
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                text.to_owned().try_into()
            }
        }
    )*};
}

names! {
    /// The name of a record kind, for example `evaluation` or `yara_rule`.
    KindName: "kind name", "1 to 63 of a-z, 0-9 and _, beginning with a letter", |text| {
        text.len() <= 63
            && text.first().is_some_and(u8::is_ascii_lowercase)
            && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
    };
    /// An organization's name in URLs. Unique over all organizations.
    Slug: "slug", "2 to 128 of a-z and 0-9, with single -, ., _ or ~ between them", |text| {
        let between = |b: &u8| matches!(b, b'-' | b'.' | b'_' | b'~');
        (2..=128).contains(&text.len())
            && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || between(b))
            && !text.first().is_some_and(between)
            && !text.last().is_some_and(between)
            && !text.windows(2).any(|pair| pair.iter().all(between))
            // An id is accepted wherever a slug is, so the two must never look alike; nor may a slug look like an id of
            // another kind.
            && !text.starts_with(b"org_")
            && !text.rsplit(|b| *b == b'_').next().is_some_and(|last| last.len() == 26 && last.len() < text.len())
    };
    /// A domain of e-mail addresses, in lower case and in DNS form (`xn--` for other letters).
    DomainName: "domain", "at least two labels of a-z, 0-9 and hyphens with dots between them, in lower case", |text| {
        let is_label = |label: &[u8]| {
            (1..=63).contains(&label.len())
                && label.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
                && label.first() != Some(&b'-')
                && label.last() != Some(&b'-')
        };
        text.len() <= 253
            && text.contains(&b'.')
            && text.split(|b| *b == b'.').all(is_label)
            // A number at the end makes it an IP address, no name.
            && text.rsplit(|b| *b == b'.').next().is_some_and(|last| last.iter().any(u8::is_ascii_lowercase))
    };
    /// The name of a plan, for example `standard` or `enterprise`. Its meaning is up to the component that uses it.
    PlanName: "plan name", "1 to 63 of a-z, 0-9, - and _, beginning with a letter", |text| {
        text.len() <= 63
            && text.first().is_some_and(u8::is_ascii_lowercase)
            && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    /// The name of a meter, for example `tokens` or `ecu`: what amounts are amounts of.
    MeterName: "meter name", "1 to 31 of a-z, 0-9 and _, beginning with a letter", |text| {
        text.len() <= 31
            && text.first().is_some_and(u8::is_ascii_lowercase)
            && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
    };
    /// The currency of an installation's prices and invoices, by its code in ISO 4217.
    Currency: "currency", "three of A-Z, as in ISO 4217", |text| text.len() == 3 && text.iter().all(u8::is_ascii_uppercase);
    /// A sign-in method, as an organization allows or forbids it.
    LoginMethod: "way to sign in", "oidc, api_key, or sso: and the id of a connection", |text| {
        let connection = |id: &[u8]| {
            (1..=63).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        matches!(text, b"oidc" | b"api_key") || text.strip_prefix(b"sso:").is_some_and(connection)
    };
    /// The part of an API key that identifies it: not secret, and enough to find the key's organization.
    KeyPublicId: "key id", "12 of 0-9, A-Z and a-z", |text| {
        text.len() == 12 && text.iter().all(u8::is_ascii_alphanumeric)
    };
}

impl DomainName {
    /// Returns the domain of an e-mail address, in lower case; none when it has no valid one.
    pub fn of_email(email: &str) -> Option<Self> {
        email.rsplit_once('@')?.1.to_ascii_lowercase().parse().ok()
    }
}

impl PlanName {
    /// Returns the plan of callers that read data of all organizations, and have no organization of their own.
    pub fn public() -> Self {
        Self("public".to_owned())
    }

    /// Returns the plan that a personal organization begins on.
    pub fn trial() -> Self {
        Self("trial".to_owned())
    }
}

impl Default for PlanName {
    /// Returns the plan of every organization that was never put on another.
    fn default() -> Self {
        Self("standard".to_owned())
    }
}

impl Default for Currency {
    /// Returns the currency of an installation that names none.
    fn default() -> Self {
        Self("EUR".to_owned())
    }
}

impl LoginMethod {
    /// A token of a configured OpenID Connect issuer, or a session that was created with one.
    pub fn oidc() -> Self {
        Self("oidc".to_owned())
    }

    /// An API key.
    pub fn api_key() -> Self {
        Self("api_key".to_owned())
    }

    /// An issuer by which one organization's people sign in.
    pub fn sso(connection: ConnectionId) -> Self {
        Self(format!("sso:{connection}"))
    }

    /// Whether the method authenticates people.
    pub fn is_for_people(&self) -> bool {
        self.0 != "api_key"
    }
}

impl KindName {
    /// Whether the kind is an organization's own, and not the platform's.
    pub fn is_own(&self) -> bool {
        self.as_str().starts_with(OWN_KIND)
    }

    /// Returns the organization that defines what `org` means by this name: the one answer to whose a kind is.
    pub fn owner(&self, org: OrgId) -> OrgId {
        if self.is_own() { org } else { PLATFORM_ORG }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_11_slugs_are_url_safe() {
        for good in ["acme", "a1", "acme-corp-2", "acme.example", "a_b~c", &"a".repeat(128)] {
            assert!(good.parse::<Slug>().is_ok(), "{good}");
        }
        let (long, id) = ("a".repeat(129), "mem_01h455vb4pex5vsknk084sn02q");
        for bad in ["", "a", "-acme", "acme.", "a--b", "a._b", "..", "Acme", "a/b", "a b", "ä1", "org_x", id, &long] {
            assert!(bad.parse::<Slug>().is_err(), "{bad}");
        }
    }

    #[test]
    fn domains_are_what_stands_behind_the_at() {
        assert_eq!(DomainName::of_email("Ann@Acme.Example"), "acme.example".parse().ok());
        assert!("xn--mnchen-3ya.example".parse::<DomainName>().is_ok());
        for bad in ["", "acme", ".example", "acme.", "a..b", "Acme.example", "-a.example", "a_b.example", "10.0.0.1"] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad}");
        }
        assert_eq!(DomainName::of_email("ann"), None);
    }

    #[test]
    fn the_usual_plan_has_a_good_name() {
        assert_eq!("standard".parse(), Ok(PlanName::default()));
        for bad in ["", "Standard", "a=1", "a,b", "1st", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<PlanName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_currency_has_a_code_of_three_letters() {
        assert_eq!("EUR".parse(), Ok(Currency::default()));
        for bad in ["", "eur", "EURO", "E1R", "€"] {
            assert!(bad.parse::<Currency>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ways_to_sign_in_are_known_or_name_a_connection() {
        for good in ["oidc", "api_key", "sso:conn_1", "sso:a-b"] {
            assert!(good.parse::<LoginMethod>().is_ok(), "{good}");
        }
        for bad in ["", "password", "sso:", "sso", "sso:a b", "OIDC"] {
            assert!(bad.parse::<LoginMethod>().is_err(), "{bad}");
        }
        assert_eq!("oidc".parse(), Ok(LoginMethod::oidc()));
        assert!(LoginMethod::oidc().is_for_people() && !LoginMethod::api_key().is_for_people());
    }

    #[test]
    fn kind_names_are_one_subject_token() {
        assert!("yara_rule".parse::<KindName>().is_ok());
        for bad in ["", "1st", "a.b", "a*", ">", "a b", "Kind"] {
            assert!(bad.parse::<KindName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_kind_says_by_its_name_whose_it_is() {
        let org = OrgId::fresh(1, [1; 10]);
        for (name, owner) in
            [("x_ticket", org), ("xray", PLATFORM_ORG), ("model", PLATFORM_ORG), ("max_", PLATFORM_ORG)]
        {
            assert_eq!(name.parse::<KindName>().unwrap().owner(org), owner, "{name}");
        }
    }
}
