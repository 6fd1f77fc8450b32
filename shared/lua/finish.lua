-- channel, token, attempt or '', expected last id or '', type, data, '1' when a held run is left alone
-- OK id job | DUP last | REWIND last | FENCED last | ENDED end | HELD | GONE
local m = meta('end', 'ended_by', 'retention_ms', 'job')
if m[1] then return { m[2] == ARGV[2] and 'OK' or 'ENDED', m[1] } end
local last = newest()
if not last or not m[3] then return { 'GONE' } end
if ARGV[7] == '1' and redis.call('EXISTS', LEASE) == 1 then return { 'HELD' } end
if ARGV[4] ~= '' and last ~= ARGV[4] then return misplaced(last, ARGV[3], ARGV[4]) end
local attempt, seq = split(last)
local id = attempt .. '-' .. text(tonumber(seq) + 1)
redis.call('XADD', STREAM, 'NOMKSTREAM', id, 't', ARGV[5], 'd', ARGV[6])
redis.call('HSET', META, 'end', id, 'end_type', ARGV[5], 'ended', text(now()), 'ended_by', ARGV[2])
redis.call('HDEL', META, 'due', 'suspect', 'job')
redis.call('DEL', LEASE, REQUEST)
for _, key in ipairs({ STREAM, META, VIEWERS }) do
  redis.call('PEXPIRE', key, m[3])
end
publish(id .. '\n' .. ARGV[5] .. '\n' .. ARGV[6])
return { 'OK', id, m[4] or '' }
