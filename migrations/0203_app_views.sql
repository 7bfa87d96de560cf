-- What folding views needs of the database beside statements: whether a version folds any, and the removal of what is there no more.
SET LOCAL ROLE app_owner;
-- Asked in the statement that opens a batch, after the version is bound: VOLATILE, so that the binding is seen.
CREATE FUNCTION app.folds_views(bound_org uuid) RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM rm.kind_views WHERE org_id = bound_org);
END $$;
-- One key at a time: a join with the keys would let the planner read all of the organization for a few.
CREATE FUNCTION app.drop_view_values(bound_org uuid, keys bytea[]) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR nth IN 1 .. coalesce(array_length(keys, 1), 0) LOOP
        DELETE FROM rm.view_values WHERE org_id = bound_org AND key = keys[nth];
    END LOOP;
END $$;
CREATE FUNCTION app.drop_empty_view_rows(bound_org uuid, keys bytea[]) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR nth IN 1 .. coalesce(array_length(keys, 1), 0) LOOP
        DELETE FROM rm.view_rows WHERE org_id = bound_org AND key = keys[nth] AND records = 0;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION app.folds_views, app.drop_view_values, app.drop_empty_view_rows FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.folds_views, app.drop_view_values, app.drop_empty_view_rows TO app_rw;
RESET ROLE;
