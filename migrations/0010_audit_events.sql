-- The audit log: every event with its stored bytes, numbered per org without gaps.
--
-- The columns beside the bytes repeat what the header says, for the filters of the audit page; the header decides. But for
-- the fingerprint, which is the commit's and no event's, and stands with the first of them: with it the log has all that
-- read models are built from.
SET LOCAL ROLE app_owner;
CREATE TABLE audit.events (
    org_id uuid NOT NULL,
    idx bigint NOT NULL CHECK (idx >= 0),
    event_id uuid NOT NULL,
    command_id uuid NOT NULL,
    seq bigint NOT NULL,
    ordinal integer NOT NULL,
    recorded_at timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL,
    action text NOT NULL,
    actor_type text NOT NULL,
    actor_id text NOT NULL,
    target_type text NOT NULL,
    target_id text NOT NULL,
    header bytea NOT NULL,
    payload bytea NOT NULL,
    leaf bytea NOT NULL CHECK (length(leaf) = 32),
    fingerprint bytea CHECK (length(fingerprint) = 32),
    PRIMARY KEY (org_id, idx),
    UNIQUE (org_id, event_id)
);
CREATE INDEX events_by_action ON audit.events (org_id, action, idx);
CREATE INDEX events_by_actor ON audit.events (org_id, actor_id, idx);
CREATE INDEX events_by_time ON audit.events (org_id, recorded_at);
CREATE INDEX events_by_seq ON audit.events (org_id, seq, ordinal);
ALTER TABLE audit.events ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.events FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON audit.events AS PERMISSIVE FOR ALL TO app_rw, app_ro, app_audit
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON audit.events AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT ON audit.events TO app_rw;
GRANT SELECT ON audit.events TO app_ro;
GRANT SELECT, INSERT ON audit.events TO app_audit;
RESET ROLE;
