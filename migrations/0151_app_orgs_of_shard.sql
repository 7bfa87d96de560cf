-- Which orgs the tables have of a shard, for whoever fills up a stream that has lost messages: ids and nothing else, as in 0018.
SET LOCAL ROLE app_owner;
GRANT SELECT (shard) ON ops.checkpoints TO app_resolver;
CREATE FUNCTION app.orgs_of_shard(wanted integer) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT org_id FROM ops.checkpoints WHERE shard = wanted AND active ORDER BY org_id
$$;
REVOKE ALL ON FUNCTION app.orgs_of_shard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_of_shard TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_of_shard OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
