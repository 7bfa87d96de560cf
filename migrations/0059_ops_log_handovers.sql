-- By which the key of the audit logs was replaced: notes that the old key and the new one signed, for exports to repeat.
SET LOCAL ROLE app_owner;
CREATE TABLE ops.log_handovers (
    note text NOT NULL PRIMARY KEY,
    said_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON ops.log_handovers TO app_ro;
GRANT SELECT, INSERT ON ops.log_handovers TO app_sign;
RESET ROLE;
