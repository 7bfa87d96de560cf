-- The right to erase the rows of an org, in each of its tables, while it is being erased. A table that is made later has a line like
-- this of its own, or the catalogue check will not let the program start.
SET LOCAL ROLE app_owner;
DO $$
DECLARE
    tenant_table record;
BEGIN
    FOR tenant_table IN
        SELECT format('%I.%I', n.nspname, c.relname) AS name
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_attribute AS org ON org.attrelid = c.oid AND org.attname = 'org_id' AND NOT org.attisdropped
        WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('rm', 'audit', 'ops')
    LOOP
        EXECUTE format(
            'CREATE POLICY erasure ON %s AS PERMISSIVE FOR ALL TO app_eraser
                USING (org_id = (SELECT app.org()) AND (SELECT app.is_erasing())) WITH CHECK (false)',
            tenant_table.name
        );
        EXECUTE format('GRANT SELECT, DELETE ON %s TO app_eraser', tenant_table.name);
    END LOOP;
END $$;
RESET ROLE;
