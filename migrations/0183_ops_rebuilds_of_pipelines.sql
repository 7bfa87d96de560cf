-- A job for each pipeline whose rows have versions. Without a name it is one on the read models, as for the version that is running.
SET LOCAL ROLE app_owner;
ALTER TABLE ops.rebuilds ADD COLUMN pipeline text NOT NULL DEFAULT 'read_models';
ALTER TABLE ops.rebuilds DROP CONSTRAINT rebuilds_pkey, ADD PRIMARY KEY (org, pipeline);
RESET ROLE;
