-- Expand: data keys can be wrapped anew, so that the key that wraps them can be replaced. Programs from before do not.
SET LOCAL ROLE counterfoil_owner;

-- Puts `rewrapped` in the place of `wrapped` for those of these data keys that exist and are still wrapped so; answers how many. Never waits for an append,
-- which may be changing the same rows: what it holds is skipped, and for the caller to try again.
CREATE FUNCTION counterfoil.rewrap(ids uuid[], wrapped bytea[], rewrapped bytea[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    done bigint;
BEGIN
    -- 12 bytes of nonce, 32 of key, 16 of tag; 9 in front that name the wrapping key.
    IF EXISTS (SELECT FROM unnest(rewrap.rewrapped) AS r (wrapped) WHERE r.wrapped IS NULL OR length(r.wrapped) NOT IN (60, 69)) THEN
        RAISE EXCEPTION 'not a wrapped data key' USING ERRCODE = 'check_violation';
    END IF;
    WITH held AS (
        SELECT d.id, r.rewrapped FROM counterfoil.data_key AS d
            JOIN unnest(rewrap.ids, rewrap.wrapped, rewrap.rewrapped) AS r (id, wrapped, rewrapped) ON r.id = d.id AND r.wrapped = d.wrapped
            FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE counterfoil.data_key AS d SET wrapped = held.rewrapped FROM held WHERE d.id = held.id;
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END $$;

REVOKE EXECUTE ON FUNCTION counterfoil.rewrap FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counterfoil.rewrap TO counterfoil_writer;

RESET ROLE;
