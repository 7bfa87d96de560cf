-- Which orgs have records of a kind, before it is retired for all of them: ids and nothing else, as in 0018.
SET LOCAL ROLE app_owner;
GRANT SELECT (org_id, rm_version, kind) ON rm.records TO app_resolver;
CREATE FUNCTION app.orgs_of_kind(wanted text) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT shown.org_id FROM ops.checkpoints AS shown
    WHERE pipeline = 'read_models' AND active AND EXISTS (
        SELECT FROM rm.records AS record
        WHERE record.org_id = shown.org_id AND record.rm_version = shown.version AND record.kind = wanted
    )
    ORDER BY org_id LIMIT 1001
$$;
REVOKE ALL ON FUNCTION app.orgs_of_kind FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_of_kind TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_of_kind OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
