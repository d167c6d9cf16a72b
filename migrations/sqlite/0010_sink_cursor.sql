-- How far what is pushed elsewhere has come, and who pushes it. Not evidence: set back, entries are pushed again.
CREATE TABLE sink_cursor (
    sink     TEXT    NOT NULL PRIMARY KEY,
    next     INTEGER NOT NULL CHECK (next >= 0),
    holder   TEXT    NOT NULL,
    until_us INTEGER NOT NULL
) STRICT;
