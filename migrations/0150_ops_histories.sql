-- The last message that is known of each stream of the log, so that a stream that came back from an older copy is known as that for ever.
--
-- A sequence alone says nothing once the stream has grown past it again; the hash of its message does. No tenant data.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.histories (
    stream text PRIMARY KEY,
    seq bigint NOT NULL,
    digest bytea NOT NULL,
    -- Counts the decisions of operators: a process from before the last of them has to start again.
    era integer NOT NULL DEFAULT 1,
    -- How it was found that the stream is not what it was; nothing while it is.
    lost text,
    lost_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, UPDATE ON ops.histories TO app_rw;
RESET ROLE;
