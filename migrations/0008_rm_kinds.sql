-- Record kinds: rows of the platform's own org, which every org may read by binding to that one.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.kinds (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    name text NOT NULL,
    title text NOT NULL,
    schema jsonb NOT NULL,
    visibility text NOT NULL,
    cost bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('active', 'retired')),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, name)
);
ALTER TABLE rm.kinds ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.kinds FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.kinds AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.kinds AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.kinds AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.kinds TO app_rw;
GRANT SELECT ON rm.kinds TO app_ro;
RESET ROLE;
