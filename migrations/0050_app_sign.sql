-- The login of the process that signs the audit log: it reads the log and adds to tree, checkpoints and signatures, no more.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'app_sign') THEN
        BEGIN
            CREATE ROLE app_sign LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database's migration was faster
        END;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_sign', current_database());
END $$;
GRANT SELECT ON _sqlx_migrations TO app_sign;

SET LOCAL ROLE app_owner;
GRANT USAGE ON SCHEMA app, audit, ops TO app_sign;
GRANT EXECUTE ON FUNCTION app.org() TO app_sign;
GRANT SELECT ON audit.heads TO app_sign;
GRANT SELECT (org_id, idx, header, leaf) ON audit.events TO app_sign;
ALTER POLICY tenant ON audit.heads TO app_rw, app_ro, app_audit, app_sign;
ALTER POLICY tenant ON audit.events TO app_rw, app_ro, app_audit, app_sign;
RESET ROLE;
