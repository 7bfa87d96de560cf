//! Routes, each with its handler and its policy: there is no way to have a handler without one.

use std::sync::Arc;

use axum::Router;
use utoipa::openapi::{OpenApi, PathItem};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::policy::{AuditTrail, Policy, RoutePolicy, Shape};
use crate::api::http::App;

/// Routes of the API.
#[derive(Default)]
pub struct Routes {
    router: OpenApiRouter<Arc<App>>,
    policies: Vec<RoutePolicy>,
}

impl Routes {
    /// Starts without routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts without routes, in a document with this head.
    pub fn with_openapi(head: OpenApi) -> Self {
        Self { router: OpenApiRouter::with_openapi(head), policies: Vec::new() }
    }

    /// Adds a handler: `routes!(...)` has its method and its path.
    #[must_use]
    pub fn route(
        mut self,
        handler: UtoipaMethodRouter<Arc<App>>,
        policy: Policy,
        shape: Shape,
        audit_trail: AuditTrail,
    ) -> Self {
        for (path, item) in &handler.1.paths {
            let path = path.clone();
            self.policies.extend(methods(item).map(|method| RoutePolicy {
                method,
                path: path.clone(),
                policy,
                shape,
                audit_trail,
            }));
        }
        Self { router: self.router.routes(handler), ..self }
    }

    /// Adds the routes of a room.
    #[must_use]
    pub fn merge(mut self, room: Self) -> Self {
        self.policies.extend(room.policies);
        Self { router: self.router.merge(room.router), ..self }
    }

    /// Returns the router and its description.
    pub fn split(self) -> (Router<Arc<App>>, OpenApi) {
        self.router.split_for_parts()
    }

    /// Returns the policies of all routes, in the order of their declaration.
    pub fn into_policies(self) -> Vec<RoutePolicy> {
        self.policies
    }
}

fn methods(item: &PathItem) -> impl Iterator<Item = &'static str> {
    [("GET", &item.get), ("POST", &item.post), ("PUT", &item.put), ("PATCH", &item.patch), ("DELETE", &item.delete)]
        .into_iter()
        .filter_map(|(method, operation)| operation.is_some().then_some(method))
}
