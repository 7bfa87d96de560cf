-- The right edge of each org's Merkle tree, in the row that every append changes anyhow.
--
-- 8 bytes of size and up to 63 hashes. A log that is older than this column has none: the first append makes it, out of
-- the leaves that are there.
SET LOCAL ROLE app_owner;
ALTER TABLE audit.heads ADD COLUMN frontier bytea;
RESET ROLE;
