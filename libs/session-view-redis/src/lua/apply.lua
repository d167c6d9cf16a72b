-- Applies states of sessions, each if it is newer than what stands there, and keeps the index by deadline.
-- KEYS: the index, the quarantine, then one key for each state. ARGV: for each state id, time to live in ms, value.
-- Answers a string with '1' (applied) or '0' (stale) for each state.
-- A value begins: tag (1), leaf index (8), last seen (8), idle timeout (8), expiry (8); see the crate session-value. The numbers are
-- compared as doubles: leaf indices and microseconds stay below 2^53 until the year 2255.
local HEADER, ACTIVE, ENDED, KEPT_ASIDE = 33, 1, 2, 1000
local due, aside = KEYS[1], KEYS[2]
local answers = {}

local function set_aside(id, value)
    if redis.call('HLEN', aside) < KEPT_ASIDE then redis.call('HSET', aside, id, value) end
end

for i = 3, #KEYS do
    local at = (i - 3) * 3
    local key, id, ttl, new = KEYS[i], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local tag, index, seen, idle, expires = struct.unpack('>I1I8i8i8i8', new)
    local old = redis.pcall('GET', key)
    local stale = false
    if type(old) == 'table' then
        set_aside(id, redis.call('DUMP', key))
    elseif old then
        local old_tag, old_index, old_seen
        if #old >= HEADER then old_tag, old_index, old_seen = struct.unpack('>I1I8i8', old) end
        if old_tag ~= ACTIVE and old_tag ~= ENDED then
            set_aside(id, old)
        else
            stale = old_index >= index or (old_tag == ENDED and tag == ACTIVE)
            -- A use that was marked since is not undone by a state that was made without knowing of it.
            if not stale and old_tag == ACTIVE and tag == ACTIVE and old_seen > seen then
                seen = old_seen
                new = string.sub(new, 1, 9) .. string.sub(old, 10, 17) .. string.sub(new, 18)
            end
        end
    end
    if stale then
        answers[#answers + 1] = '0'
    else
        redis.call('SET', key, new, 'PX', ttl)
        if tag == ACTIVE then
            redis.call('ZADD', due, math.min(seen + idle, expires), id)
        else
            redis.call('ZREM', due, id)
        end
        answers[#answers + 1] = '1'
    end
end
return table.concat(answers)
