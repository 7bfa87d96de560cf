-- Which orgs have rows that follow other views than a kind of their own declares: ids and nothing else, as in 0018.
SET LOCAL ROLE app_owner;
CREATE INDEX kinds_own_views ON rm.kinds (org_id, rm_version, name) WHERE views IS NOT NULL AND starts_with(name, 'x_');
GRANT SELECT (org_id, rm_version, name, views) ON rm.kinds TO app_resolver;
CREATE FUNCTION app.orgs_to_fold_own() RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT declared.org_id FROM rm.kinds AS declared
    JOIN ops.checkpoints AS shown
        ON shown.org_id = declared.org_id AND shown.version = declared.rm_version AND pipeline = 'read_models' AND active
    LEFT JOIN rm.kind_views AS folded
        ON folded.org_id = declared.org_id AND folded.rm_version = declared.rm_version AND folded.kind = declared.name
    WHERE declared.views IS NOT NULL AND starts_with(declared.name, 'x_')
        AND coalesce(folded.views, '[]') <> declared.views AND EXISTS (
            SELECT FROM rm.records AS record
            WHERE record.org_id = declared.org_id AND record.rm_version = declared.rm_version AND record.kind = declared.name
        )
    ORDER BY declared.org_id LIMIT 1001
$$;
REVOKE ALL ON FUNCTION app.orgs_to_fold_own FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_to_fold_own TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_to_fold_own OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
