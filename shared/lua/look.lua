-- channel, suspect ms, most attempts, margin ms
-- What the sweep has to do about an open run:
-- GONE | ENDED | HELD lease-ms | LATER ms | SUSPECT | READY job started | EXPIRED | OVERDUE | USED_UP | LOST
local m = meta('end', 'run_by', 'queue_by', 'due', 'started', 'job', 'suspect', 'attempts', 'visible', 'on_interrupt', 'repeatable')
if m[1] then return { 'ENDED' } end
if not m[2] or not newest() then return { 'GONE' } end
local t = now()
if m[5] and t > tonumber(m[2]) + tonumber(ARGV[4]) then return { 'OVERDUE' } end
local lease = redis.call('PTTL', LEASE)
if lease >= 0 then return { 'HELD', text(lease + 1) } end
if m[4] then
  if not m[5] and t > tonumber(m[3]) then return { 'EXPIRED' } end
  if tonumber(m[4]) > t then return { 'LATER', text(m[4] - t) } end
  return { 'READY', m[6] or '', m[5] and '1' or '' }
end
if not m[7] then
  redis.call('HSET', META, 'suspect', text(t))
  return { 'SUSPECT' }
end
if t - tonumber(m[7]) < tonumber(ARGV[2]) then return { 'SUSPECT' } end
if tonumber(m[8] or 0) >= tonumber(ARGV[3]) then return { 'USED_UP' } end
local shown = m[9] and m[10] ~= 'restart'
if shown or m[11] == '0' or redis.call('EXISTS', REQUEST) == 0 then return { 'LOST' } end
redis.call('HSET', META, 'due', text(t))
redis.call('HDEL', META, 'suspect', 'job')
return { 'READY', '', '1' }
