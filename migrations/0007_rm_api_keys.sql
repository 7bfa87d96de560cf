-- API keys, kept when they are revoked. The secret is not here, only what it is compared with.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.api_keys (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    name text NOT NULL,
    public_id text NOT NULL,
    secret_mac bytea NOT NULL CHECK (length(secret_mac) = 32),
    last4 text NOT NULL,
    role text NOT NULL,
    environment text NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    created_by_type text NOT NULL,
    created_by_id text NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id),
    UNIQUE (org_id, rm_version, public_id)
);
CREATE INDEX api_keys_newest ON rm.api_keys (org_id, rm_version, created_at, id);
CREATE INDEX api_keys_for_resolver ON rm.api_keys (public_id, org_id, rm_version);
ALTER TABLE rm.api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.api_keys AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.api_keys AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.api_keys AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.api_keys TO app_rw;
GRANT SELECT ON rm.api_keys TO app_ro;
RESET ROLE;
