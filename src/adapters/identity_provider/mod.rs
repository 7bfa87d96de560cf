//! The external identity provider, if the platform has one: every organization of several people has a counterpart there.
//! The port can create and find such organizations, and has no way to delete one.

mod auth0;

use std::fmt;

use futures_util::future::BoxFuture;
use orgstream_events::{Cause, OrgId};

pub use auth0::Auth0;

/// The name of the only supported provider, in events and claims.
pub const AUTH0: &str = "auth0";

/// The reason for the provider's missing answer.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct IdpError {
    /// The provider, and what it did.
    pub what: String,
    /// The cause, if it has nothing about the organization in it.
    #[source]
    pub cause: Option<Cause>,
}

/// Organizations at the provider.
pub trait IdentityOrganizations: fmt::Debug + Send + Sync + 'static {
    /// Creates the counterpart of `org`, or finds it as an earlier attempt created it. None where there is no provider.
    fn provision<'a>(&'a self, org: OrgId, name: &'a str) -> BoxFuture<'a, Result<Option<String>, IdpError>>;

    /// Whether an organization of this id exists. Where there is no provider, the caller is trusted.
    fn exists<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool, IdpError>>;
}

/// A platform without an external identity provider.
#[derive(Debug, Default)]
pub struct NoIdentityProvider;

impl IdentityOrganizations for NoIdentityProvider {
    fn provision<'a>(&'a self, _: OrgId, _: &'a str) -> BoxFuture<'a, Result<Option<String>, IdpError>> {
        Box::pin(async { Ok(None) })
    }

    fn exists<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool, IdpError>> {
        Box::pin(async { Ok(true) })
    }
}
