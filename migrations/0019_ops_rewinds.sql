-- Orgs whose checkpoint was put back while no slice of theirs may be under way: the owner of the shard must be told.
--
-- Without this, an idle org that was reset would wait for its next event before anybody looked at its checkpoint again.
-- Like a mark, it is needed before any org is bound, and holds no org's data.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.rewinds (
    shard integer NOT NULL,
    org uuid NOT NULL,
    pipeline text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, org, pipeline, requested_at)
);
GRANT SELECT, INSERT, DELETE ON ops.rewinds TO app_rw;
GRANT SELECT ON ops.rewinds TO app_ro;
RESET ROLE;
