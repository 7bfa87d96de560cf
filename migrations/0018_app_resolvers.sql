-- The questions that must be answered before an org is known. Each returns ids and nothing else, by the versions that are
-- shown.
--
-- The functions belong to the one role that row-level security does not bind. It cannot log in and may read no column
-- but these. An answer that is not unique is no answer.
SET LOCAL ROLE app_owner;
GRANT USAGE ON SCHEMA rm, ops TO app_resolver;
GRANT SELECT (org_id, pipeline, version, active) ON ops.checkpoints TO app_resolver;
GRANT SELECT (org_id, rm_version, slug) ON rm.slugs TO app_resolver;
GRANT SELECT (org_id, rm_version, public_id) ON rm.api_keys TO app_resolver;
GRANT SELECT (org_id, rm_version, user_id, status) ON rm.members TO app_resolver;

CREATE FUNCTION app.org_of_slug(wanted text) RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (array_agg(org_id))[1] FROM rm.slugs
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE slug = wanted AND pipeline = 'read_models' AND active AND shown.version = rm_version
    HAVING count(*) = 1
$$;
CREATE FUNCTION app.org_of_key(wanted text) RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (array_agg(org_id))[1] FROM rm.api_keys AS key
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE public_id = wanted AND pipeline = 'read_models' AND active AND shown.version = rm_version
    HAVING count(*) = 1
$$;
CREATE FUNCTION app.orgs_of_user(wanted uuid) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT org_id FROM rm.members AS member
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE user_id = wanted AND status = 'active' AND pipeline = 'read_models' AND active AND shown.version = rm_version
    ORDER BY org_id
$$;
REVOKE ALL ON FUNCTION app.org_of_slug, app.org_of_key, app.orgs_of_user FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.org_of_slug, app.org_of_key, app.orgs_of_user TO app_ro;

-- Giving a function away takes the right to create on its schema, for this moment.
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.org_of_slug OWNER TO app_resolver;
ALTER FUNCTION app.org_of_key OWNER TO app_resolver;
ALTER FUNCTION app.orgs_of_user OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
