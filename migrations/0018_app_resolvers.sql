-- The questions that must be answered before an org is known. Each returns ids and nothing else.
--
-- The functions belong to the one role that row-level security does not bind. It cannot log in and may read no column
-- but these. An answer that is not unique is no answer.
SET LOCAL ROLE app_owner;
GRANT USAGE ON SCHEMA rm TO app_resolver;
GRANT SELECT (org_id, slug) ON rm.slugs TO app_resolver;
GRANT SELECT (org_id, public_id) ON rm.api_keys TO app_resolver;
GRANT SELECT (org_id, user_id, status) ON rm.members TO app_resolver;

CREATE FUNCTION app.org_of_slug(wanted text) RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (array_agg(org_id))[1] FROM rm.slugs WHERE slug = wanted HAVING count(*) = 1
$$;
CREATE FUNCTION app.org_of_key(wanted text) RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (array_agg(org_id))[1] FROM rm.api_keys WHERE public_id = wanted HAVING count(*) = 1
$$;
CREATE FUNCTION app.orgs_of_user(wanted uuid) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT org_id FROM rm.members WHERE user_id = wanted AND status = 'active' ORDER BY org_id
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
