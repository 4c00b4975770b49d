-- The scripts of the Redis broker.
--
-- Q                LIST    ready messages, as Machinery keeps them: bare JSON. An empty element only wakes.
-- {Q}:aq:again     LIST    messages that were shown before, "<attempt>:<body>"; served before Q
-- {Q}:aq:later     ZSET    messages given back with a delay, "<unique>:<attempt>:<body>"; score: due, ms
-- {Q}:aq:workers   ZSET    worker -> when its lease ends, ms of this server's clock; negative: minus when it was fenced
-- {Q}:aq:proc:W    HASH    what worker W holds, number -> "<attempt>:<body>"; field "seq" is the last number given out
-- {Q}:aq:inbox:W   LIST    where W's BLMOVE puts a message of Q; the next `take` finds it there
-- {Q}:aq:dead      STREAM  the dead letter: reason, error, attempt, worker, body
-- delayed_tasks    ZSET    messages with an ETA, as Machinery keeps them: bare JSON; score: due, ns
-- {delayed_tasks}:aq:moving  ZSET  on a cluster: due messages on their way to a queue in another slot,
--                          "<number>:<body>"; score: when they are given up as not having landed, ms
--
-- A message that changes hands between two of these does so inside one script.

local function no_queue(key)
  return unfit(key, 'list')
end

-- what would keep a message from being sent: a key and the reason, or nil
local function no_way(queue, due, later, delayed)
  local reason = no_queue(queue)
  if reason then return queue, reason end
  if due == '' then return end
  local set = later == '' and delayed or later
  reason = unfit(set, 'zset')
  if reason then return set, reason end
end

-- "<attempt>:<body>" -> attempt, body
local function parts(value)
  local colon = find(value, ':', 1, true)
  return sub(value, 1, colon - 1), sub(value, colon + 1)
end

local function send(queue, due, later, body, delayed, unique, now)
  if due == '' or tonumber(due) <= now * 1000000 then
    redis.call('RPUSH', queue, body)
  elseif later == '' then
    redis.call('ZADD', delayed, due, body)
  else
    redis.call('ZADD', later, math.floor(due / 1000000), unique .. ':1:' .. body)
  end
end

-- Back to where it came from. What somebody put in Q's place must not cost the message.
local function give_back(queue, again, value)
  local attempt, body = parts(value)
  if attempt ~= '1' or type(redis.pcall('LPUSH', queue, body)) == 'table' then
    redis.call('LPUSH', again, value)
  end
end

local function bury(dead, size, reason, error, worker, value)
  local attempt, body = parts(value)
  redis.call('XADD', dead, 'MAXLEN', '~', size, '*',
    'reason', reason, 'error', error, 'attempt', attempt, 'worker', worker, 'body', body)
end

-- the numbers under which a worker holds something, lowest first
local function numbers(proc)
  local found = {}
  for _, name in ipairs(redis.call('HKEYS', proc)) do
    if name ~= 'seq' then found[#found + 1] = tonumber(name) end
  end
  table.sort(found)
  return found
end

-- A script that only frees or moves must work when memory is full. From 7.0 on a flag says so; before, everything is
-- let through once the script has written. So those scripts write something harmless, or something that frees, first.

-- What a worker held and had waiting is shown again, up to so many messages: how many they were, and whether all.
local function take_over(again, inbox, proc, limit)
  local moved = 0
  local landed = redis.call('LPOP', inbox)
  while landed do
    if landed ~= '' then
      redis.call('RPUSH', again, '1:' .. landed)
      moved = moved + 1
    end
    landed = redis.call('LPOP', inbox)
  end
  for _, number in ipairs(numbers(proc)) do
    if moved >= limit then return moved, false end
    local attempt, body = parts(redis.call('HGET', proc, number))
    redis.call('RPUSH', again, string.format('%d:', attempt + 1) .. body)
    redis.call('HDEL', proc, number)
    moved = moved + 1
  end
  redis.call('DEL', proc)
  return moved, true
end

-- what scripts do with the delayed set, in one table: made by those that need it
local function delayed_verbs(set, dead, size)
  local time = redis.call('TIME')
  local now = time[1] .. string.format('%06d000', time[2])

  local function routing_key(body)
    local key = match(body, '^{"UUID":"[^"\\]*","Name":"[^"\\]*","RoutingKey":"([^"\\]*)"')
    if key then return key end
    local ok, signature = pcall(cjson.decode, body)
    if not ok or type(signature) ~= 'table' then return nil end
    for name, value in pairs(signature) do
      if type(name) == 'string' and string.lower(name) == 'routingkey' then key = value end
    end
    return type(key) == 'string' and key or nil
  end

  local function no_queue_for(queue, body)
    bury(dead, size, 'wrong_key', 'its RoutingKey ' .. queue .. ' is no queue', '', '0:' .. body)
  end

  -- the queue of a message; where it has none it is buried
  local function queue_of(body)
    local queue = routing_key(body)
    if not queue or queue == '' then
      bury(dead, size, 'undecodable', 'a delayed message without a RoutingKey', '', '0:' .. body)
    elseif find(queue, ':aq:', 1, true) then
      no_queue_for(queue, body)
    else
      return queue
    end
  end

  local function due(limit)
    return redis.call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, limit)
  end

  -- ms until the next one is due, or -1
  local function soonest()
    local head = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
    return head[2] and math.max(math.ceil((head[2] - now) / 1000000), 0) or -1
  end

  return {queue_of = queue_of, no_queue = no_queue_for, due = due, next = soonest}
end

--@ settle allow-oom
-- Settles deliveries, each only if it is still held, and renews the leases of their workers.
-- KEYS: delayed set; then per worker of one queue: Q, proc, workers, again, later, dead, inbox
-- ARGV: lease ms, EX or PX, keep, size of dead letters, unique, number of workers, these; then items:
--       "g" which                 the items that follow are this worker's (the first one's until then)
--       "a" number                done
--       "s" number id head tail   done, and this is its state
--       "x" number verdict a b id head tail mode due pendings messages
--       "w" index number … messages, as for "x"; then what a workflow takes:
--           ended groups family, group and UUID of the member, ending group; if that is not "": tombstone ended
--           pendings messages
--           verdict: "a" done, "n" back after a ms, "b" bury with reason a and error b
--           mode: "" no state, "p" put, "n" put and keep the name, "o" only where no entry is
--           due: of an entry, ms: it is kept from then on; of a message, ns; or ""
--           once: the key that remembers an earlier publish of this message, or ""
--           pendings, groups, messages, ended, family: how many, then (id json due)*, (id json due)*,
--           (queue due later body once)*, (id head tail mode due)*, (id)*
-- Returns {index, why, ...} of the items that are not at their end.

local delayed, unit, keep, size, unique = KEYS[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now, count = clock(), tonumber(ARGV[6])
local i, last = 7 + count, #ARGV
local base, worker, proc = 1, ARGV[7], KEYS[3]
local back, unsettled = {}, {}

-- where it goes on behind a list: its length, then so many words for each of it
local function after(list, words)
  return list + 1 + words * ARGV[list]
end

-- what would keep a list of entries from being written: a key and the reason, or nil
local function no_entries(list, words)
  for at = list + 1, after(list, words) - 1, words do
    local old, reason = entry(ARGV[at])
    if old == nil then return ARGV[at], reason end
  end
end

-- what would keep a list of messages from being sent: a key and the reason, or nil
local function no_sending(list)
  for at = list + 1, after(list, 5) - 1, 5 do
    local key, reason = no_way(ARGV[at], ARGV[at + 1], ARGV[at + 2], delayed)
    if key then return key, reason end
  end
end

-- the state that begins at a word, where `old` is
local function record(at, old)
  local id, head, mode = ARGV[at], ARGV[at + 1], ARGV[at + 3]
  local unit_here, keep_here = lasting(unit, keep, ARGV[at + 4])
  if mode ~= 'o' then
    put(id, old, head, ARGV[at + 2], mode == 'n', no_shorter(id, unit_here, keep_here))
  elseif not old then
    redis.call('SET', id, head, unit_here, keep_here)
  end
end

local function record_each(list)
  for at = list + 1, after(list, 5) - 1, 5 do record(at, entry(ARGV[at])) end
end

local function begin_each(list)
  for at = list + 1, after(list, 3) - 1, 3 do
    local unit_here, keep_here = lasting(unit, keep, ARGV[at + 2])
    redis.call('SET', ARGV[at], ARGV[at + 1], unit_here, keep_here, 'NX')
  end
end

local function send_each(list)
  for at = list + 1, after(list, 5) - 1, 5 do
    if ARGV[at + 4] == '' or redis.call('EXISTS', ARGV[at + 4]) == 0 then
      send(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], delayed, unique .. '.' .. at, now)
    end
  end
end

-- What an item takes that has to do with a workflow: made when the first of them comes.
local function workflow_verbs()
  local groups = group_verbs()

  -- the parts of a workflow that begin at a word: where each of them is, and where it goes on behind them
  local function workflow_at(ended)
    local opens = after(ended, 5)
    local family = after(opens, 3)
    local member = after(family, 1)
    local ending = member + 2
    local found = {ended = ended, opens = opens, family = family, member = member, ending = ending}
    if ARGV[ending] == '' then return found, ending + 1 end
    found.then_ended = ending + 2
    found.then_pending = after(found.then_ended, 5)
    found.then_sent = after(found.then_pending, 3)
    return found, after(found.then_sent, 5)
  end

  -- what would keep a group from being ended: a key and the reason, or nil
  local function no_ending(flow)
    local group = ARGV[flow.ending]
    local stands, reason = groups.standing(group)
    if not stands then return group, reason end
    local held = redis.pcall('EXISTS', groups.mutex)
    if type(held) == 'table' then return groups.mutex, held.err end
    local key
    key, reason = no_entries(flow.then_ended, 5)
    if not key then key, reason = no_entries(flow.then_pending, 3) end
    if not key then key, reason = no_sending(flow.then_sent) end
    return key, reason
  end

  -- what would keep a workflow from going on: a key and the reason, or nil
  local function no_workflow(flow)
    local key, reason = no_entries(flow.ended, 5)
    if not key then key, reason = no_entries(flow.opens, 3) end
    if not key and ARGV[flow.member] ~= '' then key, reason = groups.no_counting(ARGV[flow.member]) end
    if not key and ARGV[flow.ending] ~= '' then key, reason = no_ending(flow) end
    return key, reason
  end

  -- Lets a workflow go on, whose next part is due then (ms; '' for now); why the item is not at its end, or nil.
  local function go_on(flow, due)
    record_each(flow.ended)
    for at = flow.opens + 1, flow.family - 1, 3 do
      groups.open(ARGV[at], ARGV[at + 1], lasting(unit, keep, ARGV[at + 2]))
    end
    if ARGV[flow.family] ~= '0' then
      local family = {}
      for at = flow.family + 1, flow.member - 1 do family[#family + 1] = ARGV[at] end
      groups.touch(family, unit, keep, due)
    end
    local group, ending = ARGV[flow.member], ARGV[flow.ending]
    if group ~= '' then
      local progress = groups.finish(group, ARGV[flow.member + 1])
      if ending == '' and (progress == 'complete' or progress == 'lost') then return progress end
    end
    local stands = ending ~= '' and groups.standing(ending)
    if stands and stands ~= 'triggered' then
      if stands ~= 'claimed' then
        if redis.call('EXISTS', groups.mutex) == 1 then return 'busy' end
        groups.trigger(ending, ARGV[flow.ending + 1], unit, keep)
      end
      groups.drop_companions(ending)
      record_each(flow.then_ended)
      begin_each(flow.then_pending)
      send_each(flow.then_sent)
    end
  end

  return {at = workflow_at, obstacle = no_workflow, go_on = go_on}
end

local function bury_unsettled(key, reason, value)
  bury(KEYS[base + 6], size, 'wrong_key', 'cannot be settled: the key ' .. key .. ': ' .. reason, worker, value)
end

local workflows

-- index: of an item of a workflow
local function apply(at, index)
  local number, verdict, a, b = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local id, has_state, pendings = ARGV[at + 5], ARGV[at + 8] ~= '', at + 10
  local messages = after(pendings, 3)
  local flow, behind = nil, after(messages, 5)
  if index then
    workflows = workflows or workflow_verbs()
    flow, behind = workflows.at(behind)
  end
  local value = redis.call('HGET', proc, number)
  if not value then return behind end
  local wrong, old, reason = nil, false, nil
  if has_state then
    old, reason = entry(id)
    if old == nil then wrong = id end
  end
  if not wrong then wrong, reason = no_entries(pendings, 3) end
  if not wrong then wrong, reason = no_sending(messages) end
  if not wrong and flow then wrong, reason = workflows.obstacle(flow) end
  if wrong then
    bury_unsettled(wrong, reason, value)
    redis.call('HDEL', proc, number)
    return behind
  end
  if has_state then record(at + 5, old) end
  begin_each(pendings)
  local why = flow and workflows.go_on(flow, ARGV[at + 9])
  if why then
    unsettled[#unsettled + 1] = tonumber(index)
    unsettled[#unsettled + 1] = why
    return behind
  end
  send_each(messages)
  if verdict == 'b' then
    bury(KEYS[base + 6], size, a, b, worker, value)
  elseif verdict == 'n' and tonumber(a) > 0 then
    redis.call('ZADD', KEYS[base + 5], now + a, worker .. '.' .. number .. ':' .. value)
  elseif verdict == 'n' then
    back[#back + 1] = {KEYS[base + 1], KEYS[base + 4], value}
  end
  -- last: what goes wrong before does not cost the message
  redis.call('HDEL', proc, number)
  return behind
end

redis.call('ZREM', KEYS[4], '')
while i <= last do
  local op = ARGV[i]
  if op == 's' then
    local number, id = ARGV[i + 1], ARGV[i + 2]
    local old, reason = entry(id)
    if old == nil then
      local value = redis.call('HGET', proc, number)
      if value then
        bury_unsettled(id, reason, value)
        redis.call('HDEL', proc, number)
      end
    elseif redis.call('HDEL', proc, number) == 1 then
      put(id, old, ARGV[i + 3], ARGV[i + 4], false, unit, keep)
    end
    i = i + 5
  elseif op == 'a' then
    redis.call('HDEL', proc, ARGV[i + 1])
    i = i + 2
  elseif op == 'g' then
    local which = tonumber(ARGV[i + 1])
    base = 1 + 7 * (which - 1)
    worker, proc = ARGV[6 + which], KEYS[base + 2]
    i = i + 2
  elseif op == 'w' then
    i = apply(i + 1, ARGV[i + 1])
  else
    i = apply(i)
  end
end
for n = #back, 1, -1 do give_back(unpack(back[n])) end

for which = 1, count do
  local workers = KEYS[7 * which - 3]
  local score = redis.call('ZSCORE', workers, ARGV[6 + which])
  if score and tonumber(score) > 0 then redis.call('ZADD', workers, now + ARGV[1], ARGV[6 + which]) end
end
return unsettled

--@ take allow-oom
-- Claims messages for one worker, and renews its lease.
-- KEYS: Q, proc, workers, again, inbox   ARGV: worker, lease ms, want, last number, "1" to register
-- Returns {0, values}; {1} the worker is fenced; {2, last number, number, value, ...} what the worker was never told.
local Q, proc, workers, again, inbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local mine, want, seq = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])

local function claim()
  local held, values = {}, {}
  local function hold(value)
    seq = seq + 1
    held[#held + 1] = seq
    held[#held + 1] = value
    values[#values + 1] = value
  end
  -- what is taken out below must find its place here: if it cannot, it is now that this fails
  redis.call('HSET', proc, 'seq', seq)
  local landed = redis.call('LPOP', inbox)
  while landed do
    if landed ~= '' then hold('1:' .. landed) end
    landed = #values < want and redis.call('LPOP', inbox)
  end
  local shown = #values < want and redis.call('LPOP', again, want - #values)
  for _, value in ipairs(shown or {}) do hold(value) end
  while #values < want do
    local ready = redis.pcall('LPOP', Q, want - #values)
    if not ready then break end
    if ready.err then
      if #values > 0 then break end
      return refusal(Q, ready.err)
    end
    for _, body in ipairs(ready) do
      if body ~= '' then hold('1:' .. body) end
    end
  end
  if #values > 0 then
    redis.call('HSET', proc, 'seq', seq, unpack(held))
  end
  return {0, values}
end

local function untold()
  local found = {2, redis.call('HGET', proc, 'seq')}
  for _, number in ipairs(numbers(proc)) do
    if number > seq then
      found[#found + 1] = number
      found[#found + 1] = redis.call('HGET', proc, number)
    end
  end
  return found
end

redis.call('ZREM', workers, '')
local score = redis.call('ZSCORE', workers, mine)
local known = tonumber(redis.call('HGET', proc, 'seq') or 0)
if not score and ARGV[5] ~= '1' or score and tonumber(score) < 0 or known < seq then
  -- what this server has forgotten nobody would ever look after
  if not score then take_over(again, inbox, proc, math.huge) end
  return {1}
end
local answer = known > seq and untold() or claim()
redis.call('ZADD', workers, clock() + ARGV[2], mine)
return answer

--@ enlist allow-oom
-- KEYS: workers   ARGV: worker, lease ms
-- Whoever is about to wait here is known here, so that what comes for it is looked after whatever becomes of it: this
-- server may never have heard of it, where it has the place of one that was lost.
redis.call('ZREM', KEYS[1], '')
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then redis.call('ZADD', KEYS[1], clock() + ARGV[2], ARGV[1]) end
return 1

--@ extend allow-oom
-- KEYS: workers, proc   ARGV: worker, lease ms, numbers
-- Renews the worker's lease. Returns the positions, from 1, of the numbers that it no longer holds; -1 for all.
redis.call('ZREM', KEYS[1], '')
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) < 0 then return -1 end
redis.call('ZADD', KEYS[1], 'XX', clock() + ARGV[2], ARGV[1])
local lost = {}
for i = 3, #ARGV do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then lost[#lost + 1] = i - 2 end
end
return lost

--@ publish
-- KEYS: delayed set, once   ARGV: how long (ms) to remember the tokens (0: there are none), unique, tokens (one line per
-- message), then per message or run of messages: "p" queue count bodies, or "d" queue due later body, or "z" likewise
-- where the queue is in another slot: it waits in the delayed set even if it is due
-- A publish is repeated with the same tokens; a longer one that begins with the same token may be a repeat in part.
local remember, unique, now = tonumber(ARGV[1]), ARGV[2], clock()
local tokens = '\n' .. ARGV[3]
local before = remember > 0 and redis.call('GET', KEYS[2])
if before == tokens then return 0 end
local i = 4
while i <= #ARGV do
  local is_now, key, reason = ARGV[i] == 'p', KEYS[1], nil
  if ARGV[i] == 'z' then
    reason = unfit(key, 'zset')
  else
    key, reason = no_way(ARGV[i + 1], is_now and '' or ARGV[i + 2], ARGV[i + 3], KEYS[1])
  end
  if reason then return refusal(key, reason) end
  i = i + (is_now and 3 + ARGV[i + 2] or 5)
end
local is_done = {}
for token in before and string.gmatch(ARGV[3], '([^\n]*)\n') or function() end do
  is_done[#is_done + 1] = token ~= '' and find(before, '\n' .. token .. '\n', 1, true) ~= nil
end
local n = 0
i = 4
while i <= #ARGV do
  if ARGV[i] == 'p' then
    local bodies = {}
    for at = i + 3, i + 2 + ARGV[i + 2] do
      n = n + 1
      if not is_done[n] then bodies[#bodies + 1] = ARGV[at] end
    end
    push('RPUSH', ARGV[i + 1], bodies)
    i = i + 3 + ARGV[i + 2]
  else
    n = n + 1
    if is_done[n] then
    elseif ARGV[i] == 'z' then
      redis.call('ZADD', KEYS[1], ARGV[i + 2], ARGV[i + 4])
    else
      send(ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], KEYS[1], unique .. '.' .. i, now)
    end
    i = i + 5
  end
end
if remember > 0 then redis.call('SET', KEYS[2], (before or '') .. tokens, 'PX', remember) end
return 1

--@ submit
-- KEYS: delayed set   ARGV: EX or PX, keep, unique, number of states, (id json due)*, number of groups, (id json due)*,
-- number of plans, (id body due)*, (queue due later state body)*
-- due: of an entry, ms: it is kept from then on; of a message, ns; or ""
-- state: the number, from 1, of the message's own state; 0 for none. Whoever has a state with the same CreatedAt was
-- submitted by an earlier try of this call.
local unit, keep, unique, count, now = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), clock()
local opened = 5 + 3 * count
local plans = opened + 1 + 3 * ARGV[opened]
local first = plans + 1 + 3 * ARGV[plans]
local is_new = {[0] = true}
for n = 1, count do
  local id, json = ARGV[2 + 3 * n], ARGV[3 + 3 * n]
  local old, reason = entry(id)
  if old == nil then return refusal(id, reason) end
  is_new[n] = not (old and created_at(old) == created_at(json))
end
local groups = plans > opened + 1 and group_verbs()
for at = opened + 1, plans - 1, 3 do
  local stands, reason = groups.standing(ARGV[at])
  if not stands then return refusal(ARGV[at], reason) end
end
for at = plans + 1, first - 1, 3 do
  local old, reason = entry(ARGV[at])
  if old == nil then return refusal(ARGV[at], reason) end
end
local checked = {}
for i = first, #ARGV, 5 do
  local queue, due = ARGV[i], ARGV[i + 1]
  if due ~= '' or not checked[queue] then
    local key, reason = no_way(queue, due, ARGV[i + 2], KEYS[1])
    if key then return refusal(key, reason) end
    checked[queue] = true
  end
end
for n = 1, count do
  if is_new[n] then redis.call('SET', ARGV[2 + 3 * n], ARGV[3 + 3 * n], lasting(unit, keep, ARGV[4 + 3 * n])) end
end
for at = opened + 1, plans - 1, 3 do groups.open(ARGV[at], ARGV[at + 1], lasting(unit, keep, ARGV[at + 2])) end
for at = plans + 1, first - 1, 3 do redis.call('SET', ARGV[at], ARGV[at + 1], lasting(unit, keep, ARGV[at + 2])) end
local queue, run = nil, {}
for i = first, #ARGV, 5 do
  if is_new[tonumber(ARGV[i + 3])] then
    if ARGV[i] ~= queue then
      push('RPUSH', queue, run)
      queue, run = ARGV[i], {}
    end
    if ARGV[i + 1] == '' then
      run[#run + 1] = ARGV[i + 4]
    else
      push('RPUSH', queue, run)
      run = {}
      send(queue, ARGV[i + 1], ARGV[i + 2], ARGV[i + 4], KEYS[1], unique .. '.' .. i, now)
    end
  end
end
push('RPUSH', queue, run)
return 1

--@ tend allow-oom
-- KEYS: Q, workers, again, later   ARGV: prefix of proc and inbox, "1" to reap, most entries to move, ms to remember
-- the fenced
-- Takes over from workers whose lease ended, and promotes what was given back with a delay. Any number of processes
-- may do this at once, and may stop anywhere between two calls.
-- Returns {entries moved, ms until the next one is due or -1}.
local queue, workers, again, later = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local limit, moved, now = tonumber(ARGV[3]), 0, clock()
redis.call('ZREM', workers, '')

local function take_over_from(worker, fenced_at)
  local inbox, proc = ARGV[1] .. 'inbox:' .. worker, ARGV[1] .. 'proc:' .. worker
  local taken, is_all = take_over(again, inbox, proc, limit - moved)
  moved = moved + taken
  -- remembered for a while: a BLMOVE that a broken connection still carries may put a message into its inbox
  if is_all and fenced_at + ARGV[4] < now then redis.call('ZREM', workers, worker) end
end

if ARGV[2] == '1' then
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, 0, now, 'LIMIT', 0, 50)) do
    redis.call('ZADD', workers, -now, worker)
  end
  local fenced = redis.call('ZRANGEBYSCORE', workers, '-inf', '(0', 'WITHSCORES')
  for i = #fenced - 1, 1, -2 do take_over_from(fenced[i], -fenced[i + 1]) end
end

for _, member in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, limit)) do
  local _, value = parts(member)
  local attempt, body = parts(value)
  redis.call('ZREM', later, member)
  if attempt ~= '1' or type(redis.pcall('RPUSH', queue, body)) == 'table' then
    redis.call('RPUSH', again, value)
  end
  moved = moved + 1
end
local head = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
return {moved, head[2] and math.max(head[2] - now, 0) or -1}

--@ promote allow-oom
-- KEYS: delayed set, its dead letter   ARGV: most entries to move, size of the dead letter
-- Moves what is due to the queue that its RoutingKey names; what names none goes to the dead letter.
-- Returns {entries moved, ms until the next one is due or -1}.
local delayed = delayed_verbs(KEYS[1], KEYS[2], ARGV[2])
local due = delayed.due(ARGV[1])
for _, body in ipairs(due) do
  redis.call('ZREM', KEYS[1], body)
  local queue = delayed.queue_of(body)
  if queue and type(redis.pcall('RPUSH', queue, body)) == 'table' then delayed.no_queue(queue, body) end
end
return {#due, delayed.next()}

--@ depart allow-oom
-- KEYS: delayed set, those on their way, its dead letter   ARGV: most entries to move, size of the dead letter, unique,
-- ms until they should have landed
-- Notes what is due as being on its way to the queue that its RoutingKey names; what names none goes to the dead letter.
-- What should have landed and did not is sent again, under the number that it had.
-- Returns {ms until the next one is due or -1, queue, number, body, ...}.
local delayed, now = delayed_verbs(KEYS[1], KEYS[3], ARGV[2]), clock()
local found, lands = {-1}, now + ARGV[4]
local function leave(number, body)
  local queue = delayed.queue_of(body)
  if not queue then return redis.call('ZREM', KEYS[2], number .. ':' .. body) end
  redis.call('ZADD', KEYS[2], lands, number .. ':' .. body)
  for _, word in ipairs({queue, number, body}) do found[#found + 1] = word end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])) do leave(parts(member)) end
for n, body in ipairs(delayed.due(ARGV[1])) do
  leave(ARGV[3] .. '.' .. n, body)
  redis.call('ZREM', KEYS[1], body)
end
found[1] = delayed.next()
return found

--@ land allow-oom
-- KEYS: Q, per message what remembers it   ARGV: how long (ms) to remember, messages
local reason = no_queue(KEYS[1])
if reason then return refusal(KEYS[1], reason) end
for n = 2, #KEYS do
  if redis.call('SET', KEYS[n], '', 'PX', ARGV[1], 'NX') then redis.call('RPUSH', KEYS[1], ARGV[n]) end
end
return 1

--@ arrived allow-oom
-- KEYS: those on their way, dead letter of the delayed set   ARGV: size of that, then per message: number body error
-- Crosses them out; those that cannot land go to the dead letter.
for at = 2, #ARGV, 3 do
  local is_here = redis.call('ZREM', KEYS[1], ARGV[at] .. ':' .. ARGV[at + 1]) == 1
  if is_here and ARGV[at + 2] ~= '' then
    bury(KEYS[2], ARGV[1], 'wrong_key', ARGV[at + 2], '', '0:' .. ARGV[at + 1])
  end
end
return 1

--@ release allow-oom
-- KEYS: Q, proc, workers, again, inbox   ARGV: worker, "1" when something that it sent may still be under way
-- Gives back all that a worker holds, in order, at the head, and forgets the worker.
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[2] == '1' then redis.call('ZADD', KEYS[3], -clock(), ARGV[1]) end
local landed = redis.call('RPOP', KEYS[5])
while landed do
  if landed ~= '' then give_back(KEYS[1], KEYS[4], '1:' .. landed) end
  landed = redis.call('RPOP', KEYS[5])
end
local held = numbers(KEYS[2])
for n = #held, 1, -1 do give_back(KEYS[1], KEYS[4], redis.call('HGET', KEYS[2], held[n])) end
redis.call('DEL', KEYS[2])
return #held

--@ depth
-- KEYS: Q, workers, again, later, dead   ARGV: prefix of proc and inbox
-- Returns {ready, held, delayed here, dead}.
local reason = no_queue(KEYS[1])
if reason then return refusal(KEYS[1], reason) end
local ready, held = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[3]), 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  held = held + redis.call('LLEN', ARGV[1] .. 'inbox:' .. worker)
  held = held + math.max(redis.call('HLEN', ARGV[1] .. 'proc:' .. worker) - 1, 0)
end
return {ready, held, redis.call('ZCARD', KEYS[4]), redis.call('XLEN', KEYS[5])}

--@ routed
-- KEYS: delayed set   ARGV: queue, from, to   Returns {members looked at, how many of them are for the queue}.
local members = redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[3])
local needle, count = '"RoutingKey":"' .. ARGV[1] .. '"', 0
for _, body in ipairs(members) do
  if find(body, needle, 1, true) then count = count + 1 end
end
return {#members, count}

--@ purge
-- KEYS: Q, again   Returns how many messages were dropped.
local reason = no_queue(KEYS[1])
if reason then return refusal(KEYS[1], reason) end
local count = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[2])
redis.call('DEL', KEYS[1], KEYS[2])
return count

--@ requeue
-- KEYS: Q, dead   ARGV: ids   Returns how many were put back.
local reason = no_queue(KEYS[1])
if reason then return refusal(KEYS[1], reason) end
local count = 0
for _, id in ipairs(ARGV) do
  local found = redis.call('XRANGE', KEYS[2], id, id)[1]
  if found then
    local fields = found[2]
    for n = 1, #fields, 2 do
      if fields[n] == 'body' then redis.call('RPUSH', KEYS[1], fields[n + 1]) end
    end
    redis.call('XDEL', KEYS[2], id)
    count = count + 1
  end
end
return count
