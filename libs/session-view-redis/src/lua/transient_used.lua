-- Moves the last use of an active session forward; answers its value then, and nothing if nothing has changed.
-- KEYS: the session, the index by deadline. ARGV: its id, the time, eight bytes big-endian.
local header = redis.call('GETRANGE', KEYS[1], 0, 32)
if #header < 33 then return false end
local tag, _, old, idle, expires = struct.unpack('>I1I8i8i8i8', header)
local new = struct.unpack('>i8', ARGV[2])
if tag ~= 3 or new <= old then return false end
redis.call('SETRANGE', KEYS[1], 9, ARGV[2])
redis.call('ZADD', KEYS[2], math.min(new + idle, expires), ARGV[1])
return redis.call('GET', KEYS[1])
