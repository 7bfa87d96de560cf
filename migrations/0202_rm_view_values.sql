-- The values of which a view has the least, the greatest or the last: one row for each record and such measure, so that the next one
-- is found when a record changes or is archived.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.view_values (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    -- The kind, the view, the place of the measure, then the record's id.
    key bytea NOT NULL,
    -- The key of the row of the view, then the place of the measure.
    cell bytea NOT NULL,
    -- What decides: the value, or the sequence of the message that wrote it.
    rank numeric NOT NULL,
    value numeric NOT NULL,
    PRIMARY KEY (org_id, rm_version, key)
);
CREATE INDEX view_values_by_rank ON rm.view_values (org_id, rm_version, cell, rank);
ALTER TABLE rm.view_values ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.view_values ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.view_values FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.view_values AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.view_values AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.view_values AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.view_values TO app_rw;
GRANT SELECT ON rm.view_values TO app_ro;
RESET ROLE;
