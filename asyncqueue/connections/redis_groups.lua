-- Groups, as Machinery keeps them: one JSON text per UUID. Only the flag and the list of members in it are ever changed.
-- UUIDs have neither quotes nor brackets, and the fields stand in Go's order: a plain search finds both.
--
-- <group>              STRING  Machinery's GroupMeta
-- {<group>}:aq:left    SET     the members not known to have ended, and '', so that it is there when they all have; made
--                              when the first one ends
-- {<group>}:aq:claim   STRING  "<until, ms>:<owner>": who has triggered it, and is about to send what follows
--                              Both live as long as the group, or until what follows it is sent.
-- TriggerChordMutex    STRING  a Go worker has it while it looks whether some group is triggered, and triggers it
--
-- The last fields of a group, and the first ones of a state, are read without the rest: a group is as long as it has
-- members, a state as its results.

-- What scripts do with groups, in one table: made by those that need it. Functions take time to make, and most calls
-- have nothing to do with groups.
local function group_verbs()
  local mutex = 'TriggerChordMutex'

  -- the name of a key that belongs to another one, in its slot of a cluster
  local function companion(key, name)
    local tag = match(key, '^[^{]*{([^}]+)}')
    if tag then return '{' .. tag .. '}:aq:' .. key .. ':' .. name end
    return '{' .. key .. '}:aq:' .. name
  end

  -- never shorter than it was
  local function prolong(key, keep)
    local rest = redis.pcall('PTTL', key)
    if type(rest) == 'number' and rest >= 0 and rest < keep then redis.pcall('PEXPIRE', key, keep) end
  end

  local function prolong_group(group, keep)
    prolong(group, keep)
    prolong(companion(group, 'left'), keep)
    prolong(companion(group, 'claim'), keep)
  end

  local function live_as_long(key, group)
    local rest = redis.call('PTTL', group)
    if rest >= 0 then redis.call('PEXPIRE', key, rest) end
  end

  -- How a group stands: 'open', 'claimed', 'triggered' or 'none'; nil and the reason where something else is there.
  local function standing(group)
    local json = redis.pcall('GETRANGE', group, -200, -1)
    if type(json) == 'table' then return nil, json.err end
    if json == '' then return 'none' end
    local flag = match(json, '"ChordTriggered":(%a+),"Lock":')
    if not flag then return nil, 'WRONGTYPE: it holds no group' end
    if flag ~= 'true' then return 'open' end
    return redis.pcall('EXISTS', companion(group, 'claim')) == 1 and 'claimed' or 'triggered'
  end

  -- why a member cannot be counted: a key and the reason, or nil
  local function no_counting(group)
    local stands, reason = standing(group)
    if not stands then return group, reason end
    local left = companion(group, 'left')
    reason = unfit(left, 'set')
    if reason then return left, reason end
  end

  -- The UUIDs in a JSON list of them.
  local function listed(json, opening)
    local found = {}
    local _, from = find(json, opening, 1, true)
    local to = from and find(json, ']', from, true)
    if to then
      for id in string.gmatch(sub(json, from + 1, to - 1), '"([^"]*)"') do found[#found + 1] = id end
    end
    return found
  end

  local function members(json)
    return listed(json, '"TaskUUIDs":[')
  end

  local function drop_companions(group)
    redis.call('UNLINK', companion(group, 'left'), companion(group, 'claim'))
  end

  local function open(group, json, unit, keep)
    -- those of an earlier group of this UUID are not its own
    if redis.call('SET', group, json, unit, keep, 'NX') then drop_companions(group) end
  end

  -- The group is triggered from now on. `tombstone`: the entry of one that has none.
  local function trigger(group, tombstone, unit, keep)
    local json = redis.call('GET', group)
    if not json then return open(group, tombstone, unit, keep) end
    local from, to = find(json, '"ChordTriggered":false,"Lock":', 1, true)
    json = sub(json, 1, from - 1) .. '"ChordTriggered":true,"Lock":' .. sub(json, to + 1)
    redis.call('SET', group, json, 'KEEPTTL')
    prolong_group(group, milliseconds(unit, keep))
  end

  local function has_ended(task)
    local json = redis.pcall('GETRANGE', task, 0, 4095)
    return type(json) == 'string' and is_final(json)
  end

  -- The set of the members that are waited for, made if it is not there.
  local function waited_for(group)
    local left = companion(group, 'left')
    if redis.call('EXISTS', left) == 0 then
      local all = members(redis.call('GET', group))
      all[#all + 1] = ''
      push('SADD', left, all)
      live_as_long(left, group)
    end
    return left
  end

  -- Whether nobody is waited for any more. Members that have ended unseen are found by drawing some and looking at
  -- their states: each is found once, and whoever asks looks at one at most that has not.
  local function is_complete(left)
    local was_any
    repeat
      was_any = false
      for _, task in ipairs(redis.call('SRANDMEMBER', left, 2)) do
        if task ~= '' then
          if not has_ended(task) then return false end
          redis.call('SREM', left, task)
          was_any = true
        end
      end
    until not was_any
    return true
  end

  -- Count a member: how the group stands then.
  local function finish(group, task)
    local stands = standing(group)
    if stands == 'none' then return 'lost' end
    if stands == 'triggered' then return 'triggered' end
    local left = companion(group, 'left')
    if redis.call('SREM', left, task) == 0 then redis.call('SREM', waited_for(group), task) end
    return is_complete(left) and 'complete' or 'waiting'
  end

  -- Some of the members that are waited for, drawn at random; none where nobody is.
  local function drawn(left, count)
    local found = {}
    for _, task in ipairs(redis.call('SRANDMEMBER', left, count + 1)) do
      if task ~= '' then found[#found + 1] = task end
    end
    return found
  end

  -- Append those who are no members yet, and wait for them too.
  local function append(group, left, tasks)
    local json = redis.call('GET', group)
    local is_member, added = {}, {}
    for _, task in ipairs(members(json)) do is_member[task] = true end
    for _, task in ipairs(tasks) do
      if not is_member[task] then
        is_member[task] = true
        added[#added + 1] = task
      end
    end
    if #added > 0 then
      -- it is not complete, so that it has members
      local end_of_list = find(json, '"]', 1, true)
      json = sub(json, 1, end_of_list) .. ',"' .. table.concat(added, '","') .. sub(json, end_of_list)
      redis.call('SET', group, json, 'KEEPTTL')
      push('SADD', left, added)
    end
  end

  -- Whether an entry gains much by being kept as though it were written now, or when it is due.
  local function gains(id, unit, keep, due)
    local rest = redis.pcall('PTTL', id)
    local gain = type(rest) == 'number' and rest ~= -1 and milliseconds(lasting(unit, keep, due)) - rest
    return gain and gain >= milliseconds(unit, keep) / 4
  end

  -- What an entry is, 'group', 'plan' or 'other', and the UUIDs in it.
  local function kind_of(id)
    local opening = redis.pcall('GETRANGE', id, 0, 12)
    if opening == '{"GroupUUID":' then return 'group', members(redis.call('GET', id)) end
    if type(opening) == 'string' and sub(opening, 1, 10) == '{"AqIds":[' then
      return 'plan', listed(redis.call('GET', id), '{"AqIds":[')
    end
    return 'other', {}
  end

  -- Keep entries as though they were written now, or when they are due; unless the first of them gains little by that.
  local function touch(family, unit, keep, due)
    if not gains(family[1], unit, keep, due) then return end
    keep = milliseconds(lasting(unit, keep, due))
    local done = {}
    local function keep_alive(id)
      if done[id] then return end
      done[id] = true
      local kind, inner = kind_of(id)
      if kind == 'group' then
        prolong_group(id, keep)
        for _, task in ipairs(inner) do prolong(task, keep) end
        return
      end
      prolong(id, keep)
      for _, each in ipairs(inner) do keep_alive(each) end
    end
    for _, id in ipairs(family) do keep_alive(id) end
  end

  return {
    mutex = mutex,
    companion = companion,
    prolong = prolong,
    prolong_group = prolong_group,
    live_as_long = live_as_long,
    standing = standing,
    no_counting = no_counting,
    drop_companions = drop_companions,
    open = open,
    trigger = trigger,
    waited_for = waited_for,
    is_complete = is_complete,
    finish = finish,
    drawn = drawn,
    append = append,
    gains = gains,
    kind_of = kind_of,
    touch = touch,
  }
end
