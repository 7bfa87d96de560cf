-- What bounds a key within its role, and the token that goes on for a while after a rotation.
SET LOCAL ROLE app_owner;
ALTER TABLE rm.api_keys
    ADD COLUMN scopes text[],
    ADD COLUMN allowed_ips text[] NOT NULL DEFAULT '{}',
    ADD COLUMN previous_public_id text,
    ADD COLUMN previous_secret_mac bytea CHECK (length(previous_secret_mac) = 32),
    ADD COLUMN previous_ends_at timestamptz;
CREATE INDEX api_keys_for_resolver_previous ON rm.api_keys (previous_public_id, org_id, rm_version)
    WHERE previous_public_id IS NOT NULL;
GRANT SELECT (previous_public_id) ON rm.api_keys TO app_resolver;
RESET ROLE;
