-- A version of its own for each pipeline whose rows have versions: a search shows its active version beside that of the read models.
--
-- `ops.open_batch` is told by the program which setting has the version of a pipeline's rows, if they have versions; the rest is
-- as in 0161. `ops.begin_batch`, which knows one such setting, stays for the version that is running.
SET LOCAL ROLE app_owner;
CREATE FUNCTION app.search_version() RETURNS integer LANGUAGE plpgsql STABLE AS $$
DECLARE
    bound text := pg_catalog.current_setting('app.search_version', true);
BEGIN
    IF bound IS NULL OR bound = '' THEN
        RAISE EXCEPTION 'no version of the search index is bound' USING ERRCODE = '42501';
    END IF;
    RETURN bound::integer;
END $$;
REVOKE ALL ON FUNCTION app.search_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.search_version() TO app_rw, app_ro;

CREATE OR REPLACE FUNCTION app.bind(bound_org uuid) RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY INVOKER AS $$
DECLARE
    bound_version integer;
    search_version integer;
BEGIN
    PERFORM pg_catalog.set_config('app.org_id', bound_org::text, true);
    SELECT max(checkpoint.version) FILTER (WHERE checkpoint.pipeline = 'read_models'),
        max(checkpoint.version) FILTER (WHERE checkpoint.pipeline = 'search')
    INTO bound_version, search_version
    FROM ops.checkpoints AS checkpoint WHERE checkpoint.org_id = bound_org AND checkpoint.active;
    bound_version := coalesce(bound_version, 1);
    PERFORM pg_catalog.set_config('app.rm_version', bound_version::text, true),
        pg_catalog.set_config('app.search_version', coalesce(search_version, 1)::text, true);
    RETURN bound_version;
END $$;

CREATE FUNCTION ops.open_batch(
    batch_org uuid,
    batch_pipeline text,
    version_setting text,
    is_log boolean,
    batch_shard integer,
    batch_epoch bigint,
    from_seq bigint,
    to_seq bigint,
    OUT state text,
    OUT stored_seq bigint,
    OUT parked boolean,
    OUT plan text,
    OUT log_size bigint,
    OUT log_frontier bytea
) LANGUAGE plpgsql VOLATILE SECURITY INVOKER AS $$
DECLARE
    active_version integer;
BEGIN
    IF to_seq < from_seq THEN
        RAISE EXCEPTION 'a checkpoint does not go back' USING ERRCODE = '22023';
    END IF;
    -- The batches of one org begin one after the other, each with a setting of its own.
    IF pg_catalog.current_setting('app.org_id', true) IS DISTINCT FROM batch_org::text THEN
        PERFORM pg_catalog.set_config('app.org_id', batch_org::text, true),
            pg_catalog.set_config('app.rm_version', '0', true),
            pg_catalog.set_config('app.search_version', '0', true);
    END IF;
    stored_seq := 0;
    parked := false;

    PERFORM FROM ops.shard_leases AS lease WHERE lease.shard = batch_shard AND lease.epoch = batch_epoch;
    IF NOT FOUND THEN
        state := 'fenced';
        RETURN;
    END IF;

    UPDATE ops.checkpoints AS checkpoint
    SET seq = to_seq, epoch = batch_epoch, updated_at = pg_catalog.clock_timestamp()
    WHERE checkpoint.org_id = batch_org AND checkpoint.pipeline = batch_pipeline
        AND checkpoint.active AND checkpoint.shard = batch_shard AND checkpoint.seq = from_seq
    RETURNING checkpoint.version INTO active_version;
    IF NOT FOUND THEN
        -- FOUND stays false when there is nothing to insert.
        IF coalesce(from_seq, 0) = 0 THEN
            INSERT INTO ops.checkpoints (org_id, pipeline, version, shard, seq, epoch, updated_at)
            VALUES (batch_org, batch_pipeline, 1, batch_shard, to_seq, batch_epoch, pg_catalog.clock_timestamp())
            ON CONFLICT DO NOTHING
            RETURNING version INTO active_version;
        END IF;
        IF NOT FOUND THEN
            state := 'moved';
            SELECT checkpoint.seq INTO stored_seq FROM ops.checkpoints AS checkpoint
            WHERE checkpoint.org_id = batch_org AND checkpoint.pipeline = batch_pipeline
                AND checkpoint.active AND checkpoint.shard = batch_shard;
            stored_seq := coalesce(stored_seq, 0);
            RETURN;
        END IF;
    END IF;

    IF version_setting IS NOT NULL THEN
        PERFORM pg_catalog.set_config(version_setting, active_version::text, true);
    END IF;
    IF is_log THEN
        -- The checkpoint is held, so nobody else appends to this log until the batch ends.
        SELECT head.next_idx, head.frontier INTO log_size, log_frontier
        FROM audit.heads AS head WHERE head.org_id = batch_org;
    END IF;
    state := 'open';
    stored_seq := to_seq;
    SELECT
        EXISTS (
            SELECT FROM ops.parked AS waiting WHERE waiting.org_id = batch_org AND waiting.pipeline = batch_pipeline
        ),
        (SELECT booked.plan FROM ops.plans AS booked WHERE booked.org_id = batch_org)
    INTO parked, plan;
END $$;
REVOKE ALL ON FUNCTION ops.open_batch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.open_batch TO app_rw;

-- What the search could not apply belongs to one of its versions.
ALTER POLICY version ON ops.parked
    USING (
        pipeline NOT IN ('read_models', 'search')
        OR (pipeline = 'read_models' AND rm_version = (SELECT app.rm_version()))
        OR (pipeline = 'search' AND rm_version = (SELECT app.search_version()))
    )
    WITH CHECK (
        pipeline NOT IN ('read_models', 'search')
        OR (pipeline = 'read_models' AND rm_version = (SELECT app.rm_version()))
        OR (pipeline = 'search' AND rm_version = (SELECT app.search_version()))
    );
RESET ROLE;
