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

-- A program opens the log if the version of the schema that it was written for is between serves_from and schema_version: a
-- migration that only adds raises the latter, one that takes away raises both (migrations/README.md). leaves_until and
-- months_until: how far there is room (see counterfoil.prepare).
CREATE TABLE counterfoil.settings (
    one                 boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema_version      int     NOT NULL,
    serves_from         int     NOT NULL CHECK (serves_from <= schema_version),
    entries_a_partition bigint  NOT NULL CHECK (entries_a_partition > 0),
    leaves_until        bigint  NOT NULL DEFAULT 0,
    months_until        timestamp
);
INSERT INTO counterfoil.settings (schema_version, serves_from, entries_a_partition) VALUES (1, 1, 10000000);

-- Where the log ends. The one row is what appends lock, compare and set. Room in its page, so that its updates stay in it.
-- fence: an append names the fence it knows. Raised when a batch was found not to be there, so that an attempt at it that is
-- still on its way cannot succeed any more.
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
-- Four times as fast as pglz for a batch of 32, and no larger; stored as they are they would double the WAL. A server that was
-- built without lz4 keeps its default.
DO $$ BEGIN
    ALTER TABLE counterfoil.batch ALTER COLUMN leaves SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;

-- Its sealed parts. Apart, because retention drops them; stored as they are, because ciphertext does not compress.
CREATE TABLE counterfoil.sealed_batch (
    first bigint NOT NULL PRIMARY KEY,
    parts bytea  NOT NULL
) PARTITION BY RANGE (first);
ALTER TABLE counterfoil.sealed_batch ALTER COLUMN parts SET STORAGE EXTERNAL;

-- Its leaf hashes, 32 bytes each: kept for ever.
CREATE TABLE counterfoil.leaf_hashes (
    first  bigint NOT NULL PRIMARY KEY,
    count  int    NOT NULL,
    hashes bytea  NOT NULL CHECK (length(hashes) = 32 * count)
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

-- When sessions were last used. Marks of closed ones are to be forgotten.
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
    roles      text[] NOT NULL,
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

-- Puts a trigger on a table, enabled always: session_replication_role = replica, which superusers may set, stops the others.
CREATE FUNCTION counterfoil.guard(guarded regclass, name text, event text, action text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A row trigger of a partition is a clone of its parent's. The clone does not inherit ENABLE ALWAYS.
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = guarded AND tgname = name) THEN
        EXECUTE format('CREATE TRIGGER %I BEFORE %s ON %s FOR EACH %s EXECUTE FUNCTION counterfoil.%I()',
            name, event, guarded, CASE event WHEN 'TRUNCATE' THEN 'STATEMENT' ELSE 'ROW' END, action);
    END IF;
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', guarded, name);
END $$;

-- Makes a partition. ATTACH, unlike CREATE … PARTITION OF, does not lock out those who read or append meanwhile.
CREATE FUNCTION counterfoil.make_partition(parent text, suffix text, low text, high text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name    text := parent || '_' || suffix;
    trigger text;
BEGIN
    EXECUTE format('CREATE TABLE counterfoil.%I (LIKE counterfoil.%I INCLUDING ALL)', name, parent);
    EXECUTE format('ALTER TABLE counterfoil.%I ATTACH PARTITION counterfoil.%I FOR VALUES FROM (%s) TO (%s)', parent, name, low, high);
    FOR trigger IN SELECT tgname FROM pg_trigger WHERE tgrelid = format('counterfoil.%I', name)::regclass AND NOT tgisinternal LOOP
        EXECUTE format('ALTER TABLE counterfoil.%I ENABLE ALWAYS TRIGGER %I', name, trigger);
    END LOOP;
    -- Truncate triggers are not cloned at all.
    PERFORM counterfoil.guard(format('counterfoil.%I', name)::regclass, 'no_truncate', 'TRUNCATE', 'refuse');
END $$;

SELECT counterfoil.guard(t::regclass, 'no_change', 'UPDATE OR DELETE', 'refuse')
    FROM unnest(ARRAY['counterfoil.batch', 'counterfoil.leaf_hashes', 'counterfoil.tree_node', 'counterfoil.session_entry']) AS t;
-- Retention may delete sealed parts.
SELECT counterfoil.guard('counterfoil.sealed_batch', 'no_change', 'UPDATE', 'refuse');
SELECT counterfoil.guard('counterfoil.log_head', 'no_delete', 'DELETE', 'refuse');
SELECT counterfoil.guard('counterfoil.log_head', 'no_shrinking', 'UPDATE', 'refuse_shrinking');
SELECT counterfoil.guard(oid::regclass, 'no_truncate', 'TRUNCATE', 'refuse')
    FROM pg_class WHERE relnamespace = 'counterfoil'::regnamespace AND relkind IN ('r', 'p');

-- Makes room ahead: leaf ranges up to a whole one behind `size`, and months up to the second after that of `now_us`. The size
-- is believed up to that of the log, the time for a month ahead: nobody can have ten thousand partitions made.
CREATE FUNCTION counterfoil.prepare(size bigint, now_us bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    room   counterfoil.settings;
    here   timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    wanted timestamp := date_trunc('month', greatest(here, least(to_timestamp(now_us / 1e6) AT TIME ZONE 'UTC', here + interval '1 month')))
                        + interval '3 months';
    leaves bigint := (SELECT least(prepare.size, h.size) FROM counterfoil.log_head AS h);
    until  timestamp;
    low    text;
    high   text;
BEGIN
    SELECT * INTO room FROM counterfoil.settings;
    IF room.leaves_until > leaves + room.entries_a_partition AND room.months_until >= wanted THEN
        RETURN;
    END IF;
    -- Who makes partitions locks this row; what another has made in the meantime is then seen.
    SELECT * INTO room FROM counterfoil.settings FOR UPDATE;
    WHILE room.leaves_until <= leaves + room.entries_a_partition LOOP
        low := room.leaves_until::text;
        room.leaves_until := room.leaves_until + room.entries_a_partition;
        high := room.leaves_until::text;
        PERFORM counterfoil.make_partition('batch', low, low, high);
        PERFORM counterfoil.make_partition('sealed_batch', low, low, high);
    END LOOP;
    WHILE room.months_until IS NULL OR room.months_until < wanted LOOP
        -- The first takes everything up to the end of the last month.
        until := coalesce(room.months_until + interval '1 month', date_trunc('month', here));
        low := coalesce(counterfoil.first_id(room.months_until), 'MINVALUE');
        high := counterfoil.first_id(until);
        PERFORM counterfoil.make_partition('session_entry', to_char(until - interval '1 month', 'YYYYMM'), low, high);
        room.months_until := until;
    END LOOP;
    UPDATE counterfoil.settings AS s SET leaves_until = room.leaves_until, months_until = room.months_until;
END $$;

-- The least id made at a time, quoted: a UUIDv7 begins with 48 bits of milliseconds (RFC 9562 section 5.7).
CREATE FUNCTION counterfoil.first_id(at timestamp) RETURNS text LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_literal(regexp_replace(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0'),
        '^(.{8})(.{4})$', '\1-\2-0000-0000-000000000000'))
$$;

-- Appends a batch, whole or not at all. Every claim that libs/audit-log states for an append is weighed here, by whoever calls:
--   'committed'  done
--   'moved'      nothing done: the log has another size; here is its head
--   'fenced'     nothing done: the fence is another; here it is
--   'refused'    nothing done: a claim does not hold; here is what is known of all that is claimed (libs/audit-log's refusals()
--                tells which)
-- Arrays that begin with the same letter belong together; …_at is the position in the batch, from 0. What claims come to is
-- folded by the caller to at most one change a row: claims are weighed as they were made, changes are applied as folded.
--   s  versions of sessions        e  keys said to exist            k  new keys, with the seats taken of them in this batch
--   t  seats taken                 f  seats freed                   u  seats of keys: sum of changes, lowest sum on the way
--   w  keys that get an owner      o  sessions opened               b  sessions bound to another key
--   c  sessions closed             a  answers kept                  n  tree nodes
-- Plans are made once (generic): an append is some twenty small statements, and planning would cost more than running.
CREATE FUNCTION counterfoil.append(
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
    IF append.status = 'refused' THEN
        SELECT array_agg(e.session_id), array_agg(e.version) INTO known_sessions, known_versions
            FROM (SELECT e.session_id, max(e.version) AS version FROM counterfoil.session_entry AS e
                  WHERE e.session_id = ANY (s_id) GROUP BY e.session_id) AS e;
        SELECT array_agg(d.id), array_agg(d.open_sessions) INTO known_keys, known_seats
            FROM counterfoil.data_key AS d WHERE d.id = ANY (k_id || e_id || t_id);
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

-- Waits until no append is running, and answers whether these leaves are stored at `expected`. If not, no attempt to put them
-- there that was sent before can succeed any more.
CREATE FUNCTION counterfoil.lock_head(expected bigint, leaves bytea) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE head counterfoil.log_head;
BEGIN
    SELECT * INTO head FROM counterfoil.log_head FOR UPDATE;
    IF EXISTS (SELECT FROM counterfoil.batch AS b WHERE b.first = expected AND b.leaves = lock_head.leaves) THEN
        RETURN true;
    END IF;
    -- The log never shrinks: behind its end the size alone refuses.
    IF head.size <= expected THEN
        UPDATE counterfoil.log_head AS h SET fence = h.fence + 1;
    END IF;
    RETURN false;
END $$;

-- Notes when sessions were last used; never moves a time back.
CREATE FUNCTION counterfoil.mark_uses(ids uuid[], times_us bigint[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    INSERT INTO counterfoil.session_use AS u (session_id, last_seen_us, closed)
        SELECT c.id, c.time_us, coalesce((SELECT NOT i.open FROM counterfoil.session_index AS i WHERE i.session_id = c.id), false)
        FROM (SELECT c.id, max(c.time_us) AS time_us FROM unnest(ids, times_us) AS c (id, time_us) GROUP BY c.id) AS c
        -- In one order, so that two of these never wait for each other.
        ORDER BY c.id
    ON CONFLICT (session_id) DO UPDATE SET last_seen_us = excluded.last_seen_us WHERE excluded.last_seen_us > u.last_seen_us
$$;

-- Forgets kept answers that have expired and marks of closed sessions, a bounded number, without waiting for anybody.
-- Answers how many answers it forgot. A mark that was written while its session closed does not know that it is closed. Such
-- marks come to lie among the oldest, so that is where a few more are looked at.
CREATE FUNCTION counterfoil.forget_expired(now_us bigint, most bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    DELETE FROM counterfoil.session_use AS u WHERE u.session_id = ANY (ARRAY(
        SELECT c.session_id FROM counterfoil.session_use AS c WHERE c.closed LIMIT most FOR UPDATE SKIP LOCKED));
    DELETE FROM counterfoil.session_use AS u WHERE u.session_id = ANY (ARRAY(
        SELECT o.session_id FROM (SELECT c.session_id FROM counterfoil.session_use AS c ORDER BY c.session_id LIMIT least(most, 500)) AS c
        JOIN counterfoil.session_use AS o ON o.session_id = c.session_id
        WHERE EXISTS (SELECT FROM counterfoil.session_index AS i WHERE i.session_id = o.session_id AND NOT i.open)
        FOR UPDATE OF o SKIP LOCKED));
    WITH forgotten AS (
        DELETE FROM counterfoil.kept_answer AS k WHERE k.key = ANY (ARRAY(
            SELECT e.key FROM counterfoil.kept_answer AS e
            WHERE e.expires_us < now_us ORDER BY e.expires_us LIMIT most FOR UPDATE SKIP LOCKED))
        RETURNING 1
    )
    SELECT count(*) FROM forgotten
$$;

SELECT counterfoil.prepare(0, (extract(epoch FROM now()) * 1000000)::bigint);

-- Who may do what.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA counterfoil FROM PUBLIC;
GRANT USAGE ON SCHEMA counterfoil TO counterfoil_writer, counterfoil_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA counterfoil TO counterfoil_writer;
GRANT SELECT ON counterfoil.log_head, counterfoil.batch, counterfoil.sealed_batch, counterfoil.leaf_hashes, counterfoil.tree_node,
    counterfoil.session_entry, counterfoil.settings TO counterfoil_auditor;
GRANT EXECUTE ON FUNCTION counterfoil.append, counterfoil.lock_head, counterfoil.mark_uses, counterfoil.forget_expired,
    counterfoil.prepare TO counterfoil_writer;

RESET ROLE;
