-- Who has signed in: the login identities, which are nobody's tenant data and which no organization sees.
--
-- This is operational state and no read model: no event makes these rows, and none is lost with them but who was signed in.
-- The id follows from the issuer and the subject, so a row that is gone comes back as it was, and there is nothing else that
-- would have to be unique: a second constraint could only fail where two first sign-ins meet.
CREATE SCHEMA identity AUTHORIZATION app_owner;

SET LOCAL ROLE app_owner;
CREATE TABLE identity.users (
    user_id uuid NOT NULL PRIMARY KEY,
    issuer text NOT NULL,
    subject text NOT NULL,
    email text,
    email_verified boolean NOT NULL DEFAULT false,
    personal_org uuid,
    first_sign_in_at timestamptz NOT NULL DEFAULT now(),
    last_sign_in_at timestamptz NOT NULL DEFAULT now()
);
GRANT USAGE ON SCHEMA identity TO app_identity;
GRANT SELECT, INSERT, UPDATE ON identity.users TO app_identity;
RESET ROLE;
