-- Moves the last use of active sessions forward. KEYS: the index by deadline, then one key for each use.
-- ARGV: for each use id and the time, eight bytes big-endian.
for i = 2, #KEYS do
    local at = (i - 2) * 2
    local key, id, seen = KEYS[i], ARGV[at + 1], ARGV[at + 2]
    local header = redis.pcall('GETRANGE', key, 0, 32)
    if type(header) == 'string' and #header == 33 then
        local tag, _, old, idle, expires = struct.unpack('>I1I8i8i8i8', header)
        local new = struct.unpack('>i8', seen)
        if tag == 1 and new > old then
            redis.call('SETRANGE', key, 9, seen)
            redis.call('ZADD', KEYS[1], math.min(new + idle, expires), id)
        end
    end
end
return 1
