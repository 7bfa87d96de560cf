-- What each worker last said of the lanes that are the furthest behind: for the operator's question, on any API process.
SET LOCAL ROLE app_owner;
ALTER TABLE ops.workers ADD COLUMN lagging jsonb NOT NULL DEFAULT '[]';
RESET ROLE;
