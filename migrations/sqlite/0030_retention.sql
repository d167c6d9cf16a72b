-- Sealed parts can be dropped when their time is over, by who says so first: a batch that is in `pruning`, which it is within one transaction only.

CREATE TABLE pruning (first INTEGER PRIMARY KEY) STRICT;

DROP TRIGGER sealed_batch_no_update;
CREATE TRIGGER sealed_batch_no_update BEFORE UPDATE ON sealed_batch
WHEN NEW.first <> OLD.first OR length(NEW.parts) >= length(OLD.parts) OR NOT EXISTS (SELECT 1 FROM pruning WHERE first = OLD.first)
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER sealed_batch_no_delete BEFORE DELETE ON sealed_batch WHEN NOT EXISTS (SELECT 1 FROM pruning WHERE first = OLD.first)
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
