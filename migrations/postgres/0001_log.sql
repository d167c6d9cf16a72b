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
    -- Roles belong to the whole cluster: two databases may be migrated at once.
    PERFORM pg_advisory_xact_lock(hashtext('counterfoil roles'));
    FOREACH role IN ARRAY ARRAY['counterfoil_owner', 'counterfoil_writer', 'counterfoil_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;
    IF NOT pg_has_role(current_user, 'counterfoil_owner', 'MEMBER') THEN
        EXECUTE format('GRANT counterfoil_owner TO %I', current_user);
    END IF;
END $$;

CREATE SCHEMA counterfoil AUTHORIZATION counterfoil_owner;
SET LOCAL ROLE counterfoil_owner;

CREATE TABLE counterfoil.settings (
    one                 boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema_version      int     NOT NULL,
    entries_a_partition bigint  NOT NULL CHECK (entries_a_partition > 0)
);
INSERT INTO counterfoil.settings (schema_version, entries_a_partition) VALUES (1, 10000000);

-- Where the log ends. The one row is what appends lock, compare and set.
CREATE TABLE counterfoil.log_head (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    size       bigint  NOT NULL CHECK (size >= 0),
    time_us    bigint  NOT NULL,
    frontier   bytea   NOT NULL,
    checkpoint text
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

-- When sessions were last used.
CREATE TABLE counterfoil.session_use (
    session_id   uuid   NOT NULL PRIMARY KEY,
    last_seen_us bigint NOT NULL
) WITH (fillfactor = 70);

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

-- Guards one table or partition. Truncate triggers of a parent are not cloned to its partitions, and clones of row triggers
-- do not inherit ENABLE ALWAYS: each gets its own.
CREATE FUNCTION counterfoil.guard(guarded regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE is_partition boolean := (SELECT relispartition FROM pg_class WHERE oid = guarded);
BEGIN
    IF NOT is_partition THEN
        EXECUTE format('CREATE TRIGGER no_change BEFORE UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION counterfoil.refuse()', guarded);
    END IF;
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER no_change', guarded);
    EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION counterfoil.refuse()', guarded);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER no_truncate', guarded);
END $$;

SELECT counterfoil.guard('counterfoil.batch');
SELECT counterfoil.guard('counterfoil.leaf_hashes');
SELECT counterfoil.guard('counterfoil.tree_node');
SELECT counterfoil.guard('counterfoil.session_entry');
CREATE TRIGGER no_delete BEFORE DELETE ON counterfoil.log_head FOR EACH ROW EXECUTE FUNCTION counterfoil.refuse();
CREATE TRIGGER no_shrinking BEFORE UPDATE ON counterfoil.log_head FOR EACH ROW EXECUTE FUNCTION counterfoil.refuse_shrinking();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON counterfoil.log_head FOR EACH STATEMENT EXECUTE FUNCTION counterfoil.refuse();
ALTER TABLE counterfoil.log_head ENABLE ALWAYS TRIGGER no_delete;
ALTER TABLE counterfoil.log_head ENABLE ALWAYS TRIGGER no_shrinking;
ALTER TABLE counterfoil.log_head ENABLE ALWAYS TRIGGER no_truncate;

-- Makes room ahead: the leaf ranges of `size` and the one after, and the months from the last to the one after next.
CREATE FUNCTION counterfoil.prepare(size bigint, now_us bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    span   bigint := (SELECT entries_a_partition FROM counterfoil.settings);
    number bigint;
    month  timestamp;
    now    timestamp := to_timestamp(now_us / 1e6) AT TIME ZONE 'UTC';
    name   text;
    bound  text;
    lower_bound text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('counterfoil partitions'));
    FOR number IN SELECT generate_series(size / span, size / span + 1) LOOP
        IF to_regclass(format('counterfoil.batch_%s', number)) IS NULL THEN
            EXECUTE format('CREATE TABLE counterfoil.batch_%s PARTITION OF counterfoil.batch FOR VALUES FROM (%s) TO (%s)',
                number, number * span, (number + 1) * span);
            PERFORM counterfoil.guard(format('counterfoil.batch_%s', number)::regclass);
            EXECUTE format('CREATE TABLE counterfoil.sealed_batch_%s PARTITION OF counterfoil.sealed_batch FOR VALUES FROM (%s) TO (%s)',
                number, number * span, (number + 1) * span);
        END IF;
    END LOOP;
    FOR month IN SELECT generate_series(date_trunc('month', now) - interval '1 month', date_trunc('month', now) + interval '2 months', interval '1 month') LOOP
        name := 'session_entry_' || to_char(month, 'YYYYMM');
        IF to_regclass('counterfoil.' || name) IS NULL THEN
            -- A UUIDv7 begins with 48 bits of milliseconds (RFC 9562 section 5.7).
            bound := lpad(to_hex((extract(epoch FROM month + interval '1 month') * 1000)::bigint), 12, '0');
            bound := quote_literal(left(bound, 8) || '-' || right(bound, 4) || '-0000-0000-000000000000');
            SELECT max(pg_get_expr(relpartbound, pg_class.oid)) INTO lower_bound FROM pg_class
                WHERE oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'counterfoil.session_entry'::regclass);
            -- Each month begins where the one before ends; the first takes everything older.
            lower_bound := coalesce((regexp_match(lower_bound, 'TO \((.*)\)$'))[1], 'MINVALUE');
            IF lower_bound = 'MINVALUE' OR lower_bound < bound THEN
                EXECUTE format('CREATE TABLE counterfoil.%I PARTITION OF counterfoil.session_entry FOR VALUES FROM (%s) TO (%s)', name, lower_bound, bound);
                PERFORM counterfoil.guard(('counterfoil.' || name)::regclass);
            END IF;
        END IF;
    END LOOP;
END $$;

-- Appends a batch, whole or not at all. Every claim that libs/audit-log states for an append is weighed here, by whoever calls:
--   'committed'  done
--   'moved'      nothing done: the log has another size; here is its head
--   'claims'     nothing done: a claim does not hold (the caller may read which)
-- Arrays that begin with the same letter belong together; the first of each, `…_at`, is the position in the batch, from 0.
CREATE FUNCTION counterfoil.append(
    expected bigint, new_size bigint, new_time_us bigint, new_frontier bytea, new_checkpoint text,
    leaves bytea, parts bytea, hashes bytea,
    n_level smallint[], n_idx bigint[], n_hash bytea[],
    s_at int[], s_id uuid[], s_version bigint[],
    e_at int[], e_key uuid[],
    k_at int[], k_id uuid[], k_lookup bytea[], k_wrapped bytea[],
    t_key uuid[], t_cap int[],
    f_key uuid[],
    x_at int[], x_id uuid[], x_change text[], x_realm text[], x_key uuid[], x_kind text[],
    a_at int[], a_key bytea[], a_request bytea[], a_answer bytea[], a_expires_us bigint[],
    credentials jsonb,
    OUT status text, OUT size bigint, OUT time_us bigint, OUT frontier bytea, OUT checkpoint text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
    IF head.size <> expected THEN
        append.status := 'moved';
        append.size := head.size;
        append.time_us := head.time_us;
        append.frontier := head.frontier;
        append.checkpoint := head.checkpoint;
        RETURN;
    END IF;
    append.status := 'claims';
    -- Versions follow on the newest one, and on each other.
    IF cardinality(s_id) > 0 AND EXISTS (
        SELECT FROM (SELECT c.id, c.version, row_number() OVER (PARTITION BY c.id ORDER BY c.at) AS nth
                     FROM unnest(s_at, s_id, s_version) AS c (at, id, version)) AS c
        WHERE c.version <> c.nth + coalesce((SELECT e.version FROM counterfoil.session_entry AS e
                                             WHERE e.session_id = c.id ORDER BY e.version DESC LIMIT 1), 0)
    ) THEN RETURN; END IF;
    -- Data keys: those said to exist do, if only since earlier in the batch; those said to be new are.
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
    -- Seats: freed before they are taken. All fit exactly if the strictest cap of each key holds in the end.
    IF cardinality(t_key) > 0 AND EXISTS (
        SELECT FROM (SELECT c.key, min(c.cap) AS cap, count(*) AS taken FROM unnest(t_key, t_cap) AS c (key, cap) GROUP BY c.key) AS c
        WHERE c.taken + coalesce((SELECT d.open_sessions FROM counterfoil.data_key AS d WHERE d.id = c.key), 0)
              - (SELECT count(*) FROM unnest(f_key) AS f (key) WHERE f.key = c.key) > c.cap
    ) THEN RETURN; END IF;
    IF cardinality(a_key) > 0 AND (
        EXISTS (SELECT FROM counterfoil.kept_answer AS k WHERE k.key = ANY (a_key))
        OR (SELECT count(*) <> count(DISTINCT c) FROM unnest(a_key) AS c)
    ) THEN RETURN; END IF;

    -- Nothing stands against it.
    INSERT INTO counterfoil.batch (first, count, leaves, checkpoint) VALUES (expected, new_size - expected, leaves, new_checkpoint);
    INSERT INTO counterfoil.sealed_batch (first, parts) VALUES (expected, parts);
    INSERT INTO counterfoil.leaf_hashes (first, hashes) VALUES (expected, hashes);
    IF cardinality(n_idx) > 0 THEN
        INSERT INTO counterfoil.tree_node (level, idx, hash) SELECT * FROM unnest(n_level, n_idx, n_hash);
    END IF;
    IF cardinality(s_id) > 0 THEN
        INSERT INTO counterfoil.session_entry (session_id, version, leaf_index)
            SELECT c.id, c.version, expected + c.at FROM unnest(s_at, s_id, s_version) AS c (at, id, version);
    END IF;
    IF cardinality(k_id) > 0 THEN
        INSERT INTO counterfoil.data_key (id, lookup, wrapped)
            SELECT * FROM unnest(k_id, k_lookup, k_wrapped);
    END IF;
    IF cardinality(t_key) > 0 OR cardinality(f_key) > 0 THEN
        UPDATE counterfoil.data_key AS d SET open_sessions = greatest(0, d.open_sessions + c.change)
            FROM (SELECT u.key, sum(u.change)::int AS change
                  FROM (SELECT t AS key, 1 AS change FROM unnest(t_key) AS t UNION ALL SELECT f, -1 FROM unnest(f_key) AS f) AS u
                  GROUP BY u.key) AS c
            WHERE d.id = c.key;
    END IF;
    IF cardinality(x_id) > 0 THEN
        INSERT INTO counterfoil.session_index (session_id, realm, data_key, kind, open)
            SELECT c.id, c.realm, c.key, c.kind, true FROM unnest(x_id, x_change, x_realm, x_key, x_kind) AS c (id, change, realm, key, kind)
            WHERE c.change = 'opened';
        IF 'bound' = ANY (x_change) THEN
            UPDATE counterfoil.session_index AS i SET data_key = c.key
                FROM (SELECT DISTINCT ON (c.id) c.id, c.key FROM unnest(x_at, x_id, x_change, x_key) AS c (at, id, change, key)
                      WHERE c.change = 'bound' ORDER BY c.id, c.at DESC) AS c
                WHERE i.session_id = c.id;
            UPDATE counterfoil.data_key AS d SET owner = c.key
                FROM (SELECT DISTINCT ON (c.id) c.id, c.key FROM unnest(x_at, x_id, x_change, x_key) AS c (at, id, change, key)
                      WHERE c.change = 'bound' ORDER BY c.id, c.at DESC) AS c
                WHERE d.id = c.id;
        END IF;
        IF 'closed' = ANY (x_change) THEN
            UPDATE counterfoil.session_index AS i SET open = false
                FROM unnest(x_id, x_change) AS c (id, change) WHERE c.change = 'closed' AND i.session_id = c.id;
            DELETE FROM counterfoil.session_use AS u
                USING unnest(x_id, x_change) AS c (id, change) WHERE c.change = 'closed' AND u.session_id = c.id;
        END IF;
    END IF;
    IF cardinality(a_key) > 0 THEN
        INSERT INTO counterfoil.kept_answer (key, request, answer, leaf_index, expires_us)
            SELECT c.key, c.request, c.answer, expected + c.at, c.expires_us
            FROM unnest(a_at, a_key, a_request, a_answer, a_expires_us) AS c (at, key, request, answer, expires_us);
    END IF;
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
    UPDATE counterfoil.log_head SET size = new_size, time_us = new_time_us, frontier = new_frontier, checkpoint = new_checkpoint;
    append.status := 'committed';
END $$;

-- Waits until no append is running, and answers the leaves stored at `first`.
CREATE FUNCTION counterfoil.settled(first bigint) RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM counterfoil.log_head FOR UPDATE;
    RETURN (SELECT b.leaves FROM counterfoil.batch AS b WHERE b.first = settled.first);
END $$;

-- Notes when sessions were last used; never back, and not of closed ones.
CREATE FUNCTION counterfoil.mark_uses(ids uuid[], times_us bigint[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO counterfoil.session_use AS u (session_id, last_seen_us)
        SELECT c.id, max(c.time_us) FROM unnest(ids, times_us) AS c (id, time_us)
        WHERE NOT EXISTS (SELECT FROM counterfoil.session_index AS i WHERE i.session_id = c.id AND NOT i.open)
        GROUP BY c.id ORDER BY c.id
    ON CONFLICT (session_id) DO UPDATE SET last_seen_us = excluded.last_seen_us WHERE excluded.last_seen_us > u.last_seen_us
$$;

-- Forgets kept answers that have expired, a bounded number, without waiting for anybody.
CREATE FUNCTION counterfoil.forget_expired(now_us bigint, most bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
