-- What is being done about the versions of orgs' read models: one row for each org that anything was ever asked for.
--
-- Like a mark, it is needed before any org is bound, and holds no org's data.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.rebuilds (
    org uuid NOT NULL PRIMARY KEY,
    shard integer NOT NULL,
    job text NOT NULL CHECK (job IN ('build', 'verify', 'roll_back', 'drop')),
    state text NOT NULL CHECK (state IN ('clearing', 'building', 'comparing', 'dropping', 'done', 'failed')),
    -- The version that the job is about, and the one that can be gone back to.
    version integer NOT NULL,
    previous integer,
    -- Up to which sequence the version was to come when the job began, and how far it is.
    target bigint NOT NULL,
    reached bigint NOT NULL DEFAULT 0,
    -- Events applied by the job, of how many.
    events bigint NOT NULL DEFAULT 0,
    total bigint NOT NULL,
    -- Rows that a comparison found to differ.
    differences bigint NOT NULL DEFAULT 0,
    error text,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX rebuilds_under_way ON ops.rebuilds (shard, started_at) WHERE state NOT IN ('done', 'failed');
GRANT SELECT, INSERT, UPDATE ON ops.rebuilds TO app_rw;
GRANT SELECT ON ops.rebuilds TO app_ro;
RESET ROLE;
