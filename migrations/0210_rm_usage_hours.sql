-- What an organization used, by the hour: one row for each hour, meter, purpose and principal.
--
-- The key begins with the hour and ends in a hash of the rest, so that a range of hours is a range of one index whatever the names
-- are, and all keys have one length. Amounts are whole millionths; a sum of an hour may have more digits than a bigint.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.usage_hours (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    key bytea NOT NULL,
    begins_at timestamptz NOT NULL,
    meter text COLLATE "C" NOT NULL,
    -- The kind of the record that it was about, and the model, where the caller said them.
    kind text COLLATE "C",
    model text COLLATE "C",
    actor_type text COLLATE "C" NOT NULL,
    actor_id text COLLATE "C" NOT NULL,
    micros numeric NOT NULL,
    uses bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, key)
);
ALTER TABLE rm.usage_hours ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.usage_hours ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.usage_hours FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.usage_hours AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.usage_hours AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.usage_hours AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.usage_hours TO app_rw;
GRANT SELECT ON rm.usage_hours TO app_ro;
RESET ROLE;
