//! Sign-ins: users as their issuers know them, and their sessions.
//!
//! This is operational state, as leases are: no event makes it, no replay restores it, and no organization sees it. The
//! queries run as a login of their own, which can reach this schema and nothing of a tenant.

mod sessions;
mod users;

pub use sessions::{NewSession, Session};
pub use users::{SignIn, User};
