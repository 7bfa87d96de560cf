-- What is used of an organization's quotas, one row for each that is summed: what is there, and what commits near a limit counted.
--
-- Both change with the batch that moves the checkpoint, so what was counted behind it is what is counted in all, less `counted`. The
-- message that counts is directly before the one that it counts: while the checkpoint is between them, the last one does not count yet.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.quota_uses (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    quota text COLLATE "C" NOT NULL,
    -- API keys are counted where they are, because time ends some of them; their row has 0.
    used bigint NOT NULL,
    counted bigint NOT NULL,
    last_counted bigint NOT NULL,
    last_counted_seq bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, quota)
) WITH (fillfactor = 50);
ALTER TABLE rm.quota_uses ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.quota_uses ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.quota_uses FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.quota_uses AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.quota_uses AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.quota_uses AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.quota_uses TO app_rw;
GRANT SELECT ON rm.quota_uses TO app_ro;
RESET ROLE;
