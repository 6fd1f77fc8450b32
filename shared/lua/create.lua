-- channel, run, body hash, run.accepted, run.queued or '', request, lifetime ms, queue ms, run ms, meta pairs...
-- CREATED time job | EXISTS body-hash end
local known = meta('body', 'end')
if known[1] or known[2] then return { 'EXISTS', known[1] or '', known[2] or '' } end
local t = now()
local job = ARGV[2] .. ':' .. text(t)
redis.call('XADD', STREAM, '0-1', 't', 'run.accepted', 'd', ARGV[4])
if ARGV[5] ~= '' then redis.call('XADD', STREAM, '0-2', 't', 'run.queued', 'd', ARGV[5]) end
redis.call('HSET', META, 'body', ARGV[3], 'accepted', text(t), 'due', text(t), 'job', job,
  'queue_by', text(t + ARGV[8]), 'run_by', text(t + ARGV[8] + ARGV[9]), 'run_ms', ARGV[9],
  unpack(ARGV, 10))
redis.call('SET', REQUEST, ARGV[6], 'PX', ARGV[7])
redis.call('PEXPIRE', STREAM, ARGV[7])
redis.call('PEXPIRE', META, ARGV[7])
return { 'CREATED', text(t), job }
