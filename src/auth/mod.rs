//! Who asks, and what they may do. The only place where a credential becomes an org.

pub mod access;
pub mod authenticator;
pub mod connections;
pub mod invitation;
pub mod key;
pub mod oidc;
pub mod permission;

pub use access::{Access, Principal};
pub use authenticator::{AuthError, Authenticator};
pub use permission::Permission;
