-- Members, kept when they leave. A login has at most one active membership in an org.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.members (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    email text NOT NULL,
    role text NOT NULL,
    status text NOT NULL CHECK (status IN ('active', 'removed')),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE UNIQUE INDEX members_active_user ON rm.members (org_id, rm_version, user_id) WHERE status = 'active';
CREATE INDEX members_newest ON rm.members (org_id, rm_version, created_at, id);
CREATE INDEX members_for_resolver ON rm.members (user_id, org_id, rm_version) WHERE status = 'active';
ALTER TABLE rm.members ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.members FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.members AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.members AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.members AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.members TO app_rw;
GRANT SELECT ON rm.members TO app_ro;
RESET ROLE;
