-- The records that records refer to, as they were checked when they were written: one row for each place.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.record_references (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    -- The record's id, then the pointer.
    key bytea NOT NULL,
    record_id uuid NOT NULL,
    kind text NOT NULL,
    pointer text COLLATE "C" NOT NULL,
    to_id uuid NOT NULL,
    to_kind text NOT NULL,
    to_global boolean NOT NULL,
    created_seq bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, key)
);
CREATE INDEX record_references_to ON rm.record_references (org_id, rm_version, to_id, created_seq, pointer);
ALTER TABLE rm.record_references ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.record_references ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.record_references FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.record_references AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.record_references AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.record_references AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.record_references TO app_rw;
GRANT SELECT ON rm.record_references TO app_ro;
RESET ROLE;
