-- When an org is deleted, once that was requested, and when its keys ended.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.organizations ADD COLUMN delete_at timestamptz, ADD COLUMN keys_ended_at timestamptz;
CREATE INDEX organizations_to_delete ON rm.organizations (org_id) WHERE delete_at IS NOT NULL;
GRANT SELECT (delete_at) ON rm.organizations TO app_resolver;
RESET ROLE;
