-- Messages that could not be applied, and later ones of the same aggregates that wait behind them.
--
-- What the read models could not apply belongs to one of their versions. The audit log has only one.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.parked (
    org_id uuid NOT NULL,
    pipeline text NOT NULL,
    rm_version integer NOT NULL,
    seq bigint NOT NULL,
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    message bytea NOT NULL,
    state text NOT NULL CHECK (state IN ('failed', 'waiting')),
    reason text NOT NULL,
    attempts integer NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, pipeline, rm_version, seq)
);
ALTER TABLE ops.parked ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.parked FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.parked AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.parked AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON ops.parked AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (pipeline <> 'read_models' OR rm_version = (SELECT app.rm_version()))
    WITH CHECK (pipeline <> 'read_models' OR rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.parked TO app_rw;
GRANT SELECT ON ops.parked TO app_ro;
RESET ROLE;
