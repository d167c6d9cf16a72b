-- What auditors search by, legal holds, and leaner indexes.

-- In which entries of a segment (65,536 leaf indices) a term stands: a Roaring bitmap of offsets. A projection: it follows the
-- log, and can be made again from it. Terms are digests (libs/audit-search).
CREATE TABLE posting (
    term    BLOB    NOT NULL CHECK (length(term) = 16),
    segment INTEGER NOT NULL,
    offsets BLOB    NOT NULL,
    PRIMARY KEY (term, segment)
) WITHOUT ROWID, STRICT;

-- How far the postings have come; revision counts their changes.
CREATE TABLE projection (
    one      INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    size     INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT;
INSERT INTO projection (one, size, revision) VALUES (1, 0, 0);

-- A subject under legal hold is not erased.
ALTER TABLE data_key ADD COLUMN held INTEGER NOT NULL DEFAULT 0 CHECK (held IN (0, 1));

-- A session without a subject has a data key of its own id, by which nobody asks for sessions.
DROP INDEX session_index_data_key;
CREATE INDEX session_index_data_key ON session_index (realm, data_key, session_id) WHERE data_key <> session_id;
