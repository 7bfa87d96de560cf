-- No batch of an org that was erased: its events are in the stream until that is rewritten, and nothing of them comes back.
--
-- `deleted` is one more state of a batch: nothing has changed, and nothing is to be done. The rest is as in 0180.
SET LOCAL ROLE app_owner;
CREATE OR REPLACE FUNCTION ops.open_batch(
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

    PERFORM FROM ops.deletions AS deletion
    WHERE deletion.org = batch_org AND deletion.step IN ('erasing', 'releasing', 'signing', 'done');
    IF FOUND THEN
        state := 'deleted';
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

    -- The checkpoint is held by now, for which the eraser waits: what it has begun meanwhile is seen here.
    PERFORM FROM ops.deletions AS deletion
    WHERE deletion.org = batch_org AND deletion.step IN ('erasing', 'releasing', 'signing', 'done');
    IF FOUND THEN
        RAISE EXCEPTION 'the org is being erased' USING ERRCODE = '40001';
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
RESET ROLE;
