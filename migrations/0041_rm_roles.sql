-- Roles that an organization made itself, kept when they are removed.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.roles (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    name text NOT NULL,
    permissions jsonb NOT NULL,
    status text NOT NULL CHECK (status IN ('active', 'removed')),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE INDEX roles_newest ON rm.roles (org_id, rm_version, created_at, id);
ALTER TABLE rm.roles ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.roles ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.roles FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.roles AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.roles AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.roles AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.roles TO app_rw;
GRANT SELECT ON rm.roles TO app_ro;
RESET ROLE;
