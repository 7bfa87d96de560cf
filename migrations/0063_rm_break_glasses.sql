-- Each time that an operator of the platform may look into an org, until when, and why.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.break_glasses (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    operator text NOT NULL,
    reason text NOT NULL,
    approver text NOT NULL,
    opened_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    closed_at timestamptz,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
ALTER TABLE rm.break_glasses ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.break_glasses ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.break_glasses FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.break_glasses AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.break_glasses AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.break_glasses AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.break_glasses TO app_rw;
GRANT SELECT ON rm.break_glasses TO app_ro;
RESET ROLE;
