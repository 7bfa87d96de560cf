-- Records, kept when they are archived. The indexes are the two ways to list them, newest first.
--
-- They are listed in the order of the stream, by the sequence that created them, and not by (created_at, id): an index
-- that ends in `id` looks to the planner like one to find a record by, and then reads all of the org for each.
--
-- What changes in a record (content, status, version) is in no index, so that the room left in each page is enough for
-- most changes and the indexes are left alone.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.records (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    kind text NOT NULL,
    kind_version bigint NOT NULL,
    data jsonb NOT NULL,
    status text NOT NULL CHECK (status IN ('active', 'archived')),
    created_by_type text NOT NULL,
    created_by_id text NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    created_seq bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
) WITH (fillfactor = 85);
CREATE INDEX records_newest ON rm.records (org_id, rm_version, created_seq);
CREATE INDEX records_newest_of_kind ON rm.records (org_id, rm_version, kind, created_seq);
ALTER TABLE rm.records ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.records FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.records AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.records AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.records AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.records TO app_rw;
GRANT SELECT ON rm.records TO app_ro;
RESET ROLE;
