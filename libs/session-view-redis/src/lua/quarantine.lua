-- Moves a value that cannot be read into the quarantine, if it is still the one that was seen. KEYS: the session, the
-- quarantine. ARGV: the session's id, the value, or no value for a key that holds no string.
-- The earliest thousand are kept: whoever can write rubbish could otherwise fill the memory with it.
local kind = redis.call('TYPE', KEYS[1]).ok
local found = false
if kind == 'string' then
    found = redis.call('GET', KEYS[1])
    if #ARGV < 2 or found ~= ARGV[2] then return 0 end
elseif kind == 'none' or #ARGV > 1 then
    return 0
else
    found = redis.call('DUMP', KEYS[1])
end
if redis.call('HLEN', KEYS[2]) < 1000 then redis.call('HSET', KEYS[2], ARGV[1], found) end
redis.call('DEL', KEYS[1])
return 1
