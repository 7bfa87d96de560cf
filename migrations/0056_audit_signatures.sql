-- Who signed which checkpoint: the log itself, and the witnesses that have seen it.
SET LOCAL ROLE app_owner;
CREATE TABLE audit.signatures (
    org_id uuid NOT NULL,
    size bigint NOT NULL,
    name text NOT NULL,
    key_id bytea NOT NULL CHECK (length(key_id) = 4),
    line text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, size, name, key_id),
    FOREIGN KEY (org_id, size) REFERENCES audit.checkpoints (org_id, size)
);
CREATE INDEX signatures_by_name ON audit.signatures (org_id, name, size);
ALTER TABLE audit.signatures ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE audit.signatures ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.signatures FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON audit.signatures AS PERMISSIVE FOR ALL TO app_rw, app_ro, app_audit, app_sign
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON audit.signatures AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT ON audit.signatures TO app_rw, app_ro, app_audit;
GRANT SELECT, INSERT ON audit.signatures TO app_sign;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.signatures
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
RESET ROLE;
