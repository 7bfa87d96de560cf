-- One schema for each way in which data is treated: functions, read models, the audit log, operation.
CREATE SCHEMA app AUTHORIZATION app_owner;
CREATE SCHEMA rm AUTHORIZATION app_owner;
CREATE SCHEMA audit AUTHORIZATION app_owner;
CREATE SCHEMA ops AUTHORIZATION app_owner;

SET LOCAL ROLE app_owner;
GRANT USAGE ON SCHEMA app, rm, audit, ops TO app_rw, app_ro;
GRANT USAGE ON SCHEMA app, audit TO app_audit;
RESET ROLE;
