-- What scripts do with groups whose members lie in other slots of a cluster: each touches one key and its companions.

--@ count
-- KEYS: group   ARGV: how many members to draw, members that have ended
-- Returns {how the group stands, some of the members that are waited for}.
local groups = group_verbs()
local key, reason = groups.no_counting(KEYS[1])
if key then return refusal(key, reason) end
local stands = groups.standing(KEYS[1])
if stands == 'none' then return {'lost'} end
if stands == 'triggered' then return {'triggered'} end
local left = groups.waited_for(KEYS[1])
for n = 2, #ARGV do redis.call('SREM', left, ARGV[n]) end
local drawn = groups.drawn(left, ARGV[1])
return {#drawn > 0 and 'waiting' or 'complete', drawn}

--@ append
-- KEYS: group   ARGV: how many members to draw, a member that has not ended, members to append
-- Appends where that member is still waited for: whoever counts its end later finds those that were appended.
-- Returns {"added"}, {"over"}, or {"look", some of the members that are waited for}.
local groups = group_verbs()
local key, reason = groups.no_counting(KEYS[1])
if key then return refusal(key, reason) end
if groups.standing(KEYS[1]) ~= 'open' then return {'over'} end
local left = groups.waited_for(KEYS[1])
local drawn = groups.drawn(left, ARGV[1])
if #drawn == 0 then return {'over'} end
if redis.call('SISMEMBER', left, ARGV[2]) == 0 then return {'look', drawn} end
local added = {}
for n = 3, #ARGV do added[#added + 1] = ARGV[n] end
groups.append(KEYS[1], left, added)
return {'added'}

--@ gains allow-oom
-- KEYS: the first of a family   ARGV: EX or PX, keep, due (ms)   Returns 1 where keeping the family alive gains enough.
return group_verbs().gains(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) and 1 or 0

--@ prolong allow-oom
-- KEYS: a task, group or plan   ARGV: EX or PX, keep, due (ms)
-- Returns {"members" or "parts", the UUIDs of what is to be kept with it}.
local groups, keep = group_verbs(), milliseconds(lasting(ARGV[1], ARGV[2], ARGV[3]))
local kind, inner = groups.kind_of(KEYS[1])
if kind == 'group' then
  groups.prolong_group(KEYS[1], keep)
else
  groups.prolong(KEYS[1], keep)
end
return {kind == 'group' and 'members' or 'parts', inner}

--@ lock
-- KEYS: lock   ARGV: token, ttl ms   Returns the token that holds it then.
if redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') then return ARGV[1] end
return redis.call('GET', KEYS[1])

--@ unlock allow-oom
-- KEYS: lock   ARGV: token   Returns 1, or 0 where the token does not hold it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
