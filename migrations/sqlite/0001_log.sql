-- The log in SQLite. Same table names as migrations/postgres; no roles and no partitions (DESIGN section 5).
--
-- Times are microseconds since 1970. What is the log for ever (batch, leaf_hashes, tree_node, session_entry) only grows,
-- and only at its end: triggers refuse everything else. They guard against mistakes, not against somebody who holds the
-- file: against him stand the tree and the checkpoints kept elsewhere.

-- Where the log ends. The one row is what appends compare and set.
CREATE TABLE log_head (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    size       INTEGER NOT NULL CHECK (size >= 0),
    time_us    INTEGER NOT NULL,
    frontier   BLOB    NOT NULL,
    checkpoint TEXT
) STRICT;

INSERT INTO log_head (id, size, time_us, frontier, checkpoint) VALUES (1, 0, 0, x'', NULL);

-- A commit: its leaves as C2SP tlog-tiles entry bundle.
CREATE TABLE batch (
    first      INTEGER PRIMARY KEY,
    count      INTEGER NOT NULL CHECK (count > 0),
    leaves     BLOB    NOT NULL,
    checkpoint TEXT    NOT NULL
) STRICT;

-- Its sealed parts. Apart, because retention deletes them.
CREATE TABLE sealed_batch (
    first INTEGER PRIMARY KEY REFERENCES batch (first),
    parts BLOB    NOT NULL
) STRICT;

-- Its leaf hashes, 32 bytes each.
CREATE TABLE leaf_hashes (
    first  INTEGER PRIMARY KEY REFERENCES batch (first),
    hashes BLOB    NOT NULL
) STRICT;

-- Inner nodes of the tree at levels 8, 16, …
CREATE TABLE tree_node (
    level INTEGER NOT NULL,
    idx   INTEGER NOT NULL,
    hash  BLOB    NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;

-- Which entry made which version of which session. Its key arbitrates between writers.
CREATE TABLE session_entry (
    session_id BLOB    NOT NULL CHECK (length(session_id) = 16),
    version    INTEGER NOT NULL CHECK (version > 0),
    leaf_index INTEGER NOT NULL,
    PRIMARY KEY (session_id, version)
) STRICT, WITHOUT ROWID;

-- What is kept beside the log.

-- Data keys, wrapped. Erasure deletes the row. open_sessions is what the cap of a subject is checked against.
CREATE TABLE data_key (
    id            BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    lookup        BLOB,
    wrapped       BLOB    NOT NULL,
    open_sessions INTEGER NOT NULL DEFAULT 0 CHECK (open_sessions >= 0),
    owner         BLOB
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX data_key_lookup ON data_key (lookup) WHERE lookup IS NOT NULL;
CREATE INDEX data_key_owner ON data_key (owner) WHERE owner IS NOT NULL;

-- Which sessions there are; never in what state they are.
CREATE TABLE session_index (
    session_id BLOB    NOT NULL PRIMARY KEY CHECK (length(session_id) = 16),
    realm      TEXT    NOT NULL,
    data_key   BLOB    NOT NULL,
    kind       TEXT    NOT NULL,
    open       INTEGER NOT NULL CHECK (open IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE INDEX session_index_data_key ON session_index (realm, data_key, session_id);
CREATE INDEX session_index_realm ON session_index (realm, session_id);
CREATE INDEX session_index_open ON session_index (realm, session_id) WHERE open = 1;

-- When sessions were last used. `closed` finds the marks to forget without looking at the others.
CREATE TABLE session_use (
    session_id   BLOB    NOT NULL PRIMARY KEY,
    last_seen_us INTEGER NOT NULL,
    closed       INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE INDEX session_use_closed ON session_use (session_id) WHERE closed = 1;

-- Answers kept for repeated requests.
CREATE TABLE kept_answer (
    key        BLOB    NOT NULL PRIMARY KEY,
    request    BLOB    NOT NULL,
    answer     BLOB    NOT NULL,
    leaf_index INTEGER NOT NULL,
    expires_us INTEGER NOT NULL
) STRICT;

CREATE INDEX kept_answer_expires ON kept_answer (expires_us);

-- API keys: their digests, never the keys.
CREATE TABLE credential (
    seq        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL,
    digest     BLOB    NOT NULL UNIQUE,
    realm      TEXT    NOT NULL,
    roles      TEXT    NOT NULL,
    label      TEXT    NOT NULL,
    created_us INTEGER NOT NULL,
    revoked_us INTEGER
) STRICT;

CREATE INDEX credential_id ON credential (id);

-- The log only grows.

CREATE TRIGGER log_head_never_shrinks BEFORE UPDATE ON log_head WHEN NEW.size < OLD.size OR NEW.time_us < OLD.time_us
BEGIN SELECT RAISE(ABORT, 'the log never shrinks'); END;
CREATE TRIGGER log_head_no_delete BEFORE DELETE ON log_head
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;

CREATE TRIGGER batch_no_update BEFORE UPDATE ON batch
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER batch_no_delete BEFORE DELETE ON batch
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER sealed_batch_no_update BEFORE UPDATE ON sealed_batch
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER leaf_hashes_no_update BEFORE UPDATE ON leaf_hashes
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER leaf_hashes_no_delete BEFORE DELETE ON leaf_hashes
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER tree_node_no_update BEFORE UPDATE ON tree_node
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER tree_node_no_delete BEFORE DELETE ON tree_node
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER session_entry_no_update BEFORE UPDATE ON session_entry
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER session_entry_no_delete BEFORE DELETE ON session_entry
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;

-- INSERT OR REPLACE deletes without asking the triggers above (unless recursive_triggers is on), so inserting has rules of
-- its own: at the end of the log and nowhere else.
CREATE TRIGGER log_head_no_insert BEFORE INSERT ON log_head
BEGIN SELECT RAISE(ABORT, 'the log has one head'); END;
CREATE TRIGGER batch_at_end BEFORE INSERT ON batch WHEN NEW.first <> (SELECT size FROM log_head)
BEGIN SELECT RAISE(ABORT, 'the log grows at its end only'); END;
CREATE TRIGGER sealed_batch_at_end BEFORE INSERT ON sealed_batch WHEN NEW.first <> (SELECT size FROM log_head)
BEGIN SELECT RAISE(ABORT, 'the log grows at its end only'); END;
CREATE TRIGGER leaf_hashes_at_end BEFORE INSERT ON leaf_hashes WHEN NEW.first <> (SELECT size FROM log_head)
BEGIN SELECT RAISE(ABORT, 'the log grows at its end only'); END;
CREATE TRIGGER tree_node_new BEFORE INSERT ON tree_node
WHEN EXISTS (SELECT 1 FROM tree_node WHERE level = NEW.level AND idx = NEW.idx)
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER session_entry_at_end BEFORE INSERT ON session_entry
WHEN NEW.leaf_index < (SELECT size FROM log_head)
    OR EXISTS (SELECT 1 FROM session_entry WHERE session_id = NEW.session_id AND version = NEW.version)
BEGIN SELECT RAISE(ABORT, 'the log grows at its end only'); END;
