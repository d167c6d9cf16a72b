-- Expand: sealed parts can be dropped when their time is over. Leaves, hashes, tree and checkpoints stay for ever. Programs from before do not prune.
SET LOCAL ROLE counterfoil_owner;

-- Drops sealed parts of the batch that begins at `pruned`: `was` is what is stored, `kept` what shall be (NULL: nothing), `keys` the data keys whose parts go.
-- False, and nothing done, if it is stored otherwise by now, if one of the keys or its owner is under legal hold, or if an append is changing one at
-- the moment: it waits for nobody, and holds its own few locks for as long as it takes. Nobody drops what is younger than 30 days.
CREATE FUNCTION counterfoil.prune(pruned bigint, was bytea, kept bytea, keys uuid[]) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    concerned uuid[] := keys || ARRAY(SELECT d.owner FROM counterfoil.data_key AS d WHERE d.id = ANY (keys) AND d.owner IS NOT NULL);
    since     timestamptz;
BEGIN
    IF kept IS NOT NULL AND length(kept) >= length(was) THEN
        RAISE EXCEPTION 'pruning adds nothing' USING ERRCODE = 'check_violation';
    END IF;
    -- The first leaf, behind its length in 16 bits, big-endian: canonical JSON.
    SELECT (convert_from(substr(b.leaves, 3, get_byte(b.leaves, 0) * 256 + get_byte(b.leaves, 1)), 'UTF8')::jsonb ->> 'time')::timestamptz
        INTO since FROM counterfoil.batch AS b WHERE b.first = pruned;
    IF since IS NULL OR since > clock_timestamp() - interval '30 days' THEN
        RAISE EXCEPTION 'the batch at % is too young to be pruned', pruned USING ERRCODE = 'restrict_violation';
    END IF;
    -- A hold is put on a row of a data key: with these locks none comes in between.
    IF (SELECT count(*) FROM (SELECT FROM counterfoil.data_key AS d WHERE d.id = ANY (concerned) FOR SHARE SKIP LOCKED) AS l)
        < (SELECT count(*) FROM counterfoil.data_key AS d WHERE d.id = ANY (concerned))
        OR EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.id = ANY (concerned) AND d.held) THEN
        RETURN false;
    END IF;
    DELETE FROM counterfoil.sealed_batch AS s WHERE s.first = pruned AND s.parts = was;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF kept IS NOT NULL THEN
        INSERT INTO counterfoil.sealed_batch (first, parts) VALUES (pruned, kept);
    END IF;
    RETURN true;
END $$;

REVOKE EXECUTE ON FUNCTION counterfoil.prune FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counterfoil.prune TO counterfoil_writer;

RESET ROLE;
