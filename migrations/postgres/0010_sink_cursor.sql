-- Expand: how far what is pushed elsewhere has come, and who pushes it. Not evidence: set back, entries are pushed again.
-- Programs from before know nothing of it; those that push ask for counterfoil.claim_sink when they open it.
SET LOCAL ROLE counterfoil_owner;

CREATE TABLE counterfoil.sink_cursor (
    sink     text        NOT NULL PRIMARY KEY,
    next     bigint      NOT NULL CHECK (next >= 0),
    holder   text        NOT NULL,
    until    timestamptz NOT NULL
) WITH (fillfactor = 50);
SELECT counterfoil.guard('counterfoil.sink_cursor', 'no_truncate', 'TRUNCATE', 'refuse');

-- Takes or prolongs a lease; NULL if another holds it. By this server's clock, so that nodes need not agree on the time.
CREATE FUNCTION counterfoil.claim_sink(claimed text, claimant text, initial bigint, lease interval) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO counterfoil.sink_cursor AS c (sink, next, holder, until)
        VALUES (claimed, initial, claimant, clock_timestamp() + lease)
        ON CONFLICT (sink) DO UPDATE SET holder = claimant, until = clock_timestamp() + lease
            WHERE c.holder = claimant OR c.until <= clock_timestamp()
        RETURNING c.next
$$;

-- Moves a cursor forward; false if the lease is another's.
CREATE FUNCTION counterfoil.advance_sink(advanced text, claimant text, reached bigint) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH moved AS (
        UPDATE counterfoil.sink_cursor AS c SET next = greatest(c.next, reached)
            WHERE c.sink = advanced AND c.holder = claimant RETURNING 1
    )
    SELECT EXISTS (SELECT FROM moved)
$$;

-- Gives a lease up.
CREATE FUNCTION counterfoil.release_sink(released text, claimant text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE counterfoil.sink_cursor AS c SET until = clock_timestamp() WHERE c.sink = released AND c.holder = claimant
$$;

GRANT SELECT ON counterfoil.sink_cursor TO counterfoil_writer;
REVOKE EXECUTE ON FUNCTION counterfoil.claim_sink, counterfoil.advance_sink, counterfoil.release_sink FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counterfoil.claim_sink, counterfoil.advance_sink, counterfoil.release_sink TO counterfoil_writer;

RESET ROLE;
