-- What is found of records that were changed or archived leaves the index. A loop with one list of keys each: a join with the
-- changed records would let the planner read all of the organization for a few.
SET LOCAL ROLE app_owner;
CREATE FUNCTION app.drop_search_documents(org uuid, records uuid[]) RETURNS TABLE (of_kind text, of_length bigint) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old record;
    keys bytea[];
BEGIN
    FOR nth IN 1 .. coalesce(array_length(records, 1), 0) LOOP
        SELECT document.kind, document.length, document.terms INTO old FROM rm.search_documents AS document
            WHERE document.org_id = org AND document.id = records[nth];
        CONTINUE WHEN NOT FOUND;
        SELECT array_agg(
            convert_to(old.kind, 'UTF8') || '\x00'::bytea || convert_to(term, 'UTF8') || '\x00'::bytea || uuid_send(records[nth])
        ) INTO keys FROM unnest(string_to_array(old.terms, ' ')) AS term;
        DELETE FROM rm.postings AS posting WHERE posting.org_id = org AND posting.key = ANY (keys);
        DELETE FROM rm.search_documents AS document WHERE document.org_id = org AND document.id = records[nth];
        of_kind := old.kind;
        of_length := old.length;
        RETURN NEXT;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION app.drop_search_documents FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.drop_search_documents TO app_rw;
RESET ROLE;
