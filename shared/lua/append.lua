-- channel, token, attempt, expected last id, lease ms, '1' when something is visible for the first time,
-- id, type, data, ...
-- OK | DUP last | REWIND last | FENCED last | ENDED end | GONE
local function add(i, call)
  return (call or redis.call)('XADD', STREAM, 'NOMKSTREAM', ARGV[i], 't', ARGV[i + 1], 'd', ARGV[i + 2])
end

-- A lease of ours that names the expected entry says all that is asked below.
local added = redis.call('GET', LEASE) == ARGV[2] .. ' ' .. ARGV[4] and type(add(7, redis.pcall)) == 'string'
if not added then
  local m = meta('end', 'attempt', 'suspect', 'due', 'token')
  if m[1] then return { 'ENDED', m[1] } end
  local last = newest()
  if not last then return { 'GONE' } end
  if m[2] == ARGV[3] and m[5] ~= ARGV[2] then return { 'FENCED', last } end -- given back
  if last ~= ARGV[4] then return misplaced(last, ARGV[3], ARGV[4]) end
  add(7)
  if m[2] ~= ARGV[3] then -- Redis forgot the claim
    redis.call('HSET', META, 'attempt', ARGV[3], 'token', ARGV[2])
    redis.call('HINCRBY', META, 'attempts', 1)
    redis.call('HSETNX', META, 'started', text(now()))
  end
  if m[3] or m[4] then redis.call('HDEL', META, 'suspect', 'due') end
end
for i = 10, #ARGV, 3 do
  add(i)
end
set_lease(ARGV[2], ARGV[#ARGV - 2], ARGV[5])
if ARGV[6] == '1' then redis.call('HSET', META, 'visible', '1') end
publish(table.concat(ARGV, '\n', 7))
return { 'OK' }
