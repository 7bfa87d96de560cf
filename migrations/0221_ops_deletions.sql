-- The deletions of orgs, and a login of its own for what they erase. One row for each org, which is there for good: an org without
-- rows and with such a row was deleted, and nothing of it comes back. Its writer is the eraser alone.
--
-- Like a rebuild, it is needed before any org is bound. What it has of an org is what the receipt says.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'app_eraser') THEN
        BEGIN
            CREATE ROLE app_eraser LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database's migration was faster
        END;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_eraser', current_database());
END $$;

SET LOCAL ROLE app_owner;
GRANT USAGE ON SCHEMA app, rm, audit, ops TO app_eraser;
GRANT EXECUTE ON FUNCTION app.org(), app.rm_version(), app.search_version() TO app_eraser;
CREATE TABLE ops.deletions (
    org uuid NOT NULL PRIMARY KEY,
    step text NOT NULL CHECK (step IN (
        'requested', 'billing', 'sealing', 'shredding', 'erasing', 'releasing', 'signing', 'done', 'cancelled'
    )),
    -- Counts who took it: of two processes only the later one writes.
    epoch bigint NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    requested_by uuid,
    requested_at timestamptz NOT NULL,
    grace_until timestamptz NOT NULL,
    -- The sequence of the org's last event.
    fence bigint,
    facts jsonb NOT NULL DEFAULT '{}',
    waits_for text,
    -- What is to be signed, and that as it was signed.
    receipt text,
    note text,
    bytes_removed_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (fence IS NOT NULL OR step IN ('requested', 'billing', 'sealing', 'cancelled'))
);
CREATE INDEX deletions_due ON ops.deletions (due_at) WHERE step NOT IN ('done', 'cancelled');
GRANT SELECT, INSERT, UPDATE ON ops.deletions TO app_eraser;
GRANT SELECT ON ops.deletions TO app_rw, app_ro;
GRANT SELECT (org, receipt, note), UPDATE (note) ON ops.deletions TO app_sign;
-- What is kept of an org beside its own tables.
GRANT SELECT, DELETE ON ops.rebuilds, ops.search_indexes TO app_eraser;

-- Whether the bound org is being erased at this moment.
CREATE FUNCTION app.is_erasing() RETURNS boolean LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM ops.deletions WHERE org = app.org() AND step = 'erasing');
END $$;
REVOKE ALL ON FUNCTION app.is_erasing() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.is_erasing() TO app_eraser;

-- The audit log stays append-only for everybody but the eraser, of an org that is being erased.
CREATE OR REPLACE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_user = 'app_eraser' AND app.is_erasing() THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = '42501';
END $$;

-- The orgs whose deletion was requested and not taken up yet: ids and nothing else, as in 0018.
GRANT SELECT (org, step) ON ops.deletions TO app_resolver;
CREATE FUNCTION app.orgs_to_delete() RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT org.org_id FROM rm.organizations AS org
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE org.delete_at IS NOT NULL
        AND shown.pipeline = 'read_models' AND shown.active AND shown.version = org.rm_version
        AND NOT EXISTS (
            SELECT FROM ops.deletions AS known WHERE known.org = org.org_id AND known.step <> 'cancelled'
        )
    ORDER BY org.delete_at LIMIT 1000
$$;
REVOKE ALL ON FUNCTION app.orgs_to_delete FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_to_delete TO app_ro;
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_to_delete OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
