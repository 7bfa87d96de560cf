//! Secret texts, and addresses with a login in them: neither is shown in logs or errors. Code that needs the text itself
//! requests it by name.

use std::fmt;

use reqwest::Url;
use serde::{Deserialize, Serialize};

/// A secret text. It is never shown; only where that is an answer's purpose is it serialized.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the text, for its intended recipient.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// An address of a server, or several with commas, maybe with a login. It is shown without the login and the query.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Returns all of it, to connect with.
    pub fn whole(&self) -> &str {
        &self.0
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Option<Vec<String>> = self.0.split(',').map(without_login).collect();
        // A login may also have a comma in it.
        match each.map(|each| each.join(",")).or_else(|| without_login(&self.0)) {
            Some(shown) => f.write_str(&shown),
            None => f.write_str("an address that cannot be read"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns scheme, host, port and path of one address; none when it is not certain which part of it is which.
fn without_login(text: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-_[]".contains(&byte);
    match text.trim().parse::<Url>() {
        Ok(url) if url.has_host() => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            let path = if url.path() == "/" { "" } else { url.path() };
            Some(format!("{}://{}{port}{path}", url.scheme(), url.host_str().unwrap_or_default()))
        }
        _ if text.trim().bytes().all(is_plain) => Some(text.trim().to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_login() {
        for (given, shown) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("127.0.0.1:4222", "127.0.0.1:4222"),
            ("nats://app:hidden@a:4222,nats://app:hidden@b:4222", "nats://a:4222,nats://b:4222"),
            ("nats://app:hidden@a:4222,b:4222", "nats://a:4222,b:4222"),
            ("postgres://app:hidden@db:5432/orgstream?password=hidden", "postgres://db:5432/orgstream"),
            ("postgres://127.0.0.1:1/nowhere", "postgres://127.0.0.1:1/nowhere"),
            ("https://hidden@collector/v1/traces?key=hidden", "https://collector/v1/traces"),
            ("postgres://app:hid,hidden@db/orgstream", "postgres://db/orgstream"),
            ("app:hidden@db", "an address that cannot be read"),
            ("postgres://app:hidden?hidden@db", "an address that cannot be read"),
        ] {
            let address = Address::from(given.to_owned());
            assert_eq!((address.to_string(), format!("{address:?}")), (shown.to_owned(), shown.to_owned()), "{given}");
            assert_eq!(address.whole(), given);
        }
        assert_eq!(format!("{:?}", Some(Secret::from("hidden".to_owned()))), "Some((secret))");
    }
}
