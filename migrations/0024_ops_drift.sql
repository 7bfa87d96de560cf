-- What the last comparison of an org's read models with a version built beside them found: checksums by table, and the
-- rows that differ, as far as they are named.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.drift (
    org_id uuid NOT NULL,
    place bigint NOT NULL,
    in_table text NOT NULL,
    key text,
    columns text[] NOT NULL,
    shown text,
    built text,
    PRIMARY KEY (org_id, place)
);
ALTER TABLE ops.drift ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.drift FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.drift AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.drift AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, DELETE ON ops.drift TO app_rw;
GRANT SELECT ON ops.drift TO app_ro;
ALTER TABLE ops.drift ALTER COLUMN org_id SET STATISTICS 0;
RESET ROLE;
