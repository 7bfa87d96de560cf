-- Domains that an organization says are its own, kept when it gives them up. Only a proven one lets anybody in.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.domains (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.rm_version', true), '')::integer,
    id uuid NOT NULL,
    domain text NOT NULL,
    challenge text NOT NULL,
    status text NOT NULL CHECK (status IN ('claimed', 'proven', 'removed')),
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE INDEX domains_newest ON rm.domains (org_id, rm_version, created_at, id);
CREATE INDEX domains_for_resolver ON rm.domains (domain, org_id, rm_version) WHERE status = 'proven';
ALTER TABLE rm.domains ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.domains ENABLE ROW LEVEL SECURITY;
ALTER TABLE rm.domains FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rm.domains AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON rm.domains AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY version ON rm.domains AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (rm_version = (SELECT app.rm_version())) WITH CHECK (rm_version = (SELECT app.rm_version()));
GRANT SELECT, INSERT, UPDATE, DELETE ON rm.domains TO app_rw;
GRANT SELECT ON rm.domains TO app_ro;
RESET ROLE;
