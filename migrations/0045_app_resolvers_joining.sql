-- Three more questions that are asked before an org is known: whose invitation a token is of, which orgs have proven a domain,
-- and which have a mail that has to leave. Ids and nothing else, as in 0018.
SET LOCAL ROLE app_owner;
GRANT SELECT (org_id, rm_version, token_mac) ON rm.invitations TO app_resolver;
GRANT SELECT (org_id, rm_version, domain, status) ON rm.domains TO app_resolver;
GRANT SELECT (org_id, next_at, outcome) ON ops.mails TO app_resolver;

CREATE FUNCTION app.org_of_invitation(wanted bytea) RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (array_agg(org_id))[1] FROM rm.invitations AS invitation
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE token_mac = wanted AND pipeline = 'read_models' AND active AND shown.version = rm_version
    HAVING count(*) = 1
$$;
CREATE FUNCTION app.orgs_of_domain(wanted text) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT org_id FROM rm.domains AS domain
    JOIN ops.checkpoints AS shown USING (org_id)
    WHERE domain.domain = wanted AND status = 'proven' AND pipeline = 'read_models' AND active
        AND shown.version = rm_version
    ORDER BY org_id LIMIT 100
$$;
CREATE FUNCTION app.orgs_with_mail(most integer) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT org_id FROM (
        SELECT org_id FROM ops.mails WHERE outcome IS NULL AND next_at <= now() ORDER BY next_at LIMIT most
    ) AS due
$$;
REVOKE ALL ON FUNCTION app.org_of_invitation, app.orgs_of_domain, app.orgs_with_mail FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.org_of_invitation, app.orgs_of_domain, app.orgs_with_mail TO app_ro;

GRANT CREATE ON SCHEMA app TO app_resolver;
RESET ROLE;
ALTER FUNCTION app.org_of_invitation OWNER TO app_resolver;
ALTER FUNCTION app.orgs_of_domain OWNER TO app_resolver;
ALTER FUNCTION app.orgs_with_mail OWNER TO app_resolver;
REVOKE CREATE ON SCHEMA app FROM app_resolver;
