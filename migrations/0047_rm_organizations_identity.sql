-- Which organization of an external identity provider stands for this one there.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.organizations ADD COLUMN external_id text;
RESET ROLE;
