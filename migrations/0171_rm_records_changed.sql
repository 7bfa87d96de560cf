-- Records of a kind by their last change, for listings in that order and for those of what changed since.
--
-- A change of a record is then a change of its indexes too, which it was not before: that costs a batch of changes about as
-- much as one of new records. Listings without a kind have no such index.
SET LOCAL ROLE app_owner;
CREATE INDEX records_changed_of_kind ON rm.records (org_id, rm_version, kind, updated_at, created_seq);
RESET ROLE;
