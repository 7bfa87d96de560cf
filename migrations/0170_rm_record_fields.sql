-- The values of records by which they are listed: one row for each field at the top of a record that has one value.
--
-- A value is encoded so that bytes compare as values do: under row-level security only operators that are leakproof can be the
-- conditions of an index, those of `bytea` are, and those of `jsonb` are not. The index ends in the sequence that created the
-- record, so that records with the same value are listed in the order of the stream.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.record_fields (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    -- The record's id, then the name of the field.
    key bytea NOT NULL,
    record_id uuid NOT NULL,
    kind text NOT NULL,
    field text NOT NULL,
    value bytea NOT NULL,
    created_seq bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, key)
);
CREATE INDEX record_fields_by_value ON rm.record_fields (org_id, rm_version, kind, field, value, created_seq)
    INCLUDE (record_id);
ALTER TABLE rm.record_fields ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.record_fields ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.record_fields FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.record_fields AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.record_fields AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.record_fields AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.record_fields TO app_rw;
GRANT SELECT ON rm.record_fields TO app_ro;
RESET ROLE;
