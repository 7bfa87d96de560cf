-- What those orgs have booked that are not on the usual plan: every slice that is opened asks for it, so it has a table of
-- its own, with as few rows as there are such orgs, which knows no versions: a rebuild goes through plans of long ago.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.plans (
    org_id uuid NOT NULL PRIMARY KEY,
    plan text NOT NULL,
    seq bigint NOT NULL
);
ALTER TABLE ops.plans ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.plans ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.plans FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.plans AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.plans AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE ON ops.plans TO app_rw;
GRANT SELECT ON ops.plans TO app_ro;
RESET ROLE;
