-- The heads of each org's log that were given to be signed. The row comes first and the signature second.
--
-- One root for one size, whoever signs: the primary key is what keeps two processes from signing two histories.
SET LOCAL ROLE app_owner;
CREATE TABLE audit.checkpoints (
    org_id uuid NOT NULL,
    size bigint NOT NULL CHECK (size > 0),
    root bytea NOT NULL CHECK (length(root) = 32),
    origin text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, size)
);
ALTER TABLE audit.checkpoints ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE audit.checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.checkpoints FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON audit.checkpoints AS PERMISSIVE FOR ALL TO app_rw, app_ro, app_audit, app_sign
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON audit.checkpoints AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT ON audit.checkpoints TO app_rw, app_ro, app_audit;
GRANT SELECT, INSERT ON audit.checkpoints TO app_sign;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
RESET ROLE;
