-- The last version of each plan, for listings: rows of the platform's organization. What an account decides by is read from the log.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.plans (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    name text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    definition jsonb NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, name)
);
ALTER TABLE rm.plans ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.plans ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.plans FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.plans AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.plans AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.plans AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.plans TO app_rw;
GRANT SELECT ON rm.plans TO app_ro;
RESET ROLE;
