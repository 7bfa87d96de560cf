-- Addresses are compared by the letters of ASCII alone, whatever the database's own rules for letters are.
SET LOCAL ROLE app_owner;
DROP INDEX rm.members_by_email;
CREATE INDEX members_by_email ON rm.members (org_id, rm_version, lower(email COLLATE "C"));
RESET ROLE;
