-- The index of words: what is found of each record, one row for each word of a record, and the figures that hits are ranked by.
--
-- A posting's key is the kind, the term and the record's id, separated by zero bytes: under row-level security only leakproof
-- operators can be the conditions of an index, and those of `bytea` are, by ranges as well. What ranking needs is in the index, so
-- that no match is fetched; and no statistics of the keys are kept, which would be of everybody's words.
SET LOCAL ROLE app_owner;
CREATE TABLE rm.search_documents (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.search_version', true), '')::integer,
    id uuid NOT NULL,
    kind text NOT NULL,
    title text,
    -- The number of words.
    length integer NOT NULL,
    -- Whether it has more text than is searched.
    truncated boolean NOT NULL,
    -- The fields that are searched, by which snippets are made.
    fields jsonb NOT NULL,
    -- The values by which hits are counted.
    facets jsonb NOT NULL,
    -- All terms, separated by spaces: the postings that go with it.
    terms text NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, id)
);
CREATE TABLE rm.postings (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.search_version', true), '')::integer,
    key bytea NOT NULL,
    -- The weight of the occurrences, and the number of words of the record.
    weight smallint NOT NULL,
    length integer NOT NULL,
    PRIMARY KEY (org_id, rm_version, key) INCLUDE (weight, length)
);
CREATE TABLE rm.search_statistics (
    org_id uuid NOT NULL,
    rm_version integer NOT NULL DEFAULT nullif(current_setting('app.search_version', true), '')::integer,
    kind text NOT NULL COLLATE "C",
    documents bigint NOT NULL,
    length bigint NOT NULL,
    PRIMARY KEY (org_id, rm_version, kind)
);
ALTER TABLE rm.postings ALTER COLUMN key SET STATISTICS 0;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['search_documents', 'postings', 'search_statistics'] LOOP
        EXECUTE format('ALTER TABLE rm.%I ALTER COLUMN org_id SET STATISTICS 0', name);
        EXECUTE format('ALTER TABLE rm.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE rm.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON rm.%I AS PERMISSIVE FOR ALL TO app_rw, app_ro
            USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()))', name);
        EXECUTE format('CREATE POLICY floor ON rm.%I AS RESTRICTIVE FOR ALL TO PUBLIC
            USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()))', name);
        EXECUTE format('CREATE POLICY version ON rm.%I AS RESTRICTIVE FOR ALL TO PUBLIC
            USING (rm_version = (SELECT app.search_version())) WITH CHECK (rm_version = (SELECT app.search_version()))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON rm.%I TO app_rw', name);
        EXECUTE format('GRANT SELECT ON rm.%I TO app_ro', name);
    END LOOP;
END $$;
RESET ROLE;
