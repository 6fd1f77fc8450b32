-- channel, token, lease ms, server id at claim, lifetime ms, request, number of meta fields and values,
-- meta..., then id, type, data, ...
-- OK | EXISTS | ENDED | GONE
if newest() then return { 'EXISTS' } end
if meta('end')[1] then return { 'ENDED' } end
if server_id() == ARGV[4] then return { 'GONE' } end -- the same server: somebody deleted it
local first = 8 + ARGV[7]
for i = first, #ARGV, 3 do
  redis.call('XADD', STREAM, ARGV[i], 't', ARGV[i + 1], 'd', ARGV[i + 2])
end
redis.call('HSET', META, unpack(ARGV, 8, first - 1))
redis.call('HDEL', META, 'due', 'suspect', 'job')
set_lease(ARGV[2], ARGV[#ARGV - 2], ARGV[3])
redis.call('SET', REQUEST, ARGV[6], 'PX', ARGV[5])
redis.call('PEXPIRE', STREAM, ARGV[5])
redis.call('PEXPIRE', META, ARGV[5])
return { 'OK' }
