-- One row for each thing that breaks the rules of tenancy.
WITH
app_roles AS (
    SELECT oid, rolname FROM pg_roles WHERE rolname IN ('app_rw', 'app_ro', 'app_public', 'app_audit', 'app_sign', 'app_identity', 'app_eraser') OR rolname = current_user
),
tables AS (
    SELECT c.oid, c.relowner, c.relrowsecurity, c.relforcerowsecurity, n.nspname,
        format('%I.%I', n.nspname, c.relname) AS name, org.attnum AS org_column, org.attnotnull, org.atttypid,
        rm_version.attnum AS version_column
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute AS org ON org.attrelid = c.oid AND org.attname = 'org_id' AND NOT org.attisdropped
    LEFT JOIN pg_attribute AS rm_version
        ON rm_version.attrelid = c.oid AND rm_version.attname = 'rm_version' AND NOT rm_version.attisdropped
    WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
),
tenant_tables AS (SELECT * FROM tables WHERE org_column IS NOT NULL),
versioned_tables AS (SELECT * FROM tables WHERE version_column IS NOT NULL),
append_only AS (
    SELECT unnest(ARRAY['audit.events', 'audit.tiles', 'audit.checkpoints', 'audit.signatures']) AS name
),
policies AS (
    SELECT p.*, pg_get_expr(polqual, polrelid) AS reads, pg_get_expr(polwithcheck, polrelid) AS writes
    FROM pg_policy AS p
)
SELECT name || ' has no column org_id' AS "what!", 'give it one, or another schema' AS "fix!"
FROM tables WHERE nspname IN ('rm', 'audit') AND org_column IS NULL
UNION ALL
SELECT name || ': org_id is not a uuid NOT NULL', 'make it uuid NOT NULL'
FROM tenant_tables WHERE NOT attnotnull OR atttypid <> 'uuid'::regtype
UNION ALL
SELECT name || ' has row-level security off', 'ENABLE ROW LEVEL SECURITY'
FROM tenant_tables WHERE NOT relrowsecurity
UNION ALL
SELECT name || ' does not bind its owner', 'FORCE ROW LEVEL SECURITY'
FROM tenant_tables WHERE NOT relforcerowsecurity
UNION ALL
SELECT name || ' has no permissive policy by app.org()', 'CREATE POLICY tenant'
FROM tenant_tables AS t WHERE NOT EXISTS (
    SELECT FROM policies AS p
    WHERE p.polrelid = t.oid AND p.polpermissive AND p.polcmd = '*'
        AND p.reads LIKE '%org_id = ( SELECT app.org()%' AND p.writes LIKE '%org_id = ( SELECT app.org()%'
)
UNION ALL
SELECT name || ' cannot be erased when its org is deleted',
    'CREATE POLICY erasure ... TO app_eraser, and GRANT SELECT, DELETE, as the migration 0222 does'
FROM tenant_tables AS t JOIN pg_roles AS eraser ON eraser.rolname = 'app_eraser'
WHERE NOT has_table_privilege(eraser.oid, t.oid, 'SELECT') OR NOT has_table_privilege(eraser.oid, t.oid, 'DELETE')
    OR NOT EXISTS (
        SELECT FROM policies AS p
        WHERE p.polrelid = t.oid AND p.polpermissive AND p.polcmd = '*' AND p.polroles = ARRAY[eraser.oid]
            AND p.reads LIKE '%org_id = ( SELECT app.org()%' AND p.reads LIKE '%app.is_erasing()%' AND p.writes = 'false'
    )
UNION ALL
SELECT name || ' has no restrictive floor for everybody', 'CREATE POLICY floor AS RESTRICTIVE FOR ALL TO PUBLIC'
FROM tenant_tables AS t WHERE NOT EXISTS (
    SELECT FROM policies AS p
    WHERE p.polrelid = t.oid AND NOT p.polpermissive AND p.polcmd = '*' AND p.polroles = '{0}'
        AND p.reads = '(org_id = ( SELECT app.org() AS org))' AND p.writes = p.reads
)
UNION ALL
SELECT name || ' shows every version of its rows', 'CREATE POLICY version AS RESTRICTIVE FOR ALL TO PUBLIC'
FROM versioned_tables AS t WHERE NOT EXISTS (
    SELECT FROM policies AS p
    WHERE p.polrelid = t.oid AND NOT p.polpermissive AND p.polcmd = '*' AND p.polroles = '{0}'
        AND p.reads ~ 'rm_version = \( SELECT app\.(rm|search)_version\(\)' AND p.writes = p.reads
)
UNION ALL
SELECT format('%s: the unique index %s is not per version', name, i.indexrelid::regclass), 'make rm_version part of it'
FROM versioned_tables AS t JOIN pg_index AS i ON i.indrelid = t.oid
WHERE i.indisunique AND NOT t.version_column = ANY (i.indkey)
UNION ALL
SELECT name || ' has no column rm_version', 'give it one: read models are built version by version'
FROM tables WHERE nspname = 'rm' AND version_column IS NULL
UNION ALL
SELECT name || ' has no index that begins with org_id', 'begin the primary key with org_id'
FROM tenant_tables AS t WHERE NOT EXISTS (
    SELECT FROM pg_index AS i
    WHERE i.indrelid = t.oid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = t.org_column
)
UNION ALL
SELECT name || ' is planned by the statistics of org_id', 'ALTER COLUMN org_id SET STATISTICS 0'
FROM tenant_tables AS t JOIN pg_attribute AS org ON org.attrelid = t.oid AND org.attnum = t.org_column
WHERE org.attstattarget IS DISTINCT FROM 0
UNION ALL
SELECT format('%s: the unique index %s is not per org', name, i.indexrelid::regclass), 'begin it with org_id'
FROM tenant_tables AS t JOIN pg_index AS i ON i.indrelid = t.oid
WHERE i.indisunique AND i.indkey[0] <> t.org_column
UNION ALL
SELECT format('%s: the foreign key %I may point into another org', t.name, f.conname), 'make org_id part of it'
FROM tenant_tables AS t JOIN pg_constraint AS f ON f.conrelid = t.oid
WHERE f.contype = 'f' AND NOT t.org_column = ANY (f.conkey)
UNION ALL
SELECT name || ' is missing or not STABLE', 'create it STABLE: IMMUTABLE shows one org the rows of another'
FROM unnest(ARRAY['app.org()', 'app.rm_version()', 'app.search_version()']) AS name
WHERE NOT EXISTS (SELECT FROM pg_proc WHERE oid = to_regprocedure(name) AND provolatile = 's')
UNION ALL
SELECT format('the role %I may pass by row-level security', a.rolname),
    'ALTER ROLE ... NOSUPERUSER NOBYPASSRLS, and take it out of roles that have them'
FROM app_roles AS a WHERE EXISTS (
    SELECT FROM pg_roles AS r WHERE (r.rolsuper OR r.rolbypassrls) AND pg_has_role(a.oid, r.oid, 'MEMBER')
)
UNION ALL
SELECT format('the role %I can become the owner of %s', a.rolname, t.name), 'take it out of the owning role'
FROM app_roles AS a JOIN tenant_tables AS t ON pg_has_role(a.oid, t.relowner, 'MEMBER')
UNION ALL
SELECT format('the role %I may %s %s', a.rolname, p.privilege, t.name), 'REVOKE it'
FROM app_roles AS a
CROSS JOIN tenant_tables AS t
CROSS JOIN unnest(ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (privilege)
WHERE has_table_privilege(a.oid, t.oid, p.privilege)
UNION ALL
SELECT format('the role %I may %s %s', a.rolname, p.privilege, log.name), 'REVOKE it: the log is append-only'
FROM app_roles AS a
CROSS JOIN unnest(ARRAY['UPDATE', 'DELETE']) AS p (privilege)
CROSS JOIN append_only AS log
-- The trigger lets the eraser delete the rows of an org that is being erased, and nobody else.
WHERE NOT (a.rolname = 'app_eraser' AND p.privilege = 'DELETE') AND has_table_privilege(a.oid, to_regclass(log.name), p.privilege)
UNION ALL
SELECT log.name || ' may be changed: its trigger is missing or off', 'create or enable the trigger append_only'
FROM append_only AS log WHERE NOT EXISTS (
    SELECT FROM pg_trigger
    WHERE tgrelid = to_regclass(log.name) AND tgname = 'append_only' AND tgenabled IN ('O', 'A')
)
UNION ALL
SELECT 'audit.events: the index events_that_do_not_fit is missing, so an edit of its columns would not be noticed',
    'create it again, as the migration 0085 does'
WHERE NOT EXISTS (
    SELECT FROM pg_index
    WHERE indexrelid = to_regclass('audit.events_that_do_not_fit') AND indrelid = to_regclass('audit.events')
        AND indisvalid AND pg_get_expr(indpred, indrelid) LIKE '%NOT audit.fits(%'
)
UNION ALL
SELECT format('the role %I may create objects in the schema %I', a.rolname, n.nspname), 'REVOKE CREATE ON SCHEMA'
FROM app_roles AS a CROSS JOIN pg_namespace AS n
WHERE n.nspname NOT LIKE 'pg\_%' AND has_schema_privilege(a.oid, n.oid, 'CREATE')
UNION ALL
SELECT format('the role app_identity may use the schema %I', n.nspname),
    'REVOKE USAGE: who signs in is kept apart from what organizations have'
FROM pg_namespace AS n JOIN pg_roles AS a ON a.rolname = 'app_identity'
WHERE n.nspname IN ('app', 'rm', 'audit', 'ops') AND has_schema_privilege(a.oid, n.oid, 'USAGE')
UNION ALL
SELECT format('the role %I may use the schema identity', a.rolname),
    'REVOKE USAGE: what organizations have is kept apart from who signs in'
FROM pg_roles AS a JOIN pg_namespace AS n ON n.nspname = 'identity'
WHERE a.rolname IN ('app_rw', 'app_ro', 'app_public', 'app_audit', 'app_resolver', 'app_eraser') AND has_schema_privilege(a.oid, n.oid, 'USAGE')
UNION ALL
SELECT format('the role app_public may read %s', t.name), 'REVOKE it: that login is for what is published'
FROM tables AS t JOIN pg_roles AS a ON a.rolname = 'app_public'
WHERE t.name NOT IN ('rm.catalog_items', 'rm.catalog_versions', 'ops.checkpoints')
    AND has_any_column_privilege(a.oid, t.oid, 'SELECT')
UNION ALL
SELECT format('the role app_public may write %s', t.name), 'REVOKE it: that login is for what is published'
FROM tables AS t JOIN pg_roles AS a ON a.rolname = 'app_public'
WHERE has_any_column_privilege(a.oid, t.oid, 'INSERT, UPDATE') OR has_table_privilege(a.oid, t.oid, 'DELETE')
UNION ALL
SELECT format('%s shows app_public more than what is published', t.name),
    'CREATE POLICY published AS RESTRICTIVE FOR ALL TO app_public'
FROM tables AS t JOIN pg_roles AS a ON a.rolname = 'app_public'
WHERE t.name IN ('rm.catalog_items', 'rm.catalog_versions', 'ops.checkpoints') AND NOT EXISTS (
    SELECT FROM policies AS p
    WHERE p.polrelid = t.oid AND NOT p.polpermissive AND p.polcmd = '*' AND p.polroles = ARRAY[a.oid]
        AND p.reads LIKE '%org_id = ''00000000-0000-8000-8000-000000000001''::uuid%'
        AND (t.nspname = 'ops' OR p.reads LIKE '%status = ''published''%')
)
UNION ALL
SELECT format('%s is a materialized view, which no policy watches over', c.oid::regclass), 'make it a table'
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'm' AND n.nspname NOT LIKE 'pg\_%'
UNION ALL
SELECT format('the view %s reads with the rights of its owner', c.oid::regclass), 'WITH (security_invoker = true)'
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'v' AND n.nspname IN ('app', 'rm', 'audit', 'ops', 'identity', 'public')
    AND NOT coalesce(c.reloptions && ARRAY['security_invoker=true', 'security_invoker=on'], false)
UNION ALL
SELECT format('the function %s runs with the rights of its owner', p.oid::regprocedure),
    'let app_resolver own it, with search_path = pg_catalog, pg_temp'
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_roles AS owner ON owner.oid = p.proowner
WHERE p.prosecdef AND n.nspname IN ('app', 'rm', 'audit', 'ops', 'identity', 'public')
    AND NOT (
        owner.rolname = 'app_resolver'
        AND coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)
        AND p.prorettype = 'uuid'::regtype
    )
ORDER BY 1
