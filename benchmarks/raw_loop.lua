-- The least that gives the guarantee, in one call: states stored, messages acked, the next ones claimed.
-- KEYS: queue, hash of what is held. ARGV: want, next number, then number, UUID, state for each ended task.
local want, number = tonumber(ARGV[1]), tonumber(ARGV[2])
for at = 3, #ARGV, 3 do
  if redis.call('HDEL', KEYS[2], ARGV[at]) == 1 then
    redis.call('SET', ARGV[at + 1], ARGV[at + 2], 'EX', 3600)
  end
end
local taken = redis.call('LPOP', KEYS[1], want) or {}
local held = {}
for at, body in ipairs(taken) do
  held[#held + 1] = number + at - 1
  held[#held + 1] = body
end
if #held > 0 then
  redis.call('HSET', KEYS[2], unpack(held))
end
return taken
