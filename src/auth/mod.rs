//! Who asks, and what they may do. The only place where a credential becomes an org.

pub mod access;
pub mod approval;
pub mod authenticator;
pub mod authority;
pub mod connections;
pub mod invitation;
pub mod issuers;
pub mod key;
pub mod key_uses;
pub mod keys;
pub mod leaks;
pub mod oidc;
pub mod operators;
pub mod permission;
pub mod rules;
pub mod session;
pub mod session_token;

pub use access::{Access, Principal};
pub use authenticator::{AuthError, Authenticator};
pub use operators::Operator;
pub use permission::{Permission, Scopes};
pub use rules::Rules;
