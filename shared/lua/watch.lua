-- channel, gateway, '1' to say that it watches, '' that its last viewer left
-- OK | ENDED
local m = meta('end', 'accepted')
if m[1] or not m[2] then return { 'ENDED' } end
if ARGV[3] == '1' then
  redis.call('ZADD', VIEWERS, text(now()), ARGV[2])
  redis.call('PEXPIRE', VIEWERS, 60000)
else
  redis.call('ZREM', VIEWERS, ARGV[2])
  redis.call('HSET', META, 'left', text(now()))
end
return { 'OK' }
