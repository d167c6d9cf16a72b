-- Expand: who was beaten to the head by another process waits for his turn, and makes his batch while he holds it. Programs from before do not, and are right
-- all the same: the head is compared as ever.
SET LOCAL ROLE counterfoil_owner;

-- Where turns queue. A lock on a table is given in the order in which it was asked for. One on a row is not: when the row has a new version all who wait run for that at
-- once. Nothing is ever in it, and nobody has a right on it but the function below.
CREATE TABLE counterfoil.turn (
    one boolean PRIMARY KEY DEFAULT true CHECK (one)
);
SELECT counterfoil.guard('counterfoil.turn', 'no_truncate', 'TRUNCATE', 'refuse');

-- Waits for the head and holds it to the end of the transaction; answers where the log ends, and the fence. It is held to make a batch, and to call
-- counterfoil.append with it. A session that leaves the transaction alone for half a second is ended, and rolled back with that: a process that stands
-- still, or was cut off, holds up nobody for longer. (A few hundred times what making a batch takes; and a machine whose processes wait for half a second has no time to lose a turn anyway.)
CREATE FUNCTION counterfoil.take_head(
    OUT fence bigint, OUT size bigint, OUT time_us bigint, OUT frontier bytea, OUT checkpoint text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head counterfoil.log_head;
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', '500', true);
    LOCK TABLE counterfoil.turn IN EXCLUSIVE MODE;
    -- Appends without a turn lock the row alone. Behind this nobody but us changes it.
    SELECT * INTO head FROM counterfoil.log_head FOR UPDATE;
    take_head.fence := head.fence;
    take_head.size := head.size;
    take_head.time_us := head.time_us;
    take_head.frontier := head.frontier;
    take_head.checkpoint := head.checkpoint;
END $$;

REVOKE EXECUTE ON FUNCTION counterfoil.take_head FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counterfoil.take_head TO counterfoil_writer;

RESET ROLE;
