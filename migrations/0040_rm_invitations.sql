-- Invitations, kept when they are accepted or revoked. The token is not here, only what it is compared with and the command
-- that made it, out of which whoever has the server's secret makes it again.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.invitations (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    email text NOT NULL,
    role text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'accepted', 'revoked')),
    expires_at timestamptz NOT NULL,
    token_mac bytea NOT NULL CHECK (length(token_mac) = 32),
    token_command uuid NOT NULL,
    member_id uuid,
    created_by_type text NOT NULL,
    created_by_id text NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE INDEX invitations_newest ON rm.invitations (org_id, rm_version, created_at, id);
CREATE INDEX invitations_by_token ON rm.invitations (org_id, rm_version, token_mac);
CREATE INDEX invitations_for_resolver ON rm.invitations (token_mac, org_id, rm_version);
ALTER TABLE rm.invitations ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.invitations ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.invitations FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.invitations AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.invitations AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.invitations AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.invitations TO app_rw;
GRANT SELECT ON rm.invitations TO app_ro;
RESET ROLE;
