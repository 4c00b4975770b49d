-- The scripts of the Redis lock. One key per lock; its value is the token of whoever holds it.

--@ renew allow-oom
-- KEYS: lock   ARGV: token, ttl ms   Returns 1, or 0 where the token does not hold it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])

--@ release allow-oom
-- KEYS: lock   ARGV: token   Returns 1, or 0 where the token does not hold it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])

--@ claim allow-oom
-- Machinery's lock of a periodic task, step by step as its schedulers take it, with a companion beside it that says
-- which of the turns are ours. All moments are the caller's.
-- KEYS: lock, owners, sent
-- ARGV: due, owner, now ns, until ms, how long turns are owed (ms), lock value ns (next - 1; empty: that has passed),
--       its ttl ms
-- Owners: a hash of due -> "owner until"; its field "lock" is the last value of the lock that was ours.
-- Returns mine, taken or over.
local due, owner, now, value = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local function later(a, b) -- nanoseconds are too long for Lua's numbers
  if #a ~= #b then return #a > #b end
  return a > b
end
local claimed = redis.call('HGET', KEYS[2], due)
if claimed then
  local whose, ends = string.match(claimed, '^(%S+) (%d+)$')
  if whose ~= owner and tonumber(ends) > tonumber(string.sub(now, 1, -7)) then return 'taken' end
else
  local last = string.match(redis.call('GET', KEYS[3]) or '', '^%d+')
  if last and not later(due, last) then return 'over' end
  local is_got = value ~= '' and redis.call('SET', KEYS[1], value, 'PX', ARGV[7], 'NX')
  if not is_got then
    local held = redis.call('GET', KEYS[1])
    if held and not string.match(held, '^%d+$') then
      return redis.error_reply('ERR ' .. KEYS[1] .. ' holds no moment in nanoseconds')
    end
    if held and value ~= '' and held ~= '0' and later(now, held) then
      redis.call('GETSET', KEYS[1], value)
      redis.call('EXPIRE', KEYS[1], math.max(1, math.floor(tonumber(ARGV[7]) / 1000)))
      is_got = true
    elseif held and held ~= redis.call('HGET', KEYS[2], 'lock') and not later(due .. '000000000', held) then
      -- a scheduler that is not ours was first, and has sent it
      local sent = string.match(redis.call('GET', KEYS[3]) or '', ' %d+$') or ' '
      redis.call('SET', KEYS[3], due .. sent)
      return 'over'
    end
  end
  if is_got then redis.call('HSET', KEYS[2], 'lock', value) end
end
redis.call('HSET', KEYS[2], due, owner .. ' ' .. ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 'mine'

--@ finish allow-oom
-- KEYS: owners, sent   ARGV: due, 1 if it was sent
-- Sent: "due sent", the latest turn that is over, and the latest one that was sent.
redis.call('HDEL', KEYS[1], ARGV[1])
local last, sent = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+) (%d*)$')
local due = tonumber(ARGV[1])
if ARGV[2] == '1' and due > (tonumber(sent or '') or -1) then sent = ARGV[1] end
if due > (tonumber(last or '') or -1) then last = ARGV[1] end
redis.call('SET', KEYS[2], last .. ' ' .. (sent or ''))
