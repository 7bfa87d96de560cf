-- The length of a record's content as JSON, by which what an organization stores is counted.
--
-- It is no length that the database knows: `jsonb` writes its text in its own way. Records that were written before have 0 until
-- they change or the organization is rebuilt.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.records ADD COLUMN bytes bigint NOT NULL DEFAULT 0;
RESET ROLE;
