-- Expand: what was used once is not used again, on any node. Not evidence: a key is forgotten when its time is up.
-- Programs from before know nothing of it; those with SOAP consumers ask for counterfoil.claim_nonce when they start.
SET LOCAL ROLE counterfoil_owner;

CREATE TABLE counterfoil.nonce (
    key      bytea  NOT NULL PRIMARY KEY CHECK (length(key) = 32),
    until_us bigint NOT NULL
);
CREATE INDEX nonce_until ON counterfoil.nonce (until_us);
SELECT counterfoil.guard('counterfoil.nonce', 'no_truncate', 'TRUNCATE', 'refuse');

-- Whether this is the first claim of the key. The unique key arbitrates: of two at once the second waits for the first. Forgets a few
-- whose time is up, two for each that comes, so that the table does not grow; without waiting for whoever does the same.
CREATE FUNCTION counterfoil.claim_nonce(claimed bytea, now_us bigint, claimed_until_us bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM counterfoil.nonce AS n WHERE n.key = ANY (ARRAY(
        SELECT o.key FROM counterfoil.nonce AS o WHERE o.until_us <= now_us ORDER BY o.until_us LIMIT 2 FOR UPDATE SKIP LOCKED));
    INSERT INTO counterfoil.nonce AS n (key, until_us) VALUES (claimed, claimed_until_us)
        ON CONFLICT (key) DO UPDATE SET until_us = excluded.until_us WHERE n.until_us <= now_us;
    RETURN FOUND;
END $$;

REVOKE EXECUTE ON FUNCTION counterfoil.claim_nonce FROM PUBLIC;
GRANT SELECT ON counterfoil.nonce TO counterfoil_writer;
GRANT EXECUTE ON FUNCTION counterfoil.claim_nonce TO counterfoil_writer;

RESET ROLE;
