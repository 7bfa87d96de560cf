-- In a database that is a search target: the newest epoch under which a version of an org's index was written, so that a worker that
-- has lost the org's shard writes nothing over what its successor wrote. A version that was dropped has the last epoch of all.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.search_writers (
    org_id uuid NOT NULL,
    version integer NOT NULL,
    epoch bigint NOT NULL,
    PRIMARY KEY (org_id, version)
);
ALTER TABLE ops.search_writers ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.search_writers ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.search_writers FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.search_writers AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.search_writers AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE ON ops.search_writers TO app_rw;
GRANT SELECT ON ops.search_writers TO app_ro;
RESET ROLE;
