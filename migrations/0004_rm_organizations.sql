-- Organizations as they are now: one row per org.
--
-- This table and the other read models, and the two tables that are written with them, have the rows of several versions
-- of an org's read models side by side: those that are shown, and those that are being built or were shown before. A
-- transaction is bound to one of them, which is where its rows go (the default) and all that it sees (the policy).
SET LOCAL ROLE app_owner;
CREATE TABLE rm.organizations (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    slug text NOT NULL,
    name text NOT NULL,
    tenant_type text NOT NULL,
    region text NOT NULL,
    suspended_reason text,
    settings jsonb NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version)
);
ALTER TABLE rm.organizations ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.organizations FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.organizations AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.organizations AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.organizations AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.organizations TO app_rw;
GRANT SELECT ON rm.organizations TO app_ro;
RESET ROLE;
