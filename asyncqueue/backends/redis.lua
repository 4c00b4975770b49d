-- The scripts of the Redis backend. One key per task, group or plan, named by its UUID; in the first two is Machinery's
-- JSON.

--@ put
-- KEYS: UUIDs   ARGV: EX or PX, keep, then per UUID: mode head tail due
-- mode: "b" begin: replaces what was there; "o" only where no entry is; "p" put; "n" put and keep the name
-- due: when the task is due, ms; the entry is kept from then on
-- Nothing is written when one of the keys holds something that is no state.
for _, id in ipairs(KEYS) do
  local old, reason = entry(id)
  if old == nil then return refusal(id, reason) end
end
for n, id in ipairs(KEYS) do
  local mode, head, tail, due = unpack(ARGV, 4 * n - 1, 4 * n + 2)
  local unit, keep = lasting(ARGV[1], ARGV[2], due)
  if mode == 'b' then
    redis.call('SET', id, head, unit, keep)
  elseif mode == 'o' then
    redis.call('SET', id, head, unit, keep, 'NX')
  else
    put(id, entry(id), head, tail, mode == 'n', no_shorter(id, unit, keep))
  end
end
return #KEYS

--@ open
-- KEYS: groups   ARGV: EX or PX, keep, then per group: JSON due
-- due: when the group is due, ms; the entry is kept from then on
-- Nothing is written when one of the keys holds something that is no group.
local groups = group_verbs()
for _, group in ipairs(KEYS) do
  local stands, reason = groups.standing(group)
  if not stands then return refusal(group, reason) end
end
for n, group in ipairs(KEYS) do groups.open(group, ARGV[2 * n + 1], lasting(ARGV[1], ARGV[2], ARGV[2 * n + 2])) end
return #KEYS

--@ finish
-- KEYS: the group of each member   ARGV: members   Returns how the group of each one stands.
local groups = group_verbs()
local is_checked, found = {}, {}
for _, group in ipairs(KEYS) do
  if not is_checked[group] then
    local key, reason = groups.no_counting(group)
    if key then return refusal(key, reason) end
    is_checked[group] = true
  end
end
for n, group in ipairs(KEYS) do found[n] = groups.finish(group, ARGV[n]) end
return found

--@ add
-- KEYS: group   ARGV: members   Returns 1, or 0 where the group is over or has no entry.
local groups = group_verbs()
local group = KEYS[1]
local key, reason = groups.no_counting(group)
if key then return refusal(key, reason) end
if groups.standing(group) ~= 'open' then return 0 end
local left = groups.waited_for(group)
if groups.is_complete(left) then return 0 end
groups.append(group, left, ARGV)
return 1

--@ claim
-- KEYS: group   ARGV: EX or PX, keep, owner, ttl ms, the entry of a group that has none, mutex
-- mutex: "look" whether somebody has the mutex of Go's workers; on a cluster, where it is out of reach, the caller has to
-- have it: "mine", or "none"
-- Returns mine, taken, sent or busy.
local groups = group_verbs()
local group, owner, claim, now = KEYS[1], ARGV[3], groups.companion(KEYS[1], 'claim'), clock()
local stands, reason = groups.standing(group)
if not stands then return refusal(group, reason) end
local claimed, why = entry(claim)
if claimed == nil then return refusal(claim, why) end
if stands == 'triggered' then
  return 'sent'
elseif stands == 'claimed' then
  local ends, whose = match(claimed, '^(%d+):(.*)$')
  if ends and whose ~= owner and tonumber(ends) > now then return 'taken' end
  groups.prolong_group(group, milliseconds(ARGV[1], ARGV[2]))
elseif ARGV[6] == 'none' or ARGV[6] == 'look' and redis.call('EXISTS', groups.mutex) == 1 then
  return 'busy'
else
  groups.trigger(group, ARGV[5], ARGV[1], ARGV[2])
end
redis.call('SET', claim, string.format('%.0f:', now + ARGV[4]) .. owner)
groups.live_as_long(claim, group)
return 'mine'

--@ sent
-- KEYS: group   ARGV: EX or PX, keep, the entry of a group that has none
local groups = group_verbs()
local group = KEYS[1]
local stands, reason = groups.standing(group)
if not stands then return refusal(group, reason) end
if stands == 'open' or stands == 'none' then groups.trigger(group, ARGV[3], ARGV[1], ARGV[2]) end
groups.drop_companions(group)
return 1

--@ touch
-- ARGV: EX or PX, keep, due (ms), then per family: its length, UUIDs
local groups = group_verbs()
local at = 4
while at <= #ARGV do
  local family = {}
  for n = at + 1, at + ARGV[at] do family[#family + 1] = ARGV[n] end
  groups.touch(family, ARGV[1], ARGV[2], ARGV[3])
  at = at + 1 + #family
end
return 1
