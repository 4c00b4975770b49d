-- The scripts of the Redis lock. One key per lock; its value is the token of whoever holds it.

--@ renew allow-oom
-- KEYS: lock   ARGV: token, ttl ms   Returns 1, or 0 where the token does not hold it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])

--@ release allow-oom
-- KEYS: lock   ARGV: token   Returns 1, or 0 where the token does not hold it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
