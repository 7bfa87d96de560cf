-- A key that was rotated is found by either of its tokens. As before: one id, or nothing.
SET LOCAL ROLE app_owner;
GRANT CREATE ON SCHEMA app TO app_resolver;
SET LOCAL ROLE app_resolver;
CREATE OR REPLACE FUNCTION app.org_of_key(wanted text) RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (array_agg(org_id))[1]
    FROM (
        SELECT org_id, rm_version FROM rm.api_keys WHERE public_id = wanted
        UNION ALL
        SELECT org_id, rm_version FROM rm.api_keys WHERE previous_public_id = wanted
    ) AS key
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE pipeline = 'read_models' AND active AND shown.version = rm_version
    HAVING count(*) = 1
$$;
SET LOCAL ROLE app_owner;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
RESET ROLE;
