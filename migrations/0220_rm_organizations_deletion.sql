-- When an org is deleted, once that was requested, and when its keys ended; and the orgs of which it was: ids and nothing else, as in 0018.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.organizations ADD COLUMN delete_at timestamptz, ADD COLUMN keys_ended_at timestamptz;
CREATE INDEX organizations_to_delete ON rm.organizations (org_id) WHERE delete_at IS NOT NULL;
GRANT SELECT (delete_at) ON rm.organizations TO app_resolver;
CREATE FUNCTION app.orgs_to_delete() RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT org.org_id FROM rm.organizations AS org
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE org.delete_at IS NOT NULL
        AND shown.pipeline = 'read_models' AND shown.active AND shown.version = org.rm_version
    ORDER BY org.org_id LIMIT 1000
$$;
REVOKE ALL ON FUNCTION app.orgs_to_delete FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_to_delete TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_to_delete OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
