-- The scripts of the Redis backend. One key per task, named by its UUID, with Machinery's JSON in it.

--@ put
-- KEYS: UUIDs   ARGV: EX or PX, keep, then per UUID: mode head tail
-- mode: "b" begin: replaces what was there; "o" only where no entry is; "p" put; "n" put and keep the name
-- Nothing is written when one of the keys holds something that is no state.
local unit, keep = ARGV[1], ARGV[2]
for _, id in ipairs(KEYS) do
  local old, reason = entry(id)
  if old == nil then return refusal(id, reason) end
end
for n, id in ipairs(KEYS) do
  local mode, head, tail = ARGV[3 * n], ARGV[3 * n + 1], ARGV[3 * n + 2]
  if mode == 'b' then
    redis.call('SET', id, head, unit, keep)
  elseif mode == 'o' then
    redis.call('SET', id, head, unit, keep, 'NX')
  else
    put(id, entry(id), head, tail, mode == 'n', unit, keep)
  end
end
return #KEYS
