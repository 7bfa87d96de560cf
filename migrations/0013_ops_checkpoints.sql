-- How far each pipeline has come with each org. It moves in the transaction that writes the rows, so effects are
-- exactly once.
--
-- Every version of an org's read models has a checkpoint of its own. The active one is what is shown and what slices go
-- on from; another becomes active in a transaction that holds this one's row, so that no slice can be under way.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.checkpoints (
    org_id uuid NOT NULL,
    pipeline text NOT NULL,
    version integer NOT NULL,
    active boolean NOT NULL DEFAULT true,
    shard integer NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, pipeline, version, shard)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX checkpoints_active ON ops.checkpoints (org_id, pipeline) WHERE active;
ALTER TABLE ops.checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.checkpoints FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.checkpoints AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.checkpoints AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.checkpoints TO app_rw;
GRANT SELECT ON ops.checkpoints TO app_ro;
RESET ROLE;
