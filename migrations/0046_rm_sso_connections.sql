-- Connections of an organization to issuers of its own, kept when they are removed.
--
-- The default is the one whose `default_since`, the version at which it was made that, is the highest and not 0; none, once
-- that one is removed.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.sso_connections (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    name text NOT NULL,
    issuer text NOT NULL,
    audience text NOT NULL,
    jit boolean NOT NULL,
    status text NOT NULL CHECK (status IN ('active', 'removed')),
    default_since bigint NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE INDEX sso_connections_newest ON rm.sso_connections (org_id, rm_version, created_at, id);
CREATE INDEX sso_connections_for_resolver ON rm.sso_connections (issuer, org_id, rm_version) WHERE status = 'active';
ALTER TABLE rm.sso_connections ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.sso_connections ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.sso_connections FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.sso_connections AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.sso_connections AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.sso_connections AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.sso_connections TO app_rw;
GRANT SELECT ON rm.sso_connections TO app_ro;
GRANT SELECT (org_id, rm_version, issuer, status) ON rm.sso_connections TO app_resolver;

-- Which orgs sign people in by an issuer: ids and nothing else, as in 0018.
CREATE FUNCTION app.orgs_of_issuer(wanted text) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT org_id FROM rm.sso_connections AS connection
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE issuer = wanted AND status = 'active' AND pipeline = 'read_models' AND active AND shown.version = rm_version
    ORDER BY org_id LIMIT 20
$$;
REVOKE ALL ON FUNCTION app.orgs_of_issuer FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_of_issuer TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_of_issuer OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
