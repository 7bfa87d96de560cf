-- The views that a kind declares, and which of them the rows of an organization follow.
--
-- `rm.kind_views` has, for each version of an organization's read models, the views of each kind that the version folds, as the kind
-- declared them when the version met its first record. So a version folds a view over all of its records or not at all, and views
-- that are declared later come with a version that is built beside the one that is shown.
SET LOCAL ROLE app_owner;
-- NULL for a kind that never declared any.
ALTER TABLE rm.kinds ADD COLUMN views jsonb;
CREATE TABLE rm.kind_views (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    kind text COLLATE "C" NOT NULL,
    -- The version of the kind whose views these are.
    kind_version bigint NOT NULL,
    views jsonb NOT NULL,
    PRIMARY KEY (org_id, rm_version, kind)
);
ALTER TABLE rm.kind_views ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.kind_views ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.kind_views FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.kind_views AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.kind_views AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.kind_views AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.kind_views TO app_rw;
GRANT SELECT ON rm.kind_views TO app_ro;
RESET ROLE;
