-- Whether the records of a kind are written once.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.kinds ADD COLUMN append_only boolean NOT NULL DEFAULT false;
RESET ROLE;
