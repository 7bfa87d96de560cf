-- The Merkle tree over each org's audit log, as tiles of 256 hashes that are full and so never change.
--
-- What is not full yet is computed from the leaves, or from the roots of the tiles below.
SET LOCAL ROLE app_owner;
CREATE TABLE audit.tiles (
    org_id uuid NOT NULL,
    level smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
    index bigint NOT NULL CHECK (index >= 0),
    hashes bytea NOT NULL CHECK (length(hashes) = 8192),
    root bytea NOT NULL CHECK (length(root) = 32),
    PRIMARY KEY (org_id, level, index)
);
ALTER TABLE audit.tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;
ALTER TABLE audit.tiles ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE audit.tiles ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.tiles FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON audit.tiles AS PERMISSIVE FOR ALL TO app_rw, app_ro, app_audit, app_sign
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON audit.tiles AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT ON audit.tiles TO app_rw, app_ro, app_audit;
GRANT SELECT, INSERT ON audit.tiles TO app_sign;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.tiles
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
RESET ROLE;
