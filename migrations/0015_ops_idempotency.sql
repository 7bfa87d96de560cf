-- Commands that came under an idempotency key, so that the same key on another thing is noticed.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.idempotency (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    command_id uuid NOT NULL,
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    seq bigint NOT NULL,
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    PRIMARY KEY (org_id, rm_version, command_id)
);
ALTER TABLE ops.idempotency ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.idempotency FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.idempotency AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.idempotency AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON ops.idempotency AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.idempotency TO app_rw;
GRANT SELECT ON ops.idempotency TO app_ro;
RESET ROLE;
