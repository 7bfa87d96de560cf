-- A parked message that no process of ours signed must stay unapplied, whatever is decided about it later.
--
-- `verified` says that `message` is the commit alone, taken out of a message whose signature held. Otherwise it is the
-- message as it came, and `expected` the sequence that the log held its publisher to.
SET LOCAL ROLE app_owner;
ALTER TABLE ops.parked ADD COLUMN verified boolean NOT NULL DEFAULT true, ADD COLUMN expected bigint;
ALTER TABLE ops.parked ALTER COLUMN verified DROP DEFAULT;
RESET ROLE;
