-- The rows of views: one for each group and bucket that has records, with exact sums.
--
-- The key is the kind, the view, the bucket and the group, so that a range of buckets is a range of keys. `group_key` is the kind,
-- the view and the group, for one group over time. Sums are decimals without trailing zeros: a row is the same text however its
-- events came in batches.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.view_rows (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    key bytea NOT NULL,
    group_key bytea NOT NULL,
    kind text NOT NULL,
    view text NOT NULL,
    bucket_at timestamptz,
    groups jsonb NOT NULL,
    records bigint NOT NULL,
    -- One of each for each measure: the sum of its values, and their number; zeros where the measure has no sum.
    sums numeric[] NOT NULL,
    numbers bigint[] NOT NULL,
    -- One for each measure that is a least, greatest or last value, in the order of the measures.
    edges numeric[] NOT NULL,
    PRIMARY KEY (org_id, rm_version, key)
);
CREATE INDEX view_rows_by_group ON rm.view_rows (org_id, rm_version, group_key, key);
ALTER TABLE rm.view_rows ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.view_rows ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.view_rows FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.view_rows AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.view_rows AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.view_rows AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.view_rows TO app_rw;
GRANT SELECT ON rm.view_rows TO app_ro;
RESET ROLE;
