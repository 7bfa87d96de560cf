-- What an organization may do, where that is not what its plan says.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.organizations ADD COLUMN limits jsonb NOT NULL DEFAULT '{}';
RESET ROLE;
