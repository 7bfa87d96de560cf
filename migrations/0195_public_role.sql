-- A login for readers without a credential: what it may read of anything is what is published.
--
-- As the other roles it belongs to the cluster: what is missing is created, what is there is left alone. It learns which version
-- of the platform's read models is shown, and nothing else of the progress of anybody.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'app_public') THEN
        BEGIN
            CREATE ROLE app_public LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database's migration was faster
        END;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_public', current_database());
END $$;
SET LOCAL ROLE app_owner;
GRANT USAGE ON SCHEMA app, rm, ops TO app_public;
GRANT EXECUTE ON FUNCTION app.org(), app.rm_version(), app.bind(uuid) TO app_public;
GRANT SELECT (org_id, pipeline, version, active) ON ops.checkpoints TO app_public;
CREATE POLICY shown ON ops.checkpoints AS PERMISSIVE FOR SELECT TO app_public
    USING (org_id = '00000000-0000-8000-8000-000000000001');
CREATE POLICY published ON ops.checkpoints AS RESTRICTIVE FOR ALL TO app_public
    USING (org_id = '00000000-0000-8000-8000-000000000001' AND pipeline = 'read_models');
RESET ROLE;
