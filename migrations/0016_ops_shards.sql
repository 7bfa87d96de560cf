-- Who works on which shard and how far it has come: metadata that is needed before any org is bound, and no org's data.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.workers (
    id uuid NOT NULL PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE ops.shard_leases (
    shard integer NOT NULL PRIMARY KEY,
    owner uuid,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
-- Everything up to `seq` is done for every org of the shard but for those that are listed, by pipeline.
CREATE TABLE ops.shard_marks (
    shard integer NOT NULL PRIMARY KEY,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    detached_read_models uuid[] NOT NULL,
    detached_audit uuid[] NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.workers TO app_rw;
GRANT SELECT, INSERT, UPDATE ON ops.shard_leases, ops.shard_marks TO app_rw;
GRANT SELECT ON ops.workers, ops.shard_leases, ops.shard_marks TO app_ro;
RESET ROLE;
