//! The parts of every route: authentication, request shapes, limits, and answers.

pub mod active_org;
pub mod ahead;
pub mod bounds;
pub mod compress;
pub mod conditional;
pub mod cookie;
pub mod extract;
pub mod guard;
pub mod looks;
pub mod middleware;
pub mod openapi;
pub mod page;
pub mod permission_table;
pub mod policy;
pub mod proxies;
pub mod rate_limit;
pub mod reply;
pub mod route_table;
pub mod routes;
pub mod server;
pub mod shared;
pub mod wait;
