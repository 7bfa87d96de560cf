-- A member is found by their e-mail address, whatever the case of its letters.
SET LOCAL ROLE app_owner;
CREATE INDEX members_by_email ON rm.members (org_id, rm_version, lower(email));
RESET ROLE;
