-- The catalog: one row for each item, with the version that was published last, kept when it is withdrawn.
--
-- The policy `published` is for the login of readers without a credential: whatever it binds and whatever it asks, the rows of
-- other organizations and those of withdrawn items are not there for it. Drafts are in no row of this table.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.catalog_items (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    kind text NOT NULL,
    kind_version bigint NOT NULL,
    data jsonb NOT NULL,
    item_version bigint NOT NULL,
    shown_since bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('published', 'withdrawn')),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    created_seq bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE INDEX catalog_items_of_kind ON rm.catalog_items (org_id, rm_version, kind, created_seq);
CREATE INDEX catalog_items_newest ON rm.catalog_items (org_id, rm_version, created_seq);
ALTER TABLE rm.catalog_items ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.catalog_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.catalog_items FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.catalog_items AS PERMISSIVE FOR ALL TO app_rw, app_ro, app_public
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.catalog_items AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.catalog_items AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
CREATE POLICY published ON rm.catalog_items AS RESTRICTIVE FOR ALL TO app_public
    USING (org_id = '00000000-0000-8000-8000-000000000001' AND status = 'published');
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.catalog_items TO app_rw;
GRANT SELECT ON rm.catalog_items TO app_ro, app_public;
RESET ROLE;
