-- Mails that have to leave, written with the rows that they are about, so that none is forgotten. What is in a mail is made
-- when it leaves: here are neither addresses nor tokens.
--
-- No versions: a rebuild goes through invitations of long ago, whose mails left long ago. `outcome` is NULL until the mail
-- has left (`sent`), need not leave any more (`void`) or was tried often enough (`given_up`).
SET LOCAL ROLE app_owner;
CREATE TABLE ops.mails (
    org_id uuid NOT NULL,
    id uuid NOT NULL,
    invitation_id uuid NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(),
    outcome text CHECK (outcome IN ('sent', 'void', 'given_up')),
    PRIMARY KEY (org_id, id)
);
CREATE INDEX mails_open ON ops.mails (next_at, org_id) WHERE outcome IS NULL;
ALTER TABLE ops.mails ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.mails ENABLE ROW LEVEL SECURITY;
ALTER TABLE ops.mails FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ops.mails AS PERMISSIVE FOR ALL TO app_rw, app_ro
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
CREATE POLICY floor ON ops.mails AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.mails TO app_rw;
GRANT SELECT ON ops.mails TO app_ro;
RESET ROLE;
