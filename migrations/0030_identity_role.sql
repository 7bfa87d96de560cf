-- A login of its own for who signs in: what it may do has nothing to do with what organizations have.
--
-- As the other roles it belongs to the cluster: what is missing is created, what is there is left alone.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'app_identity') THEN
        BEGIN
            CREATE ROLE app_identity LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database's migration was faster
        END;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_identity', current_database());
END $$;
