-- The log in PostgreSQL (DESIGN section 5). Run by `counterfoil migrate`, as a role that may create schemas and roles.
--
-- Three roles, none of which can log in; operators grant them to roles that can:
--   counterfoil_owner    owns everything, used by migrations only
--   counterfoil_writer   the service: SELECT, and EXECUTE on the functions below; no right on any table but to read it
--   counterfoil_auditor  SELECT on what is evidence
--
-- Times are microseconds since 1970. What is the log for ever (batch, leaf_hashes, tree_node, session_entry) only grows:
-- triggers, ENABLE ALWAYS, refuse everything else, to the owner and to superusers too, as long as these do not drop them.

DO $$
DECLARE role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['counterfoil_owner', 'counterfoil_writer', 'counterfoil_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION
                -- Roles belong to the whole cluster, and another of its databases may be migrated just now. (An advisory lock
                -- would not help: each database has its own.)
                WHEN duplicate_object OR unique_violation THEN NULL;
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'the role % does not exist and % may not create it', role, current_user
                        USING ERRCODE = 'insufficient_privilege',
                              HINT = format('As a superuser: CREATE ROLE %I NOLOGIN; GRANT counterfoil_owner TO %I;', role, current_user);
            END;
        END IF;
    END LOOP;
    -- A superuser is a member of everything, and is not made one by name.
    IF NOT pg_has_role(current_user, 'counterfoil_owner', 'MEMBER') THEN
        BEGIN
            EXECUTE format('GRANT counterfoil_owner TO %I', current_user);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE EXCEPTION '% is not a member of counterfoil_owner', current_user
                USING ERRCODE = 'insufficient_privilege', HINT = format('As a superuser: GRANT counterfoil_owner TO %I;', current_user);
        END;
    END IF;
END $$;

CREATE SCHEMA counterfoil AUTHORIZATION counterfoil_owner;
SET LOCAL ROLE counterfoil_owner;

-- A program opens the log if the version of the schema that it was written for is between these two: a migration that only
-- adds raises schema_version, one that takes away raises serves_from (migrations/README.md).
CREATE TABLE counterfoil.settings (
    one                 boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema_version      int     NOT NULL,
    serves_from         int     NOT NULL CHECK (serves_from <= schema_version),
    entries_a_partition bigint  NOT NULL CHECK (entries_a_partition > 0)
);
INSERT INTO counterfoil.settings (schema_version, serves_from, entries_a_partition) VALUES (1, 1, 10000000);

-- Where the log ends. The one row is what appends lock, compare and set. fence shuts out an append that is still on its way
-- when its writer asks what became of it: counterfoil.settled raises it, and an append must name it.
CREATE TABLE counterfoil.log_head (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    size       bigint  NOT NULL CHECK (size >= 0),
    time_us    bigint  NOT NULL,
    frontier   bytea   NOT NULL,
    checkpoint text,
    fence      bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO counterfoil.log_head (size, time_us, frontier, checkpoint) VALUES (0, 0, '', NULL);

-- A commit: its leaves as C2SP tlog-tiles entry bundle.
CREATE TABLE counterfoil.batch (
    first      bigint NOT NULL PRIMARY KEY,
    count      int    NOT NULL CHECK (count > 0),
    leaves     bytea  NOT NULL,
    checkpoint text   NOT NULL
) PARTITION BY RANGE (first);

-- Its sealed parts. Apart, because retention drops them; stored as they are, because ciphertext does not compress.
CREATE TABLE counterfoil.sealed_batch (
    first bigint NOT NULL PRIMARY KEY,
    parts bytea  NOT NULL
) PARTITION BY RANGE (first);
ALTER TABLE counterfoil.sealed_batch ALTER COLUMN parts SET STORAGE EXTERNAL;

-- Its leaf hashes, 32 bytes each: kept for ever.
CREATE TABLE counterfoil.leaf_hashes (
    first  bigint NOT NULL PRIMARY KEY,
    hashes bytea  NOT NULL
);
ALTER TABLE counterfoil.leaf_hashes ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- Inner nodes of the tree at levels 8, 16, …
CREATE TABLE counterfoil.tree_node (
    level smallint NOT NULL,
    idx   bigint   NOT NULL,
    hash  bytea    NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, idx)
);

-- Which entry made which version of which session. Its key arbitrates between writers; a session's id tells its month, so
-- that the key can hold across partitions.
CREATE TABLE counterfoil.session_entry (
    session_id uuid   NOT NULL,
    version    bigint NOT NULL CHECK (version > 0),
    leaf_index bigint NOT NULL,
    PRIMARY KEY (session_id, version)
) PARTITION BY RANGE (session_id);

-- What is kept beside the log.

-- Data keys, wrapped. Erasure deletes the row. open_sessions is what the cap of a subject is checked against.
CREATE TABLE counterfoil.data_key (
    id            uuid  NOT NULL PRIMARY KEY,
    lookup        bytea UNIQUE,
    wrapped       bytea NOT NULL,
    open_sessions int   NOT NULL DEFAULT 0 CHECK (open_sessions >= 0),
    owner         uuid
) WITH (fillfactor = 80);
CREATE INDEX data_key_owner ON counterfoil.data_key (owner) WHERE owner IS NOT NULL;

-- Which sessions there are; never in what state they are.
CREATE TABLE counterfoil.session_index (
    session_id uuid    NOT NULL PRIMARY KEY,
    realm      text    NOT NULL,
    data_key   uuid    NOT NULL,
    kind       text    NOT NULL,
    open       boolean NOT NULL
);
CREATE INDEX session_index_data_key ON counterfoil.session_index (data_key, session_id);
CREATE INDEX session_index_open ON counterfoil.session_index (realm, session_id) WHERE open;
CREATE INDEX session_index_closed ON counterfoil.session_index (realm, session_id) WHERE NOT open;

-- When sessions were last used; marks of closed sessions are to be forgotten.
CREATE TABLE counterfoil.session_use (
    session_id   uuid    NOT NULL PRIMARY KEY,
    last_seen_us bigint  NOT NULL,
    closed       boolean NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX session_use_closed ON counterfoil.session_use (session_id) WHERE closed;

-- Answers kept for repeated requests.
CREATE TABLE counterfoil.kept_answer (
    key        bytea  NOT NULL PRIMARY KEY,
    request    bytea  NOT NULL,
    answer     bytea  NOT NULL,
    leaf_index bigint NOT NULL,
    expires_us bigint NOT NULL
);
CREATE INDEX kept_answer_expires ON counterfoil.kept_answer (expires_us);

-- API keys: their digests, never the keys.
CREATE TABLE counterfoil.credential (
    seq        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id         text   NOT NULL,
    digest     bytea  NOT NULL UNIQUE,
    realm      text   NOT NULL,
    roles      text   NOT NULL,
    label      text   NOT NULL,
    created_us bigint NOT NULL,
    revoked_us bigint
);

-- The log only grows.

CREATE FUNCTION counterfoil.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % of % refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION counterfoil.refuse_shrinking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.size < OLD.size OR NEW.time_us < OLD.time_us THEN
        RAISE EXCEPTION 'the log never shrinks' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- Guards a table or a partition, before it is attached, against TRUNCATE. A parent's triggers do not reach its partitions.
CREATE FUNCTION counterfoil.guard_truncate(guarded regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION counterfoil.refuse()', guarded);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER no_truncate', guarded);
END $$;

-- Guards a table of the log against changes to its rows. Attached partitions get a clone of the trigger from their parent.
CREATE FUNCTION counterfoil.guard_rows(guarded regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER no_change BEFORE UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION counterfoil.refuse()', guarded);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER no_change', guarded);
END $$;

SELECT counterfoil.guard_rows(name) FROM unnest(ARRAY['counterfoil.batch', 'counterfoil.leaf_hashes', 'counterfoil.tree_node',
    'counterfoil.session_entry']::regclass[]) AS name;
-- Nothing is ever emptied as a whole, what is kept beside the log included.
SELECT counterfoil.guard_truncate(oid) FROM pg_class
    WHERE relnamespace = 'counterfoil'::regnamespace AND relkind IN ('r', 'p');
CREATE TRIGGER no_delete BEFORE DELETE ON counterfoil.log_head FOR EACH ROW EXECUTE FUNCTION counterfoil.refuse();
CREATE TRIGGER no_shrinking BEFORE UPDATE ON counterfoil.log_head FOR EACH ROW EXECUTE FUNCTION counterfoil.refuse_shrinking();
ALTER TABLE counterfoil.log_head ENABLE ALWAYS TRIGGER no_delete;
ALTER TABLE counterfoil.log_head ENABLE ALWAYS TRIGGER no_shrinking;

-- Where the last partition of a table ends; NULL if it has none. Bounds are digits, or UUIDs in one spelling.
CREATE FUNCTION counterfoil.last_bound(parent regclass) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT bound FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid,
        LATERAL (SELECT (regexp_match(pg_get_expr(relpartbound, inhrelid), 'TO \(''?([^'')]+)''?\)'))[1] AS bound) AS b
    WHERE inhparent = parent ORDER BY length(bound) DESC, bound COLLATE "C" DESC LIMIT 1
$$;

-- Makes a partition, guarded before the first row can reach it. Made apart and attached: CREATE TABLE … PARTITION OF locks out
-- everybody from the whole table, and an append would wait behind it for every long read.
CREATE FUNCTION counterfoil.add_partition(parent text, suffix text, lower_bound text, upper_bound text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := format('counterfoil.%I', parent || '_' || suffix);
BEGIN
    EXECUTE format('CREATE TABLE %s (LIKE counterfoil.%I INCLUDING ALL)', name, parent);
    PERFORM counterfoil.guard_truncate(name::regclass);
    EXECUTE format('ALTER TABLE counterfoil.%I ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', parent, name, lower_bound, upper_bound);
    -- Row triggers are cloned with the attachment; PostgreSQL before 15 does not clone that they are ENABLE ALWAYS.
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = name::regclass AND tgname = 'no_change') THEN
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER no_change', name);
    END IF;
END $$;

-- The least UUIDv7 of a time: it begins with 48 bits of milliseconds (RFC 9562 section 5.7).
CREATE FUNCTION counterfoil.least_id(at timestamp) RETURNS text LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('''%s-%s-0000-0000-000000000000''', left(hex, 8), right(hex, 4))
    FROM lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS hex
$$;

-- Makes room ahead: at least one range of leaves beyond the one the log has reached, and the months up to two after this one.
-- Each partition begins where the one before ends, the first month takes everything older. How far the log has come is read
-- here, and the clock of the caller is believed for a month at most: nobody can have ten thousand partitions made.
CREATE FUNCTION counterfoil.prepare(now_us bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    span   bigint;
    size   bigint;
    parent text;
    start  bigint;
    bound  text;
    here   timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    month  timestamp := date_trunc('month', greatest(here, least(to_timestamp(now_us / 1e6) AT TIME ZONE 'UTC', here + interval '1 month')));
    made   timestamp;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('counterfoil partitions'));
    SELECT s.entries_a_partition, h.size INTO span, size FROM counterfoil.settings AS s, counterfoil.log_head AS h;
    FOREACH parent IN ARRAY ARRAY['batch', 'sealed_batch'] LOOP
        start := coalesce(counterfoil.last_bound(format('counterfoil.%I', parent)::regclass)::bigint, 0);
        WHILE start <= size + span LOOP
            PERFORM counterfoil.add_partition(parent, start::text, start::text, (start + span)::text);
            start := start + span;
        END LOOP;
    END LOOP;
    bound := counterfoil.last_bound('counterfoil.session_entry'::regclass);
    IF bound IS NULL THEN
        made := date_trunc('month', here);
        PERFORM counterfoil.add_partition('session_entry', to_char(made - interval '1 month', 'YYYYMM'), 'MINVALUE', counterfoil.least_id(made));
    ELSE
        made := to_timestamp(('x0000' || replace(left(bound, 13), '-', ''))::bit(64)::bigint / 1e3) AT TIME ZONE 'UTC';
    END IF;
    WHILE made <= month + interval '2 months' LOOP
        PERFORM counterfoil.add_partition('session_entry', to_char(made, 'YYYYMM'), counterfoil.least_id(made), counterfoil.least_id(made + interval '1 month'));
        made := made + interval '1 month';
    END LOOP;
END $$;
SELECT counterfoil.prepare(0);

-- Appends a batch, whole or not at all. Every claim that libs/audit-log states for an append is weighed here, by whoever calls:
--   'committed'  done
--   'moved'      nothing done: the log has another size; here is its head
--   'fenced'     nothing done: the fence was raised since the caller last saw it; here it is, and the caller may try again
--   'claims'     nothing done: a claim does not hold (the caller may read which)
-- Arrays that begin with the same letter belong together; the first of each, `…_at`, is the position in the batch, from 0.
-- Statements are skipped where there is nothing for them: each costs as much as ten entries. Plans are made once for all
-- (plan_cache_mode), and not for the empty tables of the first day (enable_…): every lookup is one by an index.
CREATE FUNCTION counterfoil.append(
    expected bigint, known_fence bigint, new_size bigint, new_time_us bigint, new_frontier bytea, new_checkpoint text,
    leaves bytea, parts bytea, hashes bytea,
    n_level smallint[], n_idx bigint[], n_hash bytea[],
    s_at int[], s_id uuid[], s_version bigint[],
    e_at int[], e_key uuid[],
    k_at int[], k_id uuid[], k_lookup bytea[], k_wrapped bytea[], k_owner uuid[],
    t_at int[], t_key uuid[], t_cap int[],
    f_key uuid[],
    x_at int[], x_id uuid[], x_change text[], x_realm text[], x_key uuid[], x_kind text[],
    a_at int[], a_key bytea[], a_request bytea[], a_answer bytea[], a_expires_us bigint[],
    credentials jsonb,
    OUT status text, OUT size bigint, OUT time_us bigint, OUT frontier bytea, OUT checkpoint text, OUT fence bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
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
    IF head.size <> expected OR head.fence <> known_fence THEN
        append.status := CASE WHEN head.size <> expected THEN 'moved' ELSE 'fenced' END;
        append.size := head.size;
        append.time_us := head.time_us;
        append.frontier := head.frontier;
        append.checkpoint := head.checkpoint;
        append.fence := head.fence;
        RETURN;
    END IF;
    -- A writer that has gone mad stops here, and not at the auditor's.
    IF new_size <= expected OR length(hashes) <> 32 * (new_size - expected)
        OR length(new_frontier) <> 32 * bit_count(int8send(new_size)) THEN
        RAISE EXCEPTION 'the parts of the batch at % do not fit each other', expected USING ERRCODE = 'check_violation';
    END IF;
    append.status := 'claims';
    -- Versions follow on the newest one, and on each other.
    IF cardinality(s_id) > 0 AND EXISTS (
        SELECT FROM (SELECT c.id, c.version, row_number() OVER (PARTITION BY c.id ORDER BY c.at) AS nth
                     FROM unnest(s_at, s_id, s_version) AS c (at, id, version)) AS c
        WHERE c.version <> c.nth + coalesce((SELECT e.version FROM counterfoil.session_entry AS e
                                             WHERE e.session_id = c.id ORDER BY e.version DESC LIMIT 1), 0)
    ) THEN RETURN; END IF;
    -- Data keys: those said to be new are; those said to exist do, if only since earlier in the batch.
    IF cardinality(k_id) > 0 AND (
        EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.id = ANY (k_id))
        OR EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.lookup = ANY (k_lookup))
        OR (SELECT count(*) <> count(DISTINCT c.id) OR count(c.lookup) <> count(DISTINCT c.lookup)
            FROM unnest(k_id, k_lookup) AS c (id, lookup))
    ) THEN RETURN; END IF;
    IF cardinality(e_key) > 0 AND EXISTS (
        SELECT FROM unnest(e_at, e_key) AS c (at, key)
        WHERE NOT EXISTS (SELECT FROM counterfoil.data_key AS d WHERE d.id = c.key)
          AND NOT EXISTS (SELECT FROM unnest(k_at, k_id) AS n (at, id) WHERE n.id = c.key AND n.at < c.at)
    ) THEN RETURN; END IF;
    -- Seats: freed before they are taken, and each taken below its cap.
    IF cardinality(t_key) > 0 AND EXISTS (
        SELECT FROM (SELECT c.key, c.cap, row_number() OVER (PARTITION BY c.key ORDER BY c.at) AS nth
                     FROM unnest(t_at, t_key, t_cap) AS c (at, key, cap)) AS c
        WHERE c.nth + coalesce((SELECT d.open_sessions FROM counterfoil.data_key AS d WHERE d.id = c.key), 0)
              - cardinality(array_positions(f_key, c.key)) > c.cap
    ) THEN RETURN; END IF;
    IF cardinality(a_key) > 0 AND (
        EXISTS (SELECT FROM counterfoil.kept_answer AS k WHERE k.key = ANY (a_key))
        OR (SELECT count(*) <> count(DISTINCT c) FROM unnest(a_key) AS c)
    ) THEN RETURN; END IF;

    -- Nothing stands against it.
    INSERT INTO counterfoil.batch (first, count, leaves, checkpoint) VALUES (expected, new_size - expected, leaves, new_checkpoint);
    IF parts IS NOT NULL THEN
        INSERT INTO counterfoil.sealed_batch (first, parts) VALUES (expected, parts);
    END IF;
    INSERT INTO counterfoil.leaf_hashes (first, hashes) VALUES (expected, hashes);
    IF cardinality(n_idx) > 0 THEN
        INSERT INTO counterfoil.tree_node (level, idx, hash) SELECT * FROM unnest(n_level, n_idx, n_hash);
    END IF;
    IF cardinality(s_id) > 0 THEN
        INSERT INTO counterfoil.session_entry (session_id, version, leaf_index)
            SELECT c.id, c.version, expected + c.at FROM unnest(s_at, s_id, s_version) AS c (at, id, version);
    END IF;
    IF cardinality(k_id) > 0 THEN
        INSERT INTO counterfoil.data_key (id, lookup, wrapped, owner) SELECT * FROM unnest(k_id, k_lookup, k_wrapped, k_owner);
    END IF;
    IF cardinality(t_key) > 0 OR cardinality(f_key) > 0 THEN
        UPDATE counterfoil.data_key AS d SET open_sessions = greatest(0, d.open_sessions + c.change)
            FROM (SELECT u.key, sum(u.change)::int AS change
                  FROM (SELECT t AS key, 1 AS change FROM unnest(t_key) AS t UNION ALL SELECT f, -1 FROM unnest(f_key) AS f) AS u
                  GROUP BY u.key) AS c
            WHERE d.id = c.key;
    END IF;
    IF cardinality(x_id) > 0 THEN
        IF 'opened' = ANY (x_change) THEN
            INSERT INTO counterfoil.session_index (session_id, realm, data_key, kind, open)
                SELECT c.id, c.realm, c.key, c.kind, true FROM unnest(x_id, x_change, x_realm, x_key, x_kind) AS c (id, change, realm, key, kind)
                WHERE c.change = 'opened';
        END IF;
        IF 'bound' = ANY (x_change) THEN
            UPDATE counterfoil.session_index AS i SET data_key = c.key
                FROM (SELECT DISTINCT ON (c.id) c.id, c.key FROM unnest(x_at, x_id, x_change, x_key) AS c (at, id, change, key)
                      WHERE c.change = 'bound' ORDER BY c.id, c.at DESC) AS c
                WHERE i.session_id = c.id;
            -- The key of the session's anonymous time has the session's id: it becomes the subject's too.
            UPDATE counterfoil.data_key AS d SET owner = c.key
                FROM (SELECT DISTINCT ON (c.id) c.id, c.key FROM unnest(x_at, x_id, x_change, x_key) AS c (at, id, change, key)
                      WHERE c.change = 'bound' AND NOT EXISTS (SELECT FROM unnest(k_at, k_id) AS n (at, id) WHERE n.id = c.id AND n.at > c.at)
                      ORDER BY c.id, c.at DESC) AS c
                WHERE d.id = c.id;
        END IF;
        IF 'closed' = ANY (x_change) THEN
            UPDATE counterfoil.session_index AS i SET open = false
                FROM unnest(x_id, x_change) AS c (id, change) WHERE c.change = 'closed' AND i.session_id = c.id;
            UPDATE counterfoil.session_use AS u SET closed = true
                FROM unnest(x_id, x_change) AS c (id, change) WHERE c.change = 'closed' AND u.session_id = c.id;
        END IF;
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
            ELSE
                INSERT INTO counterfoil.credential (id, digest, realm, roles, label, created_us, revoked_us)
                    VALUES (change ->> 'id', decode(change ->> 'digest', 'hex'), change ->> 'realm', change ->> 'roles',
                            change ->> 'label', (change ->> 'created_us')::bigint, (change ->> 'revoked_us')::bigint)
                    ON CONFLICT (digest) DO NOTHING;
            END IF;
        END LOOP;
    END IF;
    UPDATE counterfoil.log_head SET size = new_size, time_us = new_time_us, frontier = new_frontier, checkpoint = new_checkpoint;
    append.status := 'committed';
END $$;

-- Waits until no append is running, and answers the leaves stored at `first`. Afterwards the answer is final: if the log has not
-- come past `first`, the fence is raised, and an append that is still on its way with the old one will find itself shut out.
CREATE FUNCTION counterfoil.settled(first bigint, OUT leaves bytea, OUT fence bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    head counterfoil.log_head;
BEGIN
    SELECT * INTO head FROM counterfoil.log_head FOR UPDATE;
    IF head.size <= settled.first THEN
        UPDATE counterfoil.log_head SET fence = fence + 1 RETURNING fence INTO settled.fence;
    ELSE
        settled.fence := head.fence;
        SELECT b.leaves INTO settled.leaves FROM counterfoil.batch AS b WHERE b.first = settled.first;
    END IF;
END $$;

-- Notes when sessions were last used; never back.
CREATE FUNCTION counterfoil.mark_uses(ids uuid[], times_us bigint[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO counterfoil.session_use AS u (session_id, last_seen_us, closed)
        SELECT c.id, max(c.time_us), coalesce((SELECT NOT i.open FROM counterfoil.session_index AS i WHERE i.session_id = c.id), false)
        FROM unnest(ids, times_us) AS c (id, time_us)
        -- In one order, so that two of these never wait for each other.
        GROUP BY c.id ORDER BY c.id
    ON CONFLICT (session_id) DO UPDATE SET last_seen_us = excluded.last_seen_us WHERE excluded.last_seen_us > u.last_seen_us
$$;

-- Forgets kept answers that have expired and marks of closed sessions, a bounded number of each, without waiting for anybody.
-- A mark that was written while its session closed does not know that it is closed. Such marks come to lie among the oldest,
-- so that is where a few more are looked at.
CREATE FUNCTION counterfoil.forget_expired(now_us bigint, most bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM counterfoil.session_use WHERE session_id IN (
        (SELECT u.session_id FROM counterfoil.session_use AS u WHERE u.closed LIMIT most FOR UPDATE SKIP LOCKED)
    );
    DELETE FROM counterfoil.session_use WHERE session_id IN (
        SELECT u.session_id FROM (SELECT o.session_id FROM counterfoil.session_use AS o ORDER BY o.session_id LIMIT least(most, 500)) AS u
        JOIN counterfoil.session_index AS i ON i.session_id = u.session_id WHERE NOT i.open
    );
    WITH expired AS (
        SELECT k.key FROM counterfoil.kept_answer AS k WHERE k.expires_us < now_us ORDER BY k.expires_us LIMIT most FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM counterfoil.kept_answer AS k USING expired WHERE k.key = expired.key RETURNING 1
    )
    SELECT count(*) FROM forgotten
$$;

-- Who may do what.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA counterfoil FROM PUBLIC;
GRANT USAGE ON SCHEMA counterfoil TO counterfoil_writer, counterfoil_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA counterfoil TO counterfoil_writer;
GRANT SELECT ON counterfoil.log_head, counterfoil.batch, counterfoil.leaf_hashes, counterfoil.tree_node, counterfoil.session_entry, counterfoil.settings
    TO counterfoil_auditor;
GRANT EXECUTE ON FUNCTION counterfoil.append, counterfoil.settled, counterfoil.mark_uses, counterfoil.forget_expired, counterfoil.prepare
    TO counterfoil_writer;

RESET ROLE;
