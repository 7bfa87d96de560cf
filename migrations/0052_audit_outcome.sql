-- How an event ended, beside its bytes, so that refusals can be listed.
SET LOCAL ROLE app_owner;
ALTER TABLE audit.events ADD COLUMN outcome text NOT NULL DEFAULT 'success';
CREATE INDEX events_by_outcome ON audit.events (org_id, outcome, idx) WHERE outcome <> 'success';
CREATE INDEX events_by_target ON audit.events (org_id, target_id, idx);
RESET ROLE;
