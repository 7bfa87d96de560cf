-- Which versions of orgs' indexes of words are in another search target than this database: one row for each of them.
--
-- Like a rebuild, it is needed before any org is bound, and holds no org's data. A row is there before anything is written to the
-- target, and until the version is dropped there, so that nothing is left behind without a name.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.search_indexes (
    org uuid NOT NULL,
    version integer NOT NULL,
    -- The name of the target in the settings.
    target text NOT NULL,
    PRIMARY KEY (org, version)
);
GRANT SELECT, INSERT, DELETE ON ops.search_indexes TO app_rw;
GRANT SELECT ON ops.search_indexes TO app_ro;

-- Where the bound version of the index is: asked in the statement that opens a batch, after the version is bound. VOLATILE, so that
-- the binding is seen, and what another transaction has committed while this one waited for its checkpoint.
CREATE FUNCTION ops.search_target(bound_org uuid) RETURNS text LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT index.target FROM ops.search_indexes AS index
        WHERE index.org = bound_org AND index.version = app.search_version()
    );
END $$;
REVOKE ALL ON FUNCTION ops.search_target FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.search_target TO app_rw;
RESET ROLE;
