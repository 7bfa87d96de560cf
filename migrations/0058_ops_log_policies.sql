-- Whose key signs the audit logs and which witnesses are asked, as the signing process says when it starts.
--
-- For exports, as advice: an auditor believes the keys that came from elsewhere. It holds no org's data.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.log_policies (
    vkey text NOT NULL PRIMARY KEY,
    witnesses text NOT NULL,
    said_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON ops.log_policies TO app_ro;
GRANT SELECT, INSERT, UPDATE ON ops.log_policies TO app_sign;
RESET ROLE;
