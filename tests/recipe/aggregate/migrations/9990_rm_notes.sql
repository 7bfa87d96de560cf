-- Notes of an organization, kept after they are withdrawn.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.notes (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    body text NOT NULL,
    status text NOT NULL CHECK (status IN ('written', 'withdrawn')),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE INDEX notes_newest ON rm.notes (org_id, rm_version, created_at, id);
ALTER TABLE rm.notes ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.notes ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.notes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.notes AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.notes AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.notes AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
CREATE POLICY erasure ON rm.notes AS PERMISSIVE FOR ALL TO app_eraser
    USING (org_id = (SELECT app.org()) AND (SELECT app.is_erasing())) WITH CHECK (false);
GRANT SELECT, DELETE ON rm.notes TO app_eraser;
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.notes TO app_rw;
GRANT SELECT ON rm.notes TO app_ro;
RESET ROLE;
