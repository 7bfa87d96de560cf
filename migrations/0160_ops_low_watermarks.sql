-- A low watermark for each pipeline of a shard, so that a pipeline that is added begins where it has none: at the start.
--
-- Everything up to `seq` is done in this pipeline for every org of the shard but for those that are catching up. A version
-- that does not know a pipeline leaves its row where it is, and the next one that does goes on from there.
--
-- `ops.shard_marks` has two pipelines in its columns. It stays for the version that is running, and for one that is gone
-- back to: an older low watermark is a true one, because checkpoints do not go back. Nothing else reads it any more.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.low_watermarks (
    shard integer NOT NULL,
    pipeline text NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    catching_up uuid[] NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, pipeline)
);
GRANT SELECT, INSERT, UPDATE ON ops.low_watermarks TO app_rw;
GRANT SELECT ON ops.low_watermarks TO app_ro;
INSERT INTO ops.low_watermarks (shard, pipeline, seq, epoch, catching_up, updated_at)
SELECT shard, 'read_models', seq, epoch, detached_read_models, updated_at FROM ops.shard_marks
UNION ALL
SELECT shard, 'audit', seq, epoch, detached_audit, updated_at FROM ops.shard_marks;
RESET ROLE;
