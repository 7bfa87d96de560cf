-- Which org signs people in by an issuer for an audience: the pair is one org's, and its id is all that is answered. Two say
-- that it is ambiguous, so no more are looked for.
--
-- app.orgs_of_issuer, which it takes the place of, stays for programs of the version before.
SET LOCAL ROLE app_owner;
GRANT SELECT (audience) ON rm.sso_connections TO app_resolver;
CREATE INDEX sso_connections_of_login ON rm.sso_connections (issuer, audience, org_id, rm_version) WHERE status = 'active';
CREATE FUNCTION app.orgs_of_login(wanted_issuer text, wanted_audience text) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT org_id FROM rm.sso_connections AS connection
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE issuer = wanted_issuer AND audience = wanted_audience AND status = 'active'
        AND pipeline = 'read_models' AND active AND shown.version = rm_version
    ORDER BY org_id LIMIT 2
$$;
REVOKE ALL ON FUNCTION app.orgs_of_login FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_of_login TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_of_login OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
