//! The table of permissions as a page for people: `docs/reference/permissions.md`, generated from the tables that the program itself
//! obeys.

use std::fmt::Write;

use orgstream_domain::{Command, Permission};
use orgstream_events::Role;

use super::policy::{AuditTrail, Policy, ROUTES};

const HEAD: &str = "\
# Permissions

Written by `DOCS_WRITE=1` from the tables that the routes, the NATS subjects and this page share.

What is in neither table is allowed to no caller. An API key has a role and may have scopes: then it may do what its role may
*and* its scopes name, and gives no more than that. What is an operator's is done with an operator's token; what else a
tenant has, an operator reads only by break-glass access (`POST /v1/organizations/{org}/break-glass`); those permissions are
marked *break-glass*.
";

/// Returns the page.
pub fn permissions_page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## Permissions and roles\n\n| permission |");
    for role in Role::BUILT_IN {
        let _ = write!(page, " {role} |");
    }
    page.push_str(" operator |\n|---|---|---|---|---|---|---|\n");
    for permission in Permission::ALL {
        let _ = write!(page, "| `{permission}` |");
        for role in Role::BUILT_IN {
            page.push_str(if permission.is_granted_to(role) { " yes |" } else { " |" });
        }
        page.push_str(match (permission.is_operators() || is_platforms(*permission), permission.is_reading()) {
            (true, _) => " yes |\n",
            (false, true) => " break-glass |\n",
            (false, false) => " |\n",
        });
    }
    page.push_str("\n## Commands\n\nBy `POST /v1/organizations/{org}/commands`, and by NATS on `cmd.<org>`.\n\n");
    page.push_str("| command | permission | in the audit log |\n|---|---|---|\n");
    for spec in Command::SPECS {
        let who = spec.requires.permission().map_or("a person, for themselves".to_owned(), code);
        let _ = writeln!(page, "| `{}` | {who} | `{}` |", spec.name, spec.events.join("`, `"));
    }
    page.push_str("\n## Routes\n\n| route | who | in the audit log |\n|---|---|---|\n");
    for route in ROUTES.iter() {
        let _ = writeln!(
            page,
            "| `{} {}` | {} | {} |",
            route.method,
            route.path,
            who(route.policy),
            told(route.audit_trail)
        );
    }
    page
}

fn code(permission: Permission) -> String {
    format!("`{permission}`")
}

/// Whether it is about the platform's own organization, which is the operator's.
fn is_platforms(permission: Permission) -> bool {
    !Role::BUILT_IN.into_iter().any(|role| permission.is_granted_to(role))
}

fn who(policy: Policy) -> String {
    match policy {
        Policy::Public => "no credential needed".to_owned(),
        Policy::SignedIn => "every credential".to_owned(),
        Policy::Operator => "operators".to_owned(),
        Policy::Org(permission) => code(permission),
        Policy::OrgCommands => "by command".to_owned(),
    }
}

fn told(audit_trail: AuditTrail) -> String {
    match audit_trail {
        AuditTrail::Events => "what was done".to_owned(),
        AuditTrail::AccessEvent(name) => format!("`{name}`"),
        AuditTrail::ReadNotAudited | AuditTrail::NotTenantScoped => String::new(),
    }
}
