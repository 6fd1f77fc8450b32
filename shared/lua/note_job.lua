-- channel, run: the id of a new job for a run that still wants one
-- OK job | ENDED
local m = meta('end', 'due')
if m[1] or not m[2] then return { 'ENDED' } end
local job = ARGV[2] .. ':' .. text(now())
redis.call('HSET', META, 'job', job)
return { 'OK', job }
