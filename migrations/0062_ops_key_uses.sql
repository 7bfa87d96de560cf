-- When a key was last used, and from where, a minute's grain: no event, and nothing that a replay could bring back.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.key_uses (
    org_id uuid NOT NULL,
    key_id uuid NOT NULL,
    last_used_at timestamptz NOT NULL,
    ip text,
    user_agent text,
    PRIMARY KEY (org_id, key_id)
);
ALTER TABLE ops.key_uses ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.key_uses ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.key_uses FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.key_uses AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.key_uses AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.key_uses TO app_rw;
GRANT SELECT ON ops.key_uses TO app_ro;
RESET ROLE;
