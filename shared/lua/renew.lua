-- channel, token, attempt, lease ms, how long a viewer counts ms
-- OK last idle-ms | FENCED last | ENDED end | GONE
-- idle-ms: since the last viewer left, or -1 while somebody watches
local m = meta('end', 'suspect', 'due', 'left', 'accepted', 'attempt', 'token')
if m[1] then return { 'ENDED', m[1] } end
local last = newest()
if not last then return { 'GONE' } end
if less(ARGV[3], (split(last))) then return { 'FENCED', last } end
if m[6] == ARGV[3] and m[7] ~= ARGV[2] then return { 'FENCED', last } end -- given back
set_lease(ARGV[2], last, ARGV[4])
if m[2] or m[3] then redis.call('HDEL', META, 'suspect', 'due') end
local t = now()
local youngest = tonumber(redis.call('ZREVRANGE', VIEWERS, 0, 0, 'WITHSCORES')[2] or 0)
if t - youngest < tonumber(ARGV[5]) then return { 'OK', last, '-1' } end
local since = math.max(youngest, tonumber(m[4] or 0), tonumber(m[5] or t))
return { 'OK', last, text(t - since) }
