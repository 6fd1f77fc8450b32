-- channel, lifetime of the tombstone ms
-- OK | GONE
local tenant = meta('tenant')[1]
if not tenant then return { 'GONE' } end
redis.call('DEL', STREAM, LEASE, META, REQUEST, VIEWERS)
redis.call('HSET', META, 'tenant', tenant, 'end', 'deleted')
redis.call('PEXPIRE', META, ARGV[2])
return { 'OK' }
