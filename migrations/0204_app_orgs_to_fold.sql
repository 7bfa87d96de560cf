-- Which orgs have records of a kind and rows that follow other views than it declares: ids and nothing else, as in 0018.
SET LOCAL ROLE app_owner;
GRANT SELECT (org_id, rm_version, kind, views) ON rm.kind_views TO app_resolver;
CREATE FUNCTION app.orgs_to_fold(wanted text, declared jsonb) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT shown.org_id FROM ops.checkpoints AS shown
    LEFT JOIN rm.kind_views AS folded
        ON folded.org_id = shown.org_id AND folded.rm_version = shown.version AND folded.kind = wanted
    WHERE pipeline = 'read_models' AND active AND coalesce(folded.views, '[]') <> declared AND EXISTS (
        SELECT FROM rm.records AS record
        WHERE record.org_id = shown.org_id AND record.rm_version = shown.version AND record.kind = wanted
    )
    ORDER BY shown.org_id LIMIT 1001
$$;
REVOKE ALL ON FUNCTION app.orgs_to_fold FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_to_fold TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_to_fold OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
