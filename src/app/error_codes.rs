//! All error codes, each once: with their statuses and their meaning to the client. The API's description and
//! `docs/reference/errors.md` are generated from this table.

/// An error code.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// The code that programs match on. It never changes.
    pub code: &'static str,
    /// The statuses that it comes with.
    pub statuses: &'static [u16],
    /// The cause and the remedy.
    pub meaning: &'static str,
}

const fn code(code: &'static str, statuses: &'static [u16], meaning: &'static str) -> Code {
    Code { code, statuses, meaning }
}

/// The table, by status.
pub const CODES: &[Code] = &[
    code("bad_request", &[400], "The request contradicts itself; `detail` says where."),
    code("malformed_body", &[400], "The body is not what its content type says; `detail` says from which place on."),
    code("invalid_header", &[400], "A header is not as it must be; `detail` names it."),
    code("invalid_parameter", &[400], "A parameter of the path or the query is not as it must be; `detail` names it."),
    code("idempotency_key_missing", &[400], "Several commands at once need an idempotency key."),
    code("position_beyond_end", &[400], "The position lies behind the last event. Begin again without it."),
    code("unauthenticated", &[401], "There is no credential, or none that counts (any more)."),
    code(
        "insufficient_balance",
        &[402],
        "The account has less than is needed; `figures` says how much of it, and when the plan grants more.",
    ),
    code("billing_required", &[402], "The trial is over: nothing is used before a paid plan is chosen."),
    code("forbidden", &[403], "The role, or the scopes of the key, do not allow it."),
    code("organization_suspended", &[403], "The organization is suspended by the platform."),
    code("organization_being_deleted", &[403], "The organization is being deleted; an owner can cancel that."),
    code("fresh_sign_in_required", &[403], "It takes a session of the last minutes. Sign in again."),
    code("session_only", &[403], "Not with an API key: it takes a person."),
    code("key_only", &[403], "It takes an API key, and not a person or an operator."),
    code("session_required", &[403], "It takes a session: POST /v1/sessions makes one."),
    code("sign_in_required", &[403], "It takes a token of the issuer, and not a session."),
    code("auth_method_not_allowed", &[403], "The organization does not let people in who sign in this way."),
    code("mfa_required", &[403], "The organization asks for a second factor."),
    code("cross_site_request", &[403], "A cookie counts for requests of our own pages only."),
    code("tenant_mismatch", &[403], "The header names another organization than the path."),
    code("own_issuer_only", &[403], "The organization's own issuer signs people in for that organization alone."),
    code("plan_required", &[403], "The plan does not include it."),
    code("bad_signature", &[403], "The report is not signed by a trusted reporter."),
    code("role_above_own", &[403], "The role may do more than the caller, who cannot give it."),
    code("scope_above_own", &[403], "The scopes are more than the caller has, who cannot give them."),
    code("approval_required", &[403], "It takes the approval of another operator."),
    code("approval_not_valid", &[403], "The approval is for another access, by the caller, or too old."),
    code("operator_is_nobody", &[403], "It takes an operator who signed in, not the static token."),
    code("invitation_other_email", &[403], "The invitation is for another e-mail address."),
    code("invites_off", &[403], "The organization takes no invitations."),
    code("domain_not_allowed", &[403], "The organization invites addresses of some domains only."),
    code("jit_not_allowed", &[403], "The organization does not let people in by signing in."),
    code("member_was_removed", &[403], "A removed member comes back by an invitation only."),
    code("domain_not_proven", &[403, 409], "The domain is not proven to be the organization's."),
    code("not_found", &[404], "There is no such thing, or none for this caller."),
    code("nats_credentials_unavailable", &[404], "This installation issues no credentials for NATS."),
    code("method_not_allowed", &[405], "The path has no such method; `Allow` names those that it has."),
    code("body_too_slow", &[408], "The body does not come as fast as it must; `detail` says how fast that is."),
    code("active_org_changed", &[409], "The session acts in another organization now; `detail` says how to go on."),
    code("event_parked", &[409], "The event at this position could not be applied: the operator decides about it."),
    code("contention", &[409], "Too many changed the same thing at once. Try again."),
    code("hold_not_open", &[409], "The hold was settled or released, its deadline has passed, or it never was."),
    code("more_than_held", &[409], "More was used than is held: extend the hold before that."),
    code("top_up_not_sold", &[409], "The plan sells none of the meter beforehand."),
    code("top_up_not_open", &[409], "The top-up was paid or declined, or it never was."),
    code("too_many_grants", &[409], "The account has as many grants that are not used up as it may have."),
    code("month_not_over", &[409], "The month goes on until `figures.ends_at`; it is closed then."),
    code("invoice_not_final", &[409], "The invoice is a draft until a day after the end of its month."),
    code("invoice_settled", &[409], "The invoice is paid or void, which is for good."),
    code("invoice_too_large", &[409], "The sum is more than an invoice can have: the prices of the plan are too high."),
    code("organization_exists", &[409], "There is an organization with this id already."),
    code("slug_taken", &[409], "Another organization has this slug."),
    code("identity_taken", &[409], "Another organization stands for this one at the external identity provider."),
    code("organization_not_suspended", &[409], "The organization is not suspended."),
    code("organization_deleted", &[409], "The organization was deleted, for good."),
    code(
        "deletion_not_requested",
        &[409],
        "No deletion of the organization was requested, or it is not to be carried out yet.",
    ),
    code("personal_organization", &[409], "A personal organization is for one person."),
    code("not_a_personal_organization", &[409], "It is a personal organization no more."),
    code("members_exist", &[409], "The organization has members already."),
    code("would_lock_out", &[409], "The change might lock out its author: sign in in a way that stays allowed."),
    code("already_member", &[409], "They are a member already."),
    code("email_taken", &[409], "Another member has this e-mail address."),
    code("last_owner", &[409], "An organization keeps at least one owner."),
    code("invitation_exists", &[409], "There is an invitation with this id already."),
    code("invitation_used", &[409], "The invitation was accepted already."),
    code("invitation_revoked", &[409], "The invitation was taken back."),
    code("invitation_withdrawn", &[409], "The invitation does not count any more. Ask for a new one."),
    code("invitation_expired", &[409], "The invitation has expired. Ask for a new one."),
    code("too_many_sessions", &[409], "The person has as many sessions as may be. End one."),
    code("too_many_roles", &[409], "The organization has as many roles of its own as it may."),
    code("domain_exists", &[409], "The organization has this domain already."),
    code("dns_unavailable", &[409], "The name servers of the domain do not answer. Try again later."),
    code("sso_connection_exists", &[409], "There is a connection with this id already."),
    code("sso_connection_taken", &[409], "Another organization has this issuer and audience."),
    code("too_many_sso_connections", &[409], "The organization has as many connections as it may."),
    code("last_way_in", &[409], "People have no other way to sign in than this connection. Allow another one first."),
    code("identity_provider_unavailable", &[409], "The external identity provider does not answer. Try again."),
    code("api_key_exists", &[409], "There is a key with this id already."),
    code("api_key_ended", &[409], "The key has expired or was revoked."),
    code("record_exists", &[409], "There is a record with this id already."),
    code("value_taken", &[409], "Another record of the kind has the value of a field whose values are unique."),
    code("record_append_only", &[409], "The record is of a kind whose records are written once."),
    code("record_archived", &[409], "The record is archived and cannot be changed."),
    code("secret_destroyed", &[409], "The value of the secret was destroyed. Set it again."),
    code("kind_exists", &[409], "There is a kind of this name already."),
    code(
        "kind_limit_exceeded",
        &[409],
        "The organization has as many kinds of its own as its plan allows; `detail` names the limit and what is used.",
    ),
    code(
        "members_quota_exceeded",
        &[409],
        "The organization has as many members as it may have; `figures` says how many.",
    ),
    code(
        "api_keys_quota_exceeded",
        &[409],
        "The organization has as many API keys that work as it may have; `figures` says how many. Revoke one.",
    ),
    code("webhooks_quota_exceeded", &[409], "The audit log of the organization is not posted to as many addresses."),
    code(
        "storage_quota_exceeded",
        &[409],
        "The records of the organization take as many bytes as they may; `figures` says how many. Archive some.",
    ),
    code("kind_retired", &[409, 422], "The kind is retired: nothing new of it is made."),
    code("too_many_catalog_choices", &[409], "The organization pins and hides as many items as it may. Clear one."),
    code("version_conflict", &[412], "It has changed since: read it again, and decide again."),
    code("payload_too_large", &[413], "Over a limit, which `detail` names."),
    code("answer_too_large", &[413], "The commands were carried out, and the answer does not fit: send fewer at once."),
    code("unsupported_media_type", &[415], "The content type, its charset or its encoding is none that is taken."),
    code("validation_error", &[422], "It can be read, but not be meant; `errors` names the fields."),
    code("idempotency_key_reused", &[422], "The idempotency key was used for another command."),
    code("unknown_kind", &[422], "There is no such kind."),
    code("kind_not_append_only", &[422], "Records of the kind can change, so each is created by a command of its own."),
    code(
        "reference_not_found",
        &[422],
        "The record refers to one that is not there, is archived or not published, or is of another kind; `errors` names the places.",
    ),
    code("kind_private", &[422], "The kind is private: there is nothing of it in the catalog."),
    code("usage_cap_reached", &[429], "The cap of a month is reached; `figures` says when the next one begins."),
    code(
        "hold_limit_exceeded",
        &[429],
        "As many holds are open as may be; `figures` says when the first one ends by itself.",
    ),
    code("rate_limit_exceeded", &[429], "More than the organization may send. `Retry-After` says when."),
    code("read_rate_exceeded", &[429], "More reads than the organization may send. `Retry-After` says when."),
    code("invitation_limit_exceeded", &[429], "More invitations than an organization may send in an hour."),
    code("organization_limit_exceeded", &[429], "More organizations than one person may make in an hour."),
    code("secret_limit_exceeded", &[429], "More uses of secrets than an organization may make in an hour."),
    code("concurrency_limit_exceeded", &[429], "Too much at the same time. Wait for answers before sending more."),
    code("too_many_streams", &[429], "As many streams are open as may be. Close one."),
    code("internal", &[500], "A fault of ours. The request id finds it in the log."),
    code("secrets_unavailable", &[503], "This server has no key ring, so it neither takes nor shows secrets."),
    code("unavailable", &[503], "A part that this needs does not answer. Try again, with the same idempotency key."),
    code(
        "history_lost",
        &[503],
        "The event log lost messages. Nothing is taken until the operator has decided; then send it again.",
    ),
    code(
        "view_building",
        &[503],
        "The view was declared after there were records, and is being built. Try again later.",
    ),
    code(
        "search_target_unavailable",
        &[503],
        "The search target that has the organization's index does not answer. Try again; other reads go on.",
    ),
    code("projection_lagging", &[503], "The read models are not there yet. Try again, or wait with `Prefer: wait=5`."),
    code("overloaded", &[503], "The server holds as much as it can. Try again."),
    code("too_many_connections", &[503], "As many connections are open as may be. Close some."),
];

/// Returns the codes of a status, as a list in Markdown.
pub fn of_status(status: u16) -> String {
    let line = |code: &Code| format!("* `{}`: {}", code.code, code.meaning);
    let lines: Vec<String> = CODES.iter().filter(|code| code.statuses.contains(&status)).map(line).collect();
    lines.join("\n")
}

/// Returns the table as a page.
pub fn page() -> String {
    let mut page = "# Error codes\n\nEvery error is `application/problem+json` (RFC 9457), whichever way a command came. `code` is \
                    one of these and never changes. Written by `DOCS_WRITE=1` from `src/app/error_codes.rs`.\n\n| code | status | \
                    meaning |\n|---|---|---|\n"
        .to_owned();
    for Code { code, statuses, meaning } in CODES {
        let statuses: Vec<String> = statuses.iter().map(u16::to_string).collect();
        page.push_str(&format!("| `{code}` | {} | {meaning} |\n", statuses.join(", ")));
    }
    page
}
