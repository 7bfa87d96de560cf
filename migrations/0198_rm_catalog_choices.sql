-- What an organization chose of the catalog for itself: one row for each item that it ever pinned or hid.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.catalog_choices (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    item_id uuid NOT NULL,
    choice text NOT NULL CHECK (choice IN ('pinned', 'hidden', 'none')),
    version bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, item_id)
);
ALTER TABLE rm.catalog_choices ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.catalog_choices ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.catalog_choices FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.catalog_choices AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.catalog_choices AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.catalog_choices AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.catalog_choices TO app_rw;
GRANT SELECT ON rm.catalog_choices TO app_ro;
RESET ROLE;
