-- channel, token, attempt, expected last id, lease ms, '1' when something visible is in it, id, type, data, ...
-- OK | DUP last | REWIND last | FENCED last | ENDED end | GONE
local m = meta('end', 'attempt', 'suspect', 'due', 'visible', 'token')
if m[1] then return { 'ENDED', m[1] } end
local last = newest()
if not last then return { 'GONE' } end
if m[2] == ARGV[3] and m[6] ~= ARGV[2] then return { 'FENCED', last } end -- given back
if last ~= ARGV[4] then return misplaced(last, ARGV[3], ARGV[4]) end
for i = 7, #ARGV, 3 do
  redis.call('XADD', STREAM, 'NOMKSTREAM', ARGV[i], 't', ARGV[i + 1], 'd', ARGV[i + 2])
end
redis.call('SET', LEASE, ARGV[2], 'PX', ARGV[5])
if m[2] ~= ARGV[3] then -- Redis forgot the claim
  redis.call('HSET', META, 'attempt', ARGV[3], 'token', ARGV[2])
  redis.call('HINCRBY', META, 'attempts', 1)
  redis.call('HSETNX', META, 'started', text(now()))
end
if m[3] or m[4] then redis.call('HDEL', META, 'suspect', 'due') end
if ARGV[6] == '1' and not m[5] then redis.call('HSET', META, 'visible', '1') end
publish(table.concat(ARGV, '\n', 7))
return { 'OK' }
