-- The scripts of the Redis backend. One key per task, named by its UUID, with Machinery's JSON in it.

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
    put(id, entry(id), head, tail, mode == 'n', unit, keep)
  end
end
return #KEYS
