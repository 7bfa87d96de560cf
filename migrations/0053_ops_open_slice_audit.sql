-- A slice of the audit log is opened with where the log ends, which its append begins from.
--
-- No round trip of its own, and nothing that a worker would have to remember: `audit_size` and `audit_frontier` are NULL for
-- read models, and for a log without events. The rest is as 0017 has it.
SET LOCAL ROLE app_owner;
DROP FUNCTION ops.open_slice;
CREATE FUNCTION ops.open_slice(
    slice_org uuid,
    slice_pipeline text,
    slice_shard integer,
    slice_epoch bigint,
    from_seq bigint,
    to_seq bigint,
    OUT state text,
    OUT stored_seq bigint,
    OUT parked boolean,
    OUT plan text,
    OUT audit_size bigint,
    OUT audit_frontier bytea
) LANGUAGE plpgsql VOLATILE SECURITY INVOKER AS $$
DECLARE
    active_version integer;
BEGIN
    IF to_seq < from_seq THEN
        RAISE EXCEPTION 'a checkpoint does not go back' USING ERRCODE = '22023';
    END IF;
    -- The slices of one org are opened one after the other. Only that of the read models has a version of theirs.
    IF pg_catalog.current_setting('app.org_id', true) IS DISTINCT FROM slice_org::text THEN
        PERFORM pg_catalog.set_config('app.org_id', slice_org::text, true),
            pg_catalog.set_config('app.rm_version', '0', true);
    END IF;
    stored_seq := 0;
    parked := false;

    PERFORM FROM ops.shard_leases AS lease WHERE lease.shard = slice_shard AND lease.epoch = slice_epoch;
    IF NOT FOUND THEN
        state := 'fenced';
        RETURN;
    END IF;

    UPDATE ops.checkpoints AS checkpoint
    SET seq = to_seq, epoch = slice_epoch, updated_at = pg_catalog.clock_timestamp()
    WHERE checkpoint.org_id = slice_org AND checkpoint.pipeline = slice_pipeline
        AND checkpoint.active AND checkpoint.shard = slice_shard AND checkpoint.seq = from_seq
    RETURNING checkpoint.version INTO active_version;
    IF NOT FOUND THEN
        -- FOUND stays false when there is nothing to insert.
        IF coalesce(from_seq, 0) = 0 THEN
            INSERT INTO ops.checkpoints (org_id, pipeline, version, shard, seq, epoch, updated_at)
            VALUES (slice_org, slice_pipeline, 1, slice_shard, to_seq, slice_epoch, pg_catalog.clock_timestamp())
            ON CONFLICT DO NOTHING
            RETURNING version INTO active_version;
        END IF;
        IF NOT FOUND THEN
            state := 'moved';
            SELECT checkpoint.seq INTO stored_seq FROM ops.checkpoints AS checkpoint
            WHERE checkpoint.org_id = slice_org AND checkpoint.pipeline = slice_pipeline
                AND checkpoint.active AND checkpoint.shard = slice_shard;
            stored_seq := coalesce(stored_seq, 0);
            RETURN;
        END IF;
    END IF;

    IF slice_pipeline = 'read_models' THEN
        PERFORM pg_catalog.set_config('app.rm_version', active_version::text, true);
    ELSE
        -- The checkpoint is held, so nobody else appends to this log until the slice ends.
        SELECT head.next_idx, head.frontier INTO audit_size, audit_frontier
        FROM audit.heads AS head WHERE head.org_id = slice_org;
    END IF;
    state := 'open';
    stored_seq := to_seq;
    SELECT
        EXISTS (
            SELECT FROM ops.parked AS waiting WHERE waiting.org_id = slice_org AND waiting.pipeline = slice_pipeline
        ),
        (SELECT booked.plan FROM ops.plans AS booked WHERE booked.org_id = slice_org)
    INTO parked, plan;
END $$;
REVOKE ALL ON FUNCTION ops.open_slice FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.open_slice TO app_rw;
RESET ROLE;
