//! Authentication and authorization. The only place where a credential becomes an org.

pub mod access;
pub mod approval;
pub mod authenticator;
pub mod connections;
mod decided;
pub mod issuers;
pub mod key_uses;
pub mod keys;
pub mod leaks;
pub mod oidc;
pub mod operators;
pub mod rules;
pub mod session;

pub use access::{Access, Principal, PrincipalReference};
pub use authenticator::{AuthError, Authenticator};
pub use operators::Operator;
pub use rules::OrgPolicy;
