-- States of tasks, as Machinery keeps them: one JSON text per UUID.
-- The JSON is searched as plain text and never decoded or written anew: Lua's numbers would spoil 64-bit integers.
-- A quote inside a JSON string is escaped, so that `"State":"` is never found inside of one.

local find, sub, match = string.find, string.sub, string.match

-- ms
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function milliseconds(unit, keep)
  return unit == 'EX' and keep * 1000 or tonumber(keep)
end

-- How SET says how long an entry is kept: from now on, or from when its task is due (ms; '' for now).
local function lasting(unit, keep, due)
  local wait = due ~= '' and due - clock() or 0
  if wait <= 0 then return unit, keep end
  return 'PX', milliseconds(unit, keep) + wait
end

-- why a key cannot be of a type, or nil
local function unfit(key, wanted)
  local kind = redis.pcall('TYPE', key)
  if kind.err then return kind.err end
  return kind.ok ~= wanted and kind.ok ~= 'none' and 'WRONGTYPE' or nil
end

-- in chunks: unpack has a limit
local function push(command, key, values)
  for from = 1, #values, 1000 do
    redis.call(command, key, unpack(values, from, math.min(from + 999, #values)))
  end
end

-- Go's zero time: when it was sent is not known
local NEVER = '0001-01-01T00:00:00Z'

-- The last one, since a result may be an object with a key of that name. It stands near the end.
local function created_at(json)
  local last, _, to = nil, find(json, '"CreatedAt":"', math.max(1, #json - 120), true)
  if not to then
    _, to = find(json, '"CreatedAt":"', 1, true)
  end
  while to do
    last = to + 1
    _, to = find(json, '"CreatedAt":"', last, true)
  end
  return last and sub(json, last, find(json, '"', last, true) - 1)
end

-- the first one, for the same reason
local function is_final(json)
  local _, at = find(json, '"State":"', 1, true)
  local state = at and sub(json, at + 1, at + 8)
  return state == 'SUCCESS"' or state == 'FAILURE"'
end

-- What is at a UUID: the JSON, false for nothing; nil and the reason where it holds something else, or is not ours.
local function entry(id)
  local json = redis.pcall('GET', id)
  if type(json) ~= 'table' then return json end
  return nil, json.err
end

-- How a whole call is refused because of one key.
local function refusal(key, reason)
  if find(reason, 'WRONGTYPE', 1, true) then
    reason = 'WRONGKEY ' .. key
  elseif find(reason, 'access', 1, true) then
    reason = reason .. ' (key ' .. key .. ')'
  end
  return redis.error_reply(reason)
end

-- How SET says that an entry is kept for so long, and no shorter than it was.
local function no_shorter(id, unit, keep)
  local left = redis.call('PTTL', id)
  if left > milliseconds(unit, keep) then return 'PX', left end
  return unit, keep
end

-- The state `head .. CreatedAt .. tail` where `old` is; a final state stays. With an empty tail, the head is all.
-- keep_name: the new state does not know the task's name, the old one may.
local function put(id, old, head, tail, keep_name, unit, keep)
  if old and is_final(old) then return end
  if old and keep_name then
    local name = match(old, '^{"TaskUUID":"[^"]*","TaskName":"(.-)","State":"')
    local from, to = find(head, '"TaskName":""', 1, true)
    if name and from then head = sub(head, 1, from - 1) .. '"TaskName":"' .. name .. '"' .. sub(head, to + 1) end
  end
  if tail ~= '' then head = head .. (old and created_at(old) or NEVER) .. tail end
  redis.call('SET', id, head, unit, keep)
end
