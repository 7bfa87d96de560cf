-- Every version of an item of the catalog that was ever published. A row never changes.
--
-- The login of readers without a credential sees those of items that are published, and none from before a withdrawal: the item
-- is looked up under the policies of its own table.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.catalog_versions (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    -- The item's id, then the version in 8 bytes.
    key bytea NOT NULL,
    id uuid NOT NULL,
    item_version bigint NOT NULL,
    kind text NOT NULL,
    kind_version bigint NOT NULL,
    data jsonb NOT NULL,
    published_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, key)
);
ALTER TABLE rm.catalog_versions ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.catalog_versions ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.catalog_versions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.catalog_versions AS PERMISSIVE FOR ALL TO app_rw, app_ro, app_public
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.catalog_versions AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.catalog_versions AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
CREATE POLICY published ON rm.catalog_versions AS RESTRICTIVE FOR ALL TO app_public
    USING (org_id = '00000000-0000-8000-8000-000000000001' AND EXISTS (
        SELECT FROM rm.catalog_items AS item
        WHERE item.org_id = catalog_versions.org_id AND item.id = catalog_versions.id AND item.status = 'published'
            AND item.shown_since <= catalog_versions.item_version
    ));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.catalog_versions TO app_rw;
GRANT SELECT ON rm.catalog_versions TO app_ro, app_public;
RESET ROLE;
