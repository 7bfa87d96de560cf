-- What a changed record does not have any more leaves its tables. A loop with one range each: a join with the changed records
-- would let the planner read all of the organization for a few.
SET LOCAL ROLE app_owner;
CREATE FUNCTION app.drop_stale_parts(org uuid, records uuid[], seqs bigint[]) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first_key bytea;
    -- No name in UTF-8 has this byte.
    end_key bytea;
BEGIN
    FOR nth IN 1 .. coalesce(array_length(records, 1), 0) LOOP
        first_key := uuid_send(records[nth]);
        end_key := first_key || '\xff'::bytea;
        DELETE FROM rm.record_fields
            WHERE org_id = org AND key >= first_key AND key < end_key AND seq < seqs[nth];
        DELETE FROM rm.record_references
            WHERE org_id = org AND key >= first_key AND key < end_key AND seq < seqs[nth];
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION app.drop_stale_parts FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.drop_stale_parts TO app_rw;
RESET ROLE;
