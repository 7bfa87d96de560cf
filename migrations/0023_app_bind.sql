-- Bind an org and the version of its read models that is shown: what every reading transaction begins with.
--
-- An org that has no checkpoint yet is at version 1, as the first slice will say.
SET LOCAL ROLE app_owner;
CREATE FUNCTION app.bind(bound_org uuid) RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY INVOKER AS $$
DECLARE
    bound_version integer;
BEGIN
    PERFORM pg_catalog.set_config('app.org_id', bound_org::text, true);
    SELECT checkpoint.version INTO bound_version FROM ops.checkpoints AS checkpoint
    WHERE checkpoint.org_id = bound_org AND checkpoint.pipeline = 'read_models' AND checkpoint.active;
    bound_version := coalesce(bound_version, 1);
    PERFORM pg_catalog.set_config('app.rm_version', bound_version::text, true);
    RETURN bound_version;
END $$;
REVOKE ALL ON FUNCTION app.bind FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.bind TO app_rw, app_ro;
RESET ROLE;
