//! Everything on one machine: private servers, sign-in and a demo. Nothing here runs in production.

pub mod demo;
pub mod issuer;
pub mod stack;
