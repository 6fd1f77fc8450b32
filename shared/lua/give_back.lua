-- channel, token, attempt, delay ms, '1' when the attempt counts
-- OK | FENCED | ENDED | GONE
local m = meta('end', 'token', 'attempt')
if m[1] then return { 'ENDED', m[1] } end
if not m[3] then return { 'GONE' } end
if m[2] ~= ARGV[2] or m[3] ~= ARGV[3] then return { 'FENCED' } end
redis.call('DEL', LEASE)
redis.call('HSET', META, 'due', text(now() + ARGV[4]))
redis.call('HDEL', META, 'suspect', 'job', 'token') -- a late renewal of this owner takes nothing back
if ARGV[5] ~= '1' then redis.call('HINCRBY', META, 'attempts', -1) end
return { 'OK' }
