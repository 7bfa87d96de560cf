-- Every slug that an org has or had, because an old one goes on leading to it.
--
-- That a slug belongs to one org alone is decided in the stream, by a claim. A unique index over all orgs would repeat
-- it, and would tell one org what another is called.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.slugs (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    slug text NOT NULL,
    PRIMARY KEY (org_id, rm_version, slug)
);
CREATE INDEX slugs_for_resolver ON rm.slugs (slug, org_id, rm_version);
ALTER TABLE rm.slugs ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.slugs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.slugs AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.slugs AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.slugs AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.slugs TO app_rw;
GRANT SELECT ON rm.slugs TO app_ro;
RESET ROLE;
