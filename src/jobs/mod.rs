//! Background jobs of the API's processes.

pub mod audit_webhook;
pub mod history;
pub mod mail;
