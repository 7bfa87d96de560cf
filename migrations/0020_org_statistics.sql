-- No statistics about orgs: to the planner they are all alike, and of some size.
--
-- With statistics, an org that has grown since they were taken looks empty, and looking a row up by its key looks dearer
-- than reading all that the org has: 100 times slower until the next ANALYZE (measured). Without them the planner counts
-- on a 200th of the table, which is wrong for every org and right for every plan.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.organizations ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.slugs ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.members ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.api_keys ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.kinds ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE rm.records ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE audit.events ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE audit.heads ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.checkpoints ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.parked ALTER COLUMN org_id SET STATISTICS 0;
ALTER TABLE ops.idempotency ALTER COLUMN org_id SET STATISTICS 0;
RESET ROLE;
