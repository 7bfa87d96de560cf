-- Sessions of people: a keyed hash of the token, how long it is good for, and the one organization that it acts in.
--
-- `epoch` counts the switches, from 1. A session ends at `expires_at`, which every use moves on, and at `ends_at`, which
-- nothing does.
SET LOCAL ROLE app_owner;
CREATE TABLE identity.sessions (
    id uuid NOT NULL PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES identity.users (user_id),
    token_hash bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    method text NOT NULL,
    second_factor boolean NOT NULL,
    active_org uuid,
    epoch bigint NOT NULL DEFAULT 1 CHECK (epoch > 0),
    ip text,
    user_agent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_of_user ON identity.sessions (user_id, created_at, id);
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.sessions TO app_identity;
RESET ROLE;
