-- Whose log has grown since its last checkpoint, or lacks signatures: asked before any org is bound, answered by ids alone.
SET LOCAL ROLE app_owner;
GRANT USAGE ON SCHEMA audit TO app_resolver;
GRANT SELECT (org_id, next_idx) ON audit.heads TO app_resolver;
GRANT SELECT (org_id, size) ON audit.checkpoints TO app_resolver;
GRANT SELECT (org_id, size) ON audit.signatures TO app_resolver;

CREATE FUNCTION app.orgs_to_sign(grown_by bigint, signed_by bigint) RETURNS SETOF uuid LANGUAGE sql STABLE
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT head.org_id FROM audit.heads AS head
    LEFT JOIN LATERAL (
        SELECT made.size FROM audit.checkpoints AS made WHERE made.org_id = head.org_id ORDER BY made.size DESC LIMIT 1
    ) AS newest ON true
    WHERE head.next_idx >= coalesce(newest.size, 0) + grown_by
        OR signed_by > 0 AND newest.size IS NOT NULL AND (
            SELECT count(*) FROM audit.signatures AS line WHERE line.org_id = head.org_id AND line.size = newest.size
        ) < signed_by
$$;
REVOKE ALL ON FUNCTION app.orgs_to_sign FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.orgs_to_sign TO app_sign;

-- Giving a function away takes the right to create on its schema, for this moment.
GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.orgs_to_sign OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
