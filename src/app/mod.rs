//! The operations of the API, whichever way a request came: submitted commands, waiting reads, recorded access, errors.

pub mod access_log;
pub mod admit;
pub mod error_codes;
pub mod event_view;
pub mod initial_kinds;
pub mod initial_plans;
mod key_lookups;
mod onboarding;
pub mod plan_reads;
pub mod problem;
pub mod quota_figures;
mod read_your_writes;
pub mod reveal;
pub mod seldom;
pub mod submit;
pub mod waiting;
