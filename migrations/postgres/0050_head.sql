-- Expand: appends cost the database half as much, and no more while somebody reads for long. Programs from before call counterfoil.append as they did.
SET LOCAL ROLE counterfoil_owner;

-- Some of this needs a table to itself for a moment, and whoever asks after us waits with us: rather not at all than behind a backup of an hour.
SET LOCAL lock_timeout = '1s';

-- Where the log ends is what stands in its last batch. It was a row that each append changed: as long as somebody reads (a backup, say) no version of a row can
-- go that he may still see, and to find the newest of some hundred thousand took longer than the append. NULL: the batch is from before.
ALTER TABLE counterfoil.leaf_hashes ADD COLUMN time_us bigint, ADD COLUMN frontier bytea;

-- What is left of the row: the lock that appends meet at, the fence, and where the log ended when its last batch came to be from before.
ALTER TABLE counterfoil.log_head RENAME TO head_lock;
CREATE VIEW counterfoil.log_head AS
    SELECT k.one, coalesce(l.first + l.count, k.size) AS size, coalesce(l.time_us, k.time_us) AS time_us, coalesce(l.frontier, k.frontier) AS frontier,
           CASE WHEN l.first IS NULL THEN k.checkpoint ELSE (SELECT b.checkpoint FROM counterfoil.batch AS b WHERE b.first = l.first) END AS checkpoint,
           k.fence
    FROM counterfoil.head_lock AS k
    LEFT JOIN (SELECT h.first, h.count, h.time_us, h.frontier FROM counterfoil.leaf_hashes AS h ORDER BY h.first DESC LIMIT 1) AS l
        ON l.frontier IS NOT NULL;
GRANT SELECT ON counterfoil.log_head TO counterfoil_writer, counterfoil_auditor;

-- So of the row nothing changes any more but the fence, which rises.
CREATE FUNCTION counterfoil.refuse_but_fence() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.fence < OLD.fence
        OR (NEW.size, NEW.time_us, NEW.frontier, NEW.checkpoint) IS DISTINCT FROM (OLD.size, OLD.time_us, OLD.frontier, OLD.checkpoint) THEN
        RAISE EXCEPTION 'nothing but the fence changes, and only upwards' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
REVOKE EXECUTE ON FUNCTION counterfoil.refuse_but_fence FROM PUBLIC;
SELECT counterfoil.guard('counterfoil.head_lock', 'no_change', 'UPDATE', 'refuse_but_fence');
DROP TRIGGER no_shrinking ON counterfoil.head_lock;
DROP FUNCTION counterfoil.refuse_shrinking();

-- A batch of usual size stays in its row: what is put into chunks elsewhere costs an insert and an index entry for each 2 KB, a fifth of an append.
-- Leaves are compressed all the same, from 2 KB on.
ALTER TABLE counterfoil.batch ALTER COLUMN leaves SET STORAGE MAIN;
ALTER TABLE counterfoil.leaf_hashes SET (toast_tuple_target = 8160);
DO $$
DECLARE part regclass;
BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'counterfoil.sealed_batch'::regclass LOOP
        EXECUTE format('ALTER TABLE %s SET (toast_tuple_target = 8160)', part);
    END LOOP;
END $$;

-- As in 0001, and with room for sealed parts in their row.
CREATE OR REPLACE FUNCTION counterfoil.make_partition(parent text, suffix text, low text, high text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name    text := parent || '_' || suffix;
    trigger text;
BEGIN
    EXECUTE format('CREATE TABLE counterfoil.%I (LIKE counterfoil.%I INCLUDING ALL)', name, parent);
    IF parent = 'sealed_batch' THEN
        EXECUTE format('ALTER TABLE counterfoil.%I SET (toast_tuple_target = 8160)', name);
    END IF;
    EXECUTE format('ALTER TABLE counterfoil.%I ATTACH PARTITION counterfoil.%I FOR VALUES FROM (%s) TO (%s)', parent, name, low, high);
    FOR trigger IN SELECT tgname FROM pg_trigger WHERE tgrelid = format('counterfoil.%I', name)::regclass AND NOT tgisinternal LOOP
        EXECUTE format('ALTER TABLE counterfoil.%I ENABLE ALWAYS TRIGGER %I', name, trigger);
    END LOOP;
    -- Truncate triggers are not cloned at all.
    PERFORM counterfoil.guard(format('counterfoil.%I', name)::regclass, 'no_truncate', 'TRUNCATE', 'refuse');
END $$;

-- Appends a batch, whole or not at all. Every claim that libs/audit-log states for an append is weighed here, by whoever calls:
--   'committed'  done
--   'moved'      nothing done: the log has another size; here is its head
--   'fenced'     nothing done: the fence is another; here it is
--   'refused'    nothing done: a claim does not hold; here is what is known of all that is claimed (libs/audit-log's refusals()
--                tells which)
-- A claim that something is new is one that a unique index weighs anyway. Unless `careful`, it is left to that: then a claim that does not hold breaks off the
-- whole with unique_violation, and the same is to be asked again with care, which tells what stands against it.
-- Arrays that begin with the same letter belong together; …_at is the position in the batch, from 0. What claims come to is
-- folded by the caller to at most one change a row: claims are weighed as they were made, changes are applied as folded.
--   s  versions of sessions        e  keys said to exist            k  new keys, with the seats taken of them in this batch
--   t  seats taken                 f  seats freed                   u  seats of keys: sum of changes, lowest sum on the way
--   w  keys that get an owner      o  sessions opened               b  sessions bound to another key
--   c  sessions closed             a  answers kept                  n  tree nodes
-- credentials may hold {"erased": key}, which deletes a data key and those it owns, and {"hold": key, "held": true or false}, besides credentials added and revoked.
-- Who calls it often sets plan_cache_mode = force_generic_plan, enable_seqscan = off and jit = off for his session: an append is some ten small statements, and planning would
-- cost more than running. (Set here, that would be done and undone for each append.)
CREATE FUNCTION counterfoil.append_batch(
    careful boolean,
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
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    here   bigint;
    since  bigint;
    change jsonb;
BEGIN
    -- Anybody may set this for himself; an entry that is acknowledged must be on disk.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        RAISE EXCEPTION 'synchronous_commit is %: the log refuses to acknowledge what may be lost', current_setting('synchronous_commit')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- Behind this lock nobody but us appends; what was appended before is seen by the next statement.
    SELECT k.fence INTO append_batch.fence FROM counterfoil.head_lock AS k FOR UPDATE;
    SELECT h.size, h.time_us INTO here, since FROM counterfoil.log_head AS h;
    IF here <> expected THEN
        append_batch.status := 'moved';
        SELECT h.size, h.time_us, h.frontier, h.checkpoint INTO append_batch.size, append_batch.time_us, append_batch.frontier, append_batch.checkpoint
            FROM counterfoil.log_head AS h;
        RETURN;
    END IF;
    IF append_batch.fence <> known_fence THEN
        append_batch.status := 'fenced';
        RETURN;
    END IF;

    -- A writer that has gone mad stops here, and not at the auditor's.
    IF new_size <= expected OR new_time_us < since OR length(hashes) <> 32 * (new_size - expected)
        OR length(new_frontier) <> 32 * bit_count(int8send(new_size)) THEN
        RAISE EXCEPTION 'the parts of the batch at % do not fit each other', expected USING ERRCODE = 'check_violation';
    END IF;

    append_batch.status := 'committed';
    -- What must be there is looked for; what must not, the indexes find. (Both as subqueries that no plan makes a join of: one index scan for each.) What is there
    -- only since earlier in the batch is not found, and looked at with care.
    careful := careful
        OR EXISTS (SELECT FROM unnest(s_id, s_version) AS c (id, version) WHERE c.version <> 1
                   AND (SELECT e.version FROM counterfoil.session_entry AS e WHERE e.session_id = c.id AND e.version = c.version - 1) IS NULL)
        OR EXISTS (SELECT FROM unnest(e_id) AS c (id) WHERE (SELECT d.id FROM counterfoil.data_key AS d WHERE d.id = c.id) IS NULL);
    -- Every claim holds exactly if each holds when all before it are taken to hold.
    IF careful THEN
        -- Versions follow on the newest one, and on each other.
        IF cardinality(s_id) > 0 AND EXISTS (
            SELECT FROM (SELECT c.id, c.version, row_number() OVER (PARTITION BY c.id ORDER BY c.at) AS nth
                         FROM unnest(s_at, s_id, s_version) AS c (at, id, version)) AS c
            WHERE c.version <> c.nth + coalesce((SELECT e.version FROM counterfoil.session_entry AS e
                                                 WHERE e.session_id = c.id ORDER BY e.version DESC LIMIT 1), 0)
        ) THEN append_batch.status := 'refused'; END IF;
        -- Data keys: those said to be new are; those said to exist do, if only since earlier in the batch.
        IF cardinality(k_id) > 0 AND (
            EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.id = ANY (k_id))
            OR EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.lookup = ANY (k_lookup))
            OR (SELECT count(*) <> count(DISTINCT c.id) OR count(c.lookup) <> count(DISTINCT c.lookup)
                FROM unnest(k_id, k_lookup) AS c (id, lookup))
        ) THEN append_batch.status := 'refused'; END IF;
        IF cardinality(e_id) > 0 AND EXISTS (
            SELECT FROM unnest(e_at, e_id) AS c (at, id)
            WHERE NOT EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.id = c.id)
              AND NOT EXISTS (SELECT FROM unnest(k_at, k_id) AS n (at, id) WHERE n.id = c.id AND n.at < c.at)
        ) THEN append_batch.status := 'refused'; END IF;
        IF cardinality(a_key) > 0 AND (
            EXISTS (SELECT FROM counterfoil.kept_answer AS k WHERE k.key = ANY (a_key))
            OR (SELECT count(*) <> count(DISTINCT c) FROM unnest(a_key) AS c)
        ) THEN append_batch.status := 'refused'; END IF;
    END IF;
    -- Seats: all of the batch are freed before the first is taken.
    IF cardinality(t_id) > 0 AND EXISTS (
        SELECT FROM (SELECT c.id, c.cap, row_number() OVER (PARTITION BY c.id ORDER BY c.at) AS nth
                     FROM unnest(t_at, t_id, t_cap) AS c (at, id, cap)) AS c
        WHERE c.nth + coalesce((SELECT d.open_sessions FROM counterfoil.data_key AS d WHERE d.id = c.id), 0)
              - (SELECT count(*) FROM unnest(f_id) AS f (id) WHERE f.id = c.id) > c.cap
    ) THEN append_batch.status := 'refused'; END IF;
    -- Erasures: of a key that exists, is not held, has no open session, and that nothing else in the batch touches.
    IF credentials IS NOT NULL AND EXISTS (
        SELECT FROM jsonb_array_elements(credentials) AS c WHERE c ? 'erased' AND (
            NOT EXISTS (SELECT FROM counterfoil.data_key AS d
                        WHERE d.id = (c ->> 'erased')::uuid AND NOT d.held AND d.open_sessions = 0)
            OR (c ->> 'erased')::uuid = ANY (e_id || k_id || t_id || f_id)
            OR (SELECT count(*) FROM jsonb_array_elements(credentials) AS o WHERE c ->> 'erased' IN (o ->> 'erased', o ->> 'hold')) > 1)
    ) THEN append_batch.status := 'refused'; END IF;
    IF append_batch.status = 'refused' THEN
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
    INSERT INTO counterfoil.leaf_hashes (first, count, hashes, time_us, frontier)
        VALUES (expected, new_size - expected, hashes, new_time_us, new_frontier);
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
    IF cardinality(o_id) > 0 AND careful THEN
        INSERT INTO counterfoil.session_index (session_id, realm, data_key, kind, open)
            SELECT * FROM unnest(o_id, o_realm, o_key, o_kind, o_open)
            ON CONFLICT (session_id) DO UPDATE SET
                realm = excluded.realm, data_key = excluded.data_key, kind = excluded.kind, open = excluded.open;
    ELSIF cardinality(o_id) > 0 THEN
        INSERT INTO counterfoil.session_index (session_id, realm, data_key, kind, open)
            SELECT * FROM unnest(o_id, o_realm, o_key, o_kind, o_open);
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
END $$;

-- For programs from before.
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
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_variable
BEGIN
    SELECT a.* INTO append.status, append.fence, append.size, append.time_us, append.frontier, append.checkpoint,
            append.known_sessions, append.known_versions, append.known_keys, append.known_seats, append.known_lookups, append.known_answers
        FROM counterfoil.append_batch(true,
        known_fence, expected, new_size, new_time_us, new_frontier, new_checkpoint, leaves, parts, hashes, n_level, n_idx, n_hash, s_at, s_id,
        s_version, e_at, e_id, k_at, k_id, k_lookup, k_wrapped, k_seats, k_owner, t_at, t_id, t_cap, f_id, u_id, u_sum, u_low, w_id, w_owner, o_id,
        o_realm, o_key, o_kind, o_open, b_id, b_key, c_id, a_at, a_key, a_request, a_answer, a_expires_us, credentials) AS a;
END $$;

-- As in 0001, with the head where it is now.
CREATE OR REPLACE FUNCTION counterfoil.lock_head(expected bigint, leaves bytea) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM counterfoil.head_lock FOR UPDATE;
    IF EXISTS (SELECT FROM counterfoil.batch AS b WHERE b.first = expected AND b.leaves = lock_head.leaves) THEN
        RETURN true;
    END IF;
    -- The log never shrinks: behind its end the size alone refuses.
    IF (SELECT h.size FROM counterfoil.log_head AS h) <= expected THEN
        UPDATE counterfoil.head_lock AS k SET fence = k.fence + 1;
    END IF;
    RETURN false;
END $$;

-- As in 0040, with the head where it is now.
CREATE OR REPLACE FUNCTION counterfoil.take_head(
    OUT fence bigint, OUT size bigint, OUT time_us bigint, OUT frontier bytea, OUT checkpoint text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', '500', true);
    LOCK TABLE counterfoil.turn IN EXCLUSIVE MODE;
    -- Appends without a turn lock the row alone. Behind this nobody but us changes what it guards.
    PERFORM FROM counterfoil.head_lock FOR UPDATE;
    SELECT h.fence, h.size, h.time_us, h.frontier, h.checkpoint
        INTO take_head.fence, take_head.size, take_head.time_us, take_head.frontier, take_head.checkpoint FROM counterfoil.log_head AS h;
END $$;

UPDATE counterfoil.settings SET schema_version = 3;

REVOKE EXECUTE ON FUNCTION counterfoil.append_batch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counterfoil.append_batch TO counterfoil_writer;

RESET ROLE;
