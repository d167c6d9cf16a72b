-- Raises a number, never lowers it. KEYS: the number. ARGV: the new one.
local old = tonumber(redis.call('GET', KEYS[1]) or '')
if not old or tonumber(ARGV[1]) > old then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
