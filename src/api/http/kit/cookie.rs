//! The session of a browser: a cookie that no script can read, and that is valid only for requests of our own pages.
//!
//! A browser sends a cookie whatever page makes the request. So a request by cookie that changes something must prove its
//! origin, in a header that pages cannot set: `Sec-Fetch-Site`, or `Origin` from browsers without it.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};
use orgstream_domain::credentials::session::SessionToken;

use super::extract::header_text;
use crate::{app::problem::Problem, auth::AuthError};

/// The name of the cookie. The prefix makes browsers refuse it unless it is secure and of this host alone.
pub const NAME: &str = "__Host-orgstream_session";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns the cookie that sets a browser's session, until it ends.
pub fn give(token: &SessionToken, longest: Duration) -> Option<HeaderValue> {
    let text =
        format!("{NAME}={}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={}", token.reveal(), longest.as_secs());
    HeaderValue::from_str(&text).ok()
}

/// Returns the cookie that removes it.
pub fn take() -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("{NAME}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")).ok()
}

/// Returns the credential of a request in the form of `Authorization`: that header, or without it the cookie.
pub fn credential(parts: &Parts) -> Result<Option<String>, Problem> {
    if let Some(text) = header_text(&parts.headers, &header::AUTHORIZATION)? {
        return Ok(Some(text.to_owned()));
    }
    let Some(token) = session_of(&parts.headers) else { return Ok(None) };
    let is_safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(&parts.method);
    if !is_safe && !is_from_here(&parts.headers, &parts.uri) {
        return Err(AuthError::CrossSite.into());
    }
    Ok(Some(format!("Bearer {token}")))
}

fn session_of(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, value)| *name == NAME && SessionToken::looks_like_one(value)).map(|(_, value)| value)
}

fn is_from_here(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(&SEC_FETCH_SITE) {
        // `none`: no page, but the person themselves.
        return matches!(site, "same-origin" | "none");
    }
    let host = text(&header::HOST).or(uri.authority().map(axum::http::uri::Authority::as_str));
    let origin = text(&header::ORIGIN).and_then(|origin| origin.split_once("://"));
    let Some((host, (scheme, origin))) = host.zip(origin) else { return false };
    // The cookie is for secure pages only, which are those of https, and those of the user's own machine.
    let is_secure =
        scheme.eq_ignore_ascii_case("https") || (scheme.eq_ignore_ascii_case("http") && is_this_machine(host));
    is_secure && host.eq_ignore_ascii_case(origin)
}

fn is_this_machine(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || matches!(name, "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn asked(method: &str, headers: &[(&str, &str)]) -> Result<Option<String>, &'static str> {
        let request = headers.iter().fold(Request::builder().method(method).uri("/v1/me"), |request, (name, value)| {
            request.header(*name, *value)
        });
        credential(&request.body(()).unwrap().into_parts().0).map_err(|problem| problem.code)
    }

    #[test]
    fn a_cookie_is_a_credential_and_the_header_comes_first() {
        let cookie = format!("theme=dark; {NAME}=os_ses_abc");
        assert_eq!(asked("GET", &[("cookie", &cookie)]), Ok(Some("Bearer os_ses_abc".to_owned())));
        let both = [("cookie", cookie.as_str()), ("authorization", "Bearer x")];
        assert_eq!(asked("POST", &both), Ok(Some("Bearer x".to_owned())));
        assert_eq!(asked("GET", &[("cookie", "other=os_ses_abc")]), Ok(None));
        assert_eq!(asked("GET", &[("cookie", &format!("{NAME}=os_live_key"))]), Ok(None));
    }

    #[test]
    fn what_changes_something_must_come_from_our_own_pages() {
        let cookie = format!("{NAME}=os_ses_abc");
        let with = |name, value| asked("POST", &[("cookie", &cookie), ("host", "acme.example"), (name, value)]);
        for (name, value) in [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
            ("origin", "https://acme.example"),
            ("origin", "https://ACME.example"),
        ] {
            assert!(with(name, value).is_ok(), "{name}: {value}");
        }
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "http://acme.example"),
            ("origin", "ftp://acme.example"),
            ("origin", "https://evil.example"),
            ("origin", "https://acme.example.evil"),
            ("origin", "null"),
            ("accept", "*/*"),
        ] {
            assert_eq!(with(name, value), Err("cross_site_request"), "{name}: {value}");
        }
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080"] {
            let origin = format!("http://{host}");
            assert!(asked("POST", &[("cookie", &cookie), ("host", host), ("origin", &origin)]).is_ok(), "{host}");
        }
    }

    #[test]
    fn the_cookie_is_for_this_host_and_no_script() {
        let token = SessionToken::generate([1; 32]);
        let given = give(&token, Duration::from_secs(60)).unwrap();
        let text = given.to_str().unwrap();
        assert!(text.starts_with(&format!("{NAME}={};", token.reveal())) && text.ends_with("; Max-Age=60"), "{text}");
        for part in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"] {
            assert!(text.contains(part) && take().unwrap().to_str().unwrap().contains(part), "{part}");
        }
        assert!(take().unwrap().to_str().unwrap().ends_with("Max-Age=0"));
    }
}
