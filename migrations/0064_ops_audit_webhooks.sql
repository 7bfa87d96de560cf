-- How far each org's audit log has been sent to the address that the org has set. The address itself is a setting; the one
-- here is the one that `next_idx` is about. Whoever sends takes the row for a while by moving `try_at`.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.audit_webhooks (
    org_id uuid NOT NULL PRIMARY KEY,
    url text NOT NULL,
    next_idx bigint NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    error text,
    delivered_at timestamptz,
    try_at timestamptz NOT NULL
);
ALTER TABLE ops.audit_webhooks ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.audit_webhooks ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.audit_webhooks FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.audit_webhooks AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.audit_webhooks AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.audit_webhooks TO app_rw;
GRANT SELECT ON ops.audit_webhooks TO app_ro;
CREATE INDEX organizations_with_audit_webhook ON rm.organizations (org_id) WHERE settings ->> 'audit_webhook' IS NOT NULL;

-- Asked before any org is bound, answered by ids alone.
GRANT SELECT (org_id, rm_version, settings) ON rm.organizations TO app_resolver;
GRANT SELECT (org_id, url, next_idx, try_at) ON ops.audit_webhooks TO app_resolver;
CREATE FUNCTION app.orgs_with_audit_to_send(most integer) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT org.org_id FROM rm.organizations AS org
    JOIN ops.checkpoints AS shown USING (org_id)
    JOIN audit.heads AS head USING (org_id)
    LEFT JOIN ops.audit_webhooks AS hook USING (org_id)
    WHERE org.settings ->> 'audit_webhook' IS NOT NULL
        AND shown.pipeline = 'read_models' AND shown.active AND shown.version = org.rm_version
        AND (
            hook.org_id IS NULL
            OR hook.url <> org.settings ->> 'audit_webhook'
            OR hook.try_at <= now() AND hook.next_idx < head.next_idx
        )
    ORDER BY hook.try_at NULLS FIRST LIMIT most
$$;
REVOKE ALL ON FUNCTION app.orgs_with_audit_to_send FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_with_audit_to_send TO app_ro;

-- Giving a function away takes the right to create on its schema, for this moment.
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_with_audit_to_send OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
