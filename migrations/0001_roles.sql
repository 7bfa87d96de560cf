-- Roles that can do little, before anything exists that they could do something to.
--
-- They belong to the cluster, not to this database: what is missing is created, what is there is left alone, and
-- several databases may be migrated at the same time. `app_owner` owns everything and cannot log in; the login that
-- migrates becomes it for the length of each migration.
DO $$
DECLARE
    wanted record;
    login text := current_user;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('app_owner', 'NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB'),
            ('app_rw', 'LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB'),
            ('app_ro', 'LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB'),
            ('app_audit', 'LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB'),
            ('app_resolver', 'NOLOGIN NOSUPERUSER BYPASSRLS NOCREATEROLE NOCREATEDB')
        ) AS roles (name, attributes)
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted.name);
        BEGIN
            EXECUTE format('CREATE ROLE %I %s', wanted.name, wanted.attributes);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database's migration was faster
        END;
    END LOOP;

    FOR wanted IN SELECT * FROM (VALUES ('app_owner'), ('app_resolver')) AS roles (name) LOOP
        CONTINUE WHEN pg_catalog.pg_has_role(login, wanted.name, 'MEMBER');
        BEGIN
            EXECUTE format('GRANT %I TO %I', wanted.name, login);
        EXCEPTION WHEN unique_violation THEN
            NULL;
        END;
    END LOOP;

    -- A temporary table is a table that no policy watches over.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_rw, app_ro, app_audit', current_database());
END $$;

-- So that the program can tell whether migrations are pending.
GRANT SELECT ON _sqlx_migrations TO app_rw, app_ro;
