-- The bound org and version of its read models, or an error: a forgotten binding must never look like an org without rows.
--
-- STABLE, never IMMUTABLE: an immutable function is folded into prepared statements, and the next org on the same
-- connection is shown the rows of the one before. After a transaction the setting is '' rather than NULL.
SET LOCAL ROLE app_owner;
CREATE FUNCTION app.org() RETURNS uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    bound text := pg_catalog.current_setting('app.org_id', true);
BEGIN
    IF bound IS NULL OR bound = '' THEN
        RAISE EXCEPTION 'no org is bound' USING ERRCODE = '42501';
    END IF;
    RETURN bound::uuid;
END $$;
REVOKE ALL ON FUNCTION app.org() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.org() TO app_rw, app_ro, app_audit;

CREATE FUNCTION app.rm_version() RETURNS integer LANGUAGE plpgsql STABLE AS $$
DECLARE
    bound text := pg_catalog.current_setting('app.rm_version', true);
BEGIN
    IF bound IS NULL OR bound = '' THEN
        RAISE EXCEPTION 'no version of the read models is bound' USING ERRCODE = '42501';
    END IF;
    RETURN bound::integer;
END $$;
REVOKE ALL ON FUNCTION app.rm_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.rm_version() TO app_rw, app_ro;
RESET ROLE;
