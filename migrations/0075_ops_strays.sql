-- Messages on subjects that belong to no organization of their shard: applied nowhere, and kept in mind here for an operator.
--
-- They are nobody's, so this is no tenant data. The bytes stay in the log, where the shard and the sequence find them.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.strays (
    shard integer NOT NULL,
    seq bigint NOT NULL,
    subject text NOT NULL,
    reason text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (shard, seq)
);
GRANT SELECT, INSERT, DELETE ON ops.strays TO app_rw;
RESET ROLE;
