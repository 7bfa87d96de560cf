-- Organizations as they are now: one row per org.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.organizations (
    org_id uuid NOT NULL PRIMARY KEY,
    slug text NOT NULL,
    name text NOT NULL,
    tenant_type text NOT NULL,
    region text NOT NULL,
    suspended_reason text,
    settings jsonb NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL
);
ALTER TABLE rm.organizations ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.organizations FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.organizations AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.organizations AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.organizations TO app_rw;
GRANT SELECT ON rm.organizations TO app_ro;
RESET ROLE;
