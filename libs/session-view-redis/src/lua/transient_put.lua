-- Lets a state of a session stand that no entry stands behind, if what it was made from still does.
-- KEYS: the session, the index by deadline, the sessions of its realm, what is to be forgotten, the answer, the sessions of the subject it
-- becomes one of, those of the subject it leaves. ARGV: its id, the stamp it was made from (empty for a session that begins), the value, its
-- time to live in ms, how many sessions that subject may have (-1: it becomes nobody's), whether it leaves one (0, 1), the answer (empty:
-- none), its time to live in ms, when it is forgotten in microseconds, its name there.
-- A value begins: tag (1), version (8), last seen (8), idle timeout (8), expiry (8), stamp (24); see the crate session-value.
local ACTIVE = 3
local key, due, realm, graves, answer, joins, leaves = unpack(KEYS)
local id, base, value, ttl, cap = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if ARGV[7] ~= '' and redis.call('EXISTS', answer) == 1 then return 'answered' end
local tag, _, seen, idle, expires = struct.unpack('>I1I8i8i8i8', value)
local old = redis.call('GET', key)
if old then
    if #old < 57 or string.byte(old, 1) ~= ACTIVE or string.sub(old, 34, 57) ~= base then return 'moved' end
    -- A use that was marked since is not undone by a state that was made without knowing of it.
    local old_seen = struct.unpack('>i8', string.sub(old, 10, 17))
    if old_seen > seen then
        seen = old_seen
        value = string.sub(value, 1, 9) .. string.sub(old, 10, 17) .. string.sub(value, 18)
    end
elseif base ~= '' then
    return 'moved'
end
if cap >= 0 then
    local taken = redis.call('ZCARD', joins)
    if redis.call('ZSCORE', joins, id) then taken = taken - 1 end
    if taken >= cap then return 'cap' end
    redis.call('ZADD', joins, 0, id)
end
if ARGV[6] == '1' then redis.call('ZREM', leaves, id) end
redis.call('SET', key, value, 'PX', ttl)
redis.call('ZADD', realm, 0, id)
if tag == ACTIVE then
    redis.call('ZADD', due, math.min(seen + idle, expires), id)
else
    redis.call('ZREM', due, id)
end
redis.call('ZADD', graves, ARGV[9], ARGV[10])
if ARGV[7] ~= '' then redis.call('SET', answer, ARGV[7], 'PX', ARGV[8]) end
return 'done'
