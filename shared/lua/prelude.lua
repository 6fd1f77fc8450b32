-- Before every script. KEYS are a run's keys in the order of shared/keys.py; ARGV[1] is its channel.
local STREAM, LEASE, META, REQUEST, VIEWERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local CHANNEL = ARGV[1]

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function text(n)
  return string.format('%.0f', n)
end

local function meta(...)
  return redis.call('HMGET', META, ...)
end

-- Id of the newest entry, or nil without a stream; a key of another type is none.
local function newest()
  local entries = redis.pcall('XREVRANGE', STREAM, '+', '-', 'COUNT', 1)
  return entries[1] and entries[1][1]
end

local function split(id)
  return string.match(id, '^(%d+)%-(%d+)$')
end

-- Order of decimal numbers as text: doubles would lose digits.
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end

-- What a writer of `attempt` that expects `expected` to be last has to hear when it is not.
local function misplaced(last, attempt, expected)
  local last_attempt, last_seq = split(last)
  if less(attempt, last_attempt) then return { 'FENCED', last } end
  if less(last_attempt, attempt) then return { 'REWIND', last } end
  local expected_attempt, expected_seq = split(expected)
  if expected_attempt ~= attempt or less(expected_seq, last_seq) then return { 'DUP', last } end
  return { 'REWIND', last }
end

-- Changes whenever this server starts anew or another one takes its place.
local function server_id()
  local ok, info = pcall(redis.call, 'INFO', 'replication')
  return ok and string.match(info, 'master_replid:(%x+)') or ''
end

-- The lease: its owner's token, and the newest entry when it was set. It is deleted with the end, with a
-- give-back and with the run, so while it stands none of these has happened.
local function set_lease(token, last, ms)
  redis.call('SET', LEASE, token .. ' ' .. last, 'PX', ms)
end

local function lease_owner()
  local lease = redis.call('GET', LEASE)
  return lease and string.match(lease, '^[^ ]+')
end

local function publish(payload)
  redis.call('SPUBLISH', CHANNEL, payload)
end
