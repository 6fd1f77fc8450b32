-- channel, token, lease ms, most attempts
-- CLAIMED attempt run.started request server-id meta head | ENDED | HELD | WAIT | EXPIRED | USED_UP | GONE
local m = meta('end', 'token', 'attempt', 'attempts', 'due', 'queue_by', 'started', 'run_ms', 'retention_ms', 'opening_event', 'opening')
local last = newest()
if m[1] then return { 'ENDED' } end
if not m[8] or not last then return { 'GONE' } end
local owner = lease_owner()
if owner and (owner ~= ARGV[2] or m[2] ~= ARGV[2]) then return { 'HELD' } end
local attempt, event
if owner then
  attempt, event = m[3], m[10] -- the same claim again, its reply was lost
else
  local t = now()
  if not m[5] then return { 'HELD' } end -- an attempt is under way: only the sweep says when it is lost
  if tonumber(m[5]) > t then return { 'WAIT' } end
  if not m[7] and t > tonumber(m[6]) then return { 'EXPIRED' } end
  if tonumber(m[4] or 0) >= tonumber(ARGV[4]) then return { 'USED_UP' } end
  attempt = text(math.max(tonumber(m[3] or 0) + 1, tonumber((split(last))) + 1, t))
  event = '{"attempt":' .. attempt .. ',"prev":"' .. last .. '"' .. m[11]
  redis.call('XADD', STREAM, 'NOMKSTREAM', attempt .. '-0', 't', 'run.started', 'd', event)
  set_lease(ARGV[2], attempt .. '-0', ARGV[3])
  redis.call('HSET', META, 'attempt', attempt, 'attempts', text(tonumber(m[4] or 0) + 1), 'token', ARGV[2],
    'opening_event', event)
  if not m[7] then redis.call('HSET', META, 'started', text(t), 'run_by', text(t + m[8])) end
  redis.call('HDEL', META, 'due', 'suspect', 'job')
  for _, key in ipairs({ STREAM, META, REQUEST, VIEWERS }) do
    redis.call('PEXPIRE', key, text(m[8] + m[9]))
  end
  publish(attempt .. '-0\nrun.started\n' .. event)
end
return { 'CLAIMED', attempt, event, redis.call('GET', REQUEST) or '', server_id(), redis.call('HGETALL', META),
  redis.call('XRANGE', STREAM, '0-1', '0-9') }
