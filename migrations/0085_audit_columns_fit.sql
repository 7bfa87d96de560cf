-- The columns of the audit log that filters use repeat what the header says; an index of the rows where they do not.
--
-- It is empty, and so asking it costs nothing, and every filtered read does. Whoever edits a column to hide an event from
-- filters puts the event into it; filters then go by the headers themselves. The bytes that are looked for are those that
-- the codec writes, named fields in their order (golden files hold them): each text with its length in front, so that none
-- is found inside another. A time before 1970-02-19 is written in fewer bytes and counts as one that does not fit, which
-- costs its reader time and nothing else.
SET LOCAL ROLE app_owner;
CREATE FUNCTION audit.packed(value text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN octet_length(value) < 32 THEN set_byte('\x00'::bytea, 0, 160 + octet_length(value))
    WHEN octet_length(value) < 256 THEN '\xd9'::bytea || set_byte('\x00'::bytea, 0, octet_length(value))
    ELSE '\xda'::bytea || substring(int4send(octet_length(value)) FROM 3)
END || decode(replace(value, '\', '\\'), 'escape');
CREATE FUNCTION audit.packed(value timestamptz) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '\xcf'::bytea
    || int8send((extract(epoch FROM value - timestamptz '1970-01-01 00:00:00+00') * 1000)::bigint);
-- In the order of the bytes: org_id, event_id, type; occurred_at, recorded_at, actor (3 fields: type, id, auth); targets (one,
-- of 2 fields: type, id), outcome (2 fields: status, code); command_id.
CREATE FUNCTION audit.fits(
    org_id uuid, event_id uuid, command_id uuid, action text, actor_type text, actor_id text, target_type text,
    target_id text, occurred_at timestamptz, recorded_at timestamptz, outcome text, header bytea
) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN position((
        '\xa66f72675f6964c410'::bytea || uuid_send(org_id) || '\xa86576656e745f6964c410'::bytea || uuid_send(event_id)
        || '\xa474797065'::bytea || audit.packed(action)
    ) IN header) > 0
    AND position((
        '\xab6f636375727265645f6174'::bytea || audit.packed(occurred_at)
        || '\xab7265636f726465645f6174'::bytea || audit.packed(recorded_at)
        || '\xa56163746f7283a474797065'::bytea || audit.packed(actor_type)
        || '\xa26964'::bytea || audit.packed(actor_id)
    ) IN header) > 0
    AND position((
        '\xa7746172676574739182a474797065'::bytea || audit.packed(target_type)
        || '\xa26964'::bytea || audit.packed(target_id)
        || '\xa76f7574636f6d6582a6737461747573'::bytea || audit.packed(outcome)
    ) IN header) > 0
    AND position(('\xaa636f6d6d616e645f6964c410'::bytea || uuid_send(command_id)) IN header) > 0;
GRANT EXECUTE ON FUNCTION audit.packed(text), audit.packed(timestamptz), audit.fits TO app_rw, app_ro, app_audit;
CREATE INDEX events_that_do_not_fit ON audit.events (org_id, idx) WHERE NOT audit.fits(
    org_id, event_id, command_id, action, actor_type, actor_id, target_type, target_id, occurred_at, recorded_at, outcome,
    header
);
RESET ROLE;
