-- The next free number of each org's audit log, so that an append need not look for it.
SET LOCAL ROLE app_owner;
CREATE TABLE audit.heads (
    org_id uuid NOT NULL PRIMARY KEY,
    next_idx bigint NOT NULL CHECK (next_idx >= 0)
) WITH (fillfactor = 50);
ALTER TABLE audit.heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.heads FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON audit.heads AS PERMISSIVE FOR ALL TO app_rw, app_ro, app_audit
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON audit.heads AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE ON audit.heads TO app_rw;
GRANT SELECT ON audit.heads TO app_ro;
GRANT SELECT, INSERT, UPDATE ON audit.heads TO app_audit;
RESET ROLE;
