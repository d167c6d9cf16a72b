-- What auditors search by, legal holds and erasure, and leaner indexes.

SET LOCAL ROLE counterfoil_owner;

-- In which entries of a segment (65,536 leaf indices) a term stands: a Roaring bitmap of offsets. A projection: it follows the
-- log, and can be made again from it. Terms are digests (libs/audit-search).
CREATE TABLE counterfoil.posting (
    term    bytea NOT NULL CHECK (length(term) = 16),
    segment int   NOT NULL,
    offsets bytea NOT NULL,
    PRIMARY KEY (term, segment)
) WITH (fillfactor = 90);
-- Bitmaps are compact already.
ALTER TABLE counterfoil.posting ALTER COLUMN offsets SET STORAGE EXTERNAL;

-- How far the postings have come; revision counts their changes.
CREATE TABLE counterfoil.projection (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    size     bigint  NOT NULL,
    revision bigint  NOT NULL
) WITH (fillfactor = 10);
INSERT INTO counterfoil.projection (size, revision) VALUES (0, 0);

SELECT counterfoil.guard(t::regclass, 'no_truncate', 'TRUNCATE', 'refuse')
    FROM unnest(ARRAY['counterfoil.posting', 'counterfoil.projection']) AS t;

-- Puts postings in the place of those of the same term and segment, no offsets meaning none, if the projection is still the
-- expected one; false, and nothing done, if it is not.
CREATE FUNCTION counterfoil.project(
    expected_size bigint, expected_revision bigint, new_size bigint, terms bytea[], segments int[], offsets bytea[]
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
    UPDATE counterfoil.projection AS p SET size = new_size, revision = p.revision + 1
        WHERE p.size = expected_size AND p.revision = expected_revision;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM counterfoil.posting AS p USING unnest(project.terms, project.segments, project.offsets) AS c (term, segment, offsets)
        WHERE p.term = c.term AND p.segment = c.segment AND length(c.offsets) = 0;
    INSERT INTO counterfoil.posting AS p (term, segment, offsets)
        SELECT c.term, c.segment, c.offsets FROM unnest(project.terms, project.segments, project.offsets) AS c (term, segment, offsets)
        WHERE length(c.offsets) > 0 ORDER BY c.term, c.segment
    ON CONFLICT (term, segment) DO UPDATE SET offsets = excluded.offsets;
    RETURN true;
END $$;

-- A subject under legal hold is not erased.
ALTER TABLE counterfoil.data_key ADD COLUMN held boolean NOT NULL DEFAULT false;

-- Most keys are those of sessions without a subject, and have no lookup.
ALTER TABLE counterfoil.data_key DROP CONSTRAINT data_key_lookup_key;
CREATE UNIQUE INDEX data_key_lookup ON counterfoil.data_key (lookup) WHERE lookup IS NOT NULL;
-- Such a session has a data key of its own id, by which nobody asks for sessions.
DROP INDEX counterfoil.session_index_data_key;
CREATE INDEX session_index_data_key ON counterfoil.session_index (data_key, session_id) WHERE data_key <> session_id;

-- As in 0001, and besides: credentials may hold {"erased": key}, which deletes a data key and those it owns, and {"hold": key,
-- "held": true or false}. A key that cannot be erased refuses the batch.
CREATE OR REPLACE FUNCTION counterfoil.append(
    known_fence bigint, expected bigint, new_size bigint, new_time_us bigint, new_frontier bytea, new_checkpoint text,
    leaves bytea, parts bytea, hashes bytea,
    n_level smallint[], n_idx bigint[], n_hash bytea[],
    s_at int[], s_id uuid[], s_version bigint[],
    e_at int[], e_id uuid[],
    k_at int[], k_id uuid[], k_lookup bytea[], k_wrapped bytea[], k_seats int[], k_owner uuid[],
    t_at int[], t_id uuid[], t_cap bigint[],
    f_id uuid[],
    u_id uuid[], u_sum int[], u_low int[],
    w_id uuid[], w_owner uuid[],
    o_id uuid[], o_realm text[], o_key uuid[], o_kind text[], o_open boolean[],
    b_id uuid[], b_key uuid[],
    c_id uuid[],
    a_at int[], a_key bytea[], a_request bytea[], a_answer bytea[], a_expires_us bigint[],
    credentials jsonb,
    OUT status text, OUT fence bigint, OUT size bigint, OUT time_us bigint, OUT frontier bytea, OUT checkpoint text,
    OUT known_sessions uuid[], OUT known_versions bigint[], OUT known_keys uuid[], OUT known_seats int[],
    OUT known_lookups bytea[], OUT known_answers bytea[]
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    head   counterfoil.log_head;
    change jsonb;
BEGIN
    -- Anybody may set this for himself; an entry that is acknowledged must be on disk.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        RAISE EXCEPTION 'synchronous_commit is %: the log refuses to acknowledge what may be lost', current_setting('synchronous_commit')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    SELECT * INTO head FROM counterfoil.log_head FOR UPDATE;
    append.fence := head.fence;
    IF head.size <> expected THEN
        append.status := 'moved';
        append.size := head.size;
        append.time_us := head.time_us;
        append.frontier := head.frontier;
        append.checkpoint := head.checkpoint;
        RETURN;
    END IF;
    IF head.fence <> known_fence THEN
        append.status := 'fenced';
        RETURN;
    END IF;

    -- A writer that has gone mad stops here, and not at the auditor's.
    IF new_size <= expected OR length(hashes) <> 32 * (new_size - expected)
        OR length(new_frontier) <> 32 * bit_count(int8send(new_size)) THEN
        RAISE EXCEPTION 'the parts of the batch at % do not fit each other', expected USING ERRCODE = 'check_violation';
    END IF;

    -- Every claim holds exactly if each holds when all before it are taken to hold.
    append.status := 'committed';
    -- Versions follow on the newest one, and on each other.
    IF cardinality(s_id) > 0 AND EXISTS (
        SELECT FROM (SELECT c.id, c.version, row_number() OVER (PARTITION BY c.id ORDER BY c.at) AS nth
                     FROM unnest(s_at, s_id, s_version) AS c (at, id, version)) AS c
        WHERE c.version <> c.nth + coalesce((SELECT e.version FROM counterfoil.session_entry AS e
                                             WHERE e.session_id = c.id ORDER BY e.version DESC LIMIT 1), 0)
    ) THEN append.status := 'refused'; END IF;
    -- Data keys: those said to be new are; those said to exist do, if only since earlier in the batch.
    IF cardinality(k_id) > 0 AND (
        EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.id = ANY (k_id))
        OR EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.lookup = ANY (k_lookup))
        OR (SELECT count(*) <> count(DISTINCT c.id) OR count(c.lookup) <> count(DISTINCT c.lookup)
            FROM unnest(k_id, k_lookup) AS c (id, lookup))
    ) THEN append.status := 'refused'; END IF;
    IF cardinality(e_id) > 0 AND EXISTS (
        SELECT FROM unnest(e_at, e_id) AS c (at, id)
        WHERE NOT EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.id = c.id)
          AND NOT EXISTS (SELECT FROM unnest(k_at, k_id) AS n (at, id) WHERE n.id = c.id AND n.at < c.at)
    ) THEN append.status := 'refused'; END IF;
    -- Seats: all of the batch are freed before the first is taken.
    IF cardinality(t_id) > 0 AND EXISTS (
        SELECT FROM (SELECT c.id, c.cap, row_number() OVER (PARTITION BY c.id ORDER BY c.at) AS nth
                     FROM unnest(t_at, t_id, t_cap) AS c (at, id, cap)) AS c
        WHERE c.nth + coalesce((SELECT d.open_sessions FROM counterfoil.data_key AS d WHERE d.id = c.id), 0)
              - (SELECT count(*) FROM unnest(f_id) AS f (id) WHERE f.id = c.id) > c.cap
    ) THEN append.status := 'refused'; END IF;
    IF cardinality(a_key) > 0 AND (
        EXISTS (SELECT FROM counterfoil.kept_answer AS k WHERE k.key = ANY (a_key))
        OR (SELECT count(*) <> count(DISTINCT c) FROM unnest(a_key) AS c)
    ) THEN append.status := 'refused'; END IF;
    -- Erasures: of a key that exists, is not held, has no open session, and that nothing else in the batch touches.
    IF credentials IS NOT NULL AND EXISTS (
        SELECT FROM jsonb_array_elements(credentials) AS c WHERE c ? 'erased' AND (
            NOT EXISTS (SELECT FROM counterfoil.data_key AS d
                        WHERE d.id = (c ->> 'erased')::uuid AND NOT d.held AND d.open_sessions = 0)
            OR (c ->> 'erased')::uuid = ANY (e_id || k_id || t_id || f_id)
            OR (SELECT count(*) FROM jsonb_array_elements(credentials) AS o WHERE c ->> 'erased' IN (o ->> 'erased', o ->> 'hold')) > 1)
    ) THEN append.status := 'refused'; END IF;
    IF append.status = 'refused' THEN
        SELECT array_agg(e.session_id), array_agg(e.version) INTO known_sessions, known_versions
            FROM (SELECT e.session_id, max(e.version) AS version FROM counterfoil.session_entry AS e
                  WHERE e.session_id = ANY (s_id) GROUP BY e.session_id) AS e;
        SELECT array_agg(d.id), array_agg(d.open_sessions) INTO known_keys, known_seats
            FROM counterfoil.data_key AS d WHERE d.id = ANY (k_id || e_id || t_id || ARRAY(
                SELECT (c ->> 'erased')::uuid FROM jsonb_array_elements(coalesce(credentials, '[]')) AS c WHERE c ? 'erased'));
        SELECT array_agg(d.lookup) INTO known_lookups FROM counterfoil.data_key AS d WHERE d.lookup = ANY (k_lookup);
        SELECT array_agg(k.key) INTO known_answers FROM counterfoil.kept_answer AS k WHERE k.key = ANY (a_key);
        RETURN;
    END IF;

    -- Nothing stands against it.
    INSERT INTO counterfoil.batch (first, count, leaves, checkpoint) VALUES (expected, new_size - expected, leaves, new_checkpoint);
    IF parts IS NOT NULL THEN
        INSERT INTO counterfoil.sealed_batch (first, parts) VALUES (expected, parts);
    END IF;
    INSERT INTO counterfoil.leaf_hashes (first, count, hashes) VALUES (expected, new_size - expected, hashes);
    IF cardinality(n_idx) > 0 THEN
        INSERT INTO counterfoil.tree_node (level, idx, hash) SELECT * FROM unnest(n_level, n_idx, n_hash);
    END IF;
    IF cardinality(s_id) > 0 THEN
        INSERT INTO counterfoil.session_entry (session_id, version, leaf_index)
            SELECT c.id, c.version, expected + c.at FROM unnest(s_at, s_id, s_version) AS c (at, id, version);
    END IF;
    -- Before the keys of the batch are there: these bring seats and owner along.
    IF cardinality(u_id) > 0 THEN
        -- No number of seats goes below 0 on the way.
        UPDATE counterfoil.data_key AS d SET open_sessions = d.open_sessions + c.sum - least(0, d.open_sessions + c.low)
            FROM unnest(u_id, u_sum, u_low) AS c (id, sum, low) WHERE d.id = c.id;
    END IF;
    IF cardinality(w_id) > 0 THEN
        UPDATE counterfoil.data_key AS d SET owner = c.owner FROM unnest(w_id, w_owner) AS c (id, owner) WHERE d.id = c.id;
    END IF;
    IF cardinality(k_id) > 0 THEN
        INSERT INTO counterfoil.data_key (id, lookup, wrapped, open_sessions, owner)
            SELECT * FROM unnest(k_id, k_lookup, k_wrapped, k_seats, k_owner);
    END IF;
    IF cardinality(o_id) > 0 THEN
        INSERT INTO counterfoil.session_index (session_id, realm, data_key, kind, open)
            SELECT * FROM unnest(o_id, o_realm, o_key, o_kind, o_open)
            ON CONFLICT (session_id) DO UPDATE SET
                realm = excluded.realm, data_key = excluded.data_key, kind = excluded.kind, open = excluded.open;
    END IF;
    IF cardinality(b_id) > 0 THEN
        UPDATE counterfoil.session_index AS i SET data_key = c.key FROM unnest(b_id, b_key) AS c (id, key) WHERE i.session_id = c.id;
    END IF;
    IF cardinality(c_id) > 0 THEN
        UPDATE counterfoil.session_index AS i SET open = false WHERE i.session_id = ANY (c_id);
        -- Never waits for who marks uses just now, nor he for us: counterfoil.forget_expired finds what is skipped.
        UPDATE counterfoil.session_use AS u SET closed = true WHERE u.session_id = ANY (ARRAY(
            SELECT o.session_id FROM counterfoil.session_use AS o WHERE o.session_id = ANY (c_id) FOR UPDATE SKIP LOCKED));
    END IF;
    IF cardinality(a_key) > 0 THEN
        INSERT INTO counterfoil.kept_answer (key, request, answer, leaf_index, expires_us)
            SELECT c.key, c.request, c.answer, expected + c.at, c.expires_us
            FROM unnest(a_at, a_key, a_request, a_answer, a_expires_us) AS c (at, key, request, answer, expires_us);
    END IF;
    IF credentials IS NOT NULL THEN
        FOR change IN SELECT jsonb_array_elements(credentials) LOOP
            IF change ? 'revoked' THEN
                UPDATE counterfoil.credential AS c SET revoked_us = (change ->> 'revoked_us')::bigint
                    WHERE c.id = change ->> 'revoked' AND c.revoked_us IS NULL;
            ELSIF change ? 'erased' THEN
                DELETE FROM counterfoil.data_key AS d WHERE d.id = (change ->> 'erased')::uuid;
                DELETE FROM counterfoil.data_key AS d WHERE d.owner = (change ->> 'erased')::uuid;
            ELSIF change ? 'hold' THEN
                UPDATE counterfoil.data_key AS d SET held = (change ->> 'held')::boolean WHERE d.id = (change ->> 'hold')::uuid;
            ELSE
                INSERT INTO counterfoil.credential (id, digest, realm, roles, label, created_us, revoked_us)
                    VALUES (change ->> 'id', decode(change ->> 'digest', 'hex'), change ->> 'realm',
                            ARRAY(SELECT jsonb_array_elements_text(change -> 'roles')),
                            change ->> 'label', (change ->> 'created_us')::bigint, (change ->> 'revoked_us')::bigint)
                    ON CONFLICT (digest) DO NOTHING;
            END IF;
        END LOOP;
    END IF;
    UPDATE counterfoil.log_head AS h SET size = new_size, time_us = new_time_us, frontier = new_frontier, checkpoint = new_checkpoint;
END $$;

UPDATE counterfoil.settings SET schema_version = 2;

REVOKE ALL ON FUNCTION counterfoil.project FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counterfoil.project TO counterfoil_writer;
GRANT SELECT ON counterfoil.posting, counterfoil.projection TO counterfoil_writer;

RESET ROLE;
