"""The Lua scripts by which a consumer changes the stream; each is atomic, and works on a Redis that is full.

Scripts, not MULTI: a full Redis refuses to queue any command, while a script that has written once may go on writing.
Where one of these has to add something, it begins with an XACK of an id that no entry has. What is moved is counted in
the same script (`app/count.py`).

Keys are always: the stream, the dead letters, the index of dead events, the hash of their sizes (`app/size.py`). Of the
arguments the first two are always: the group, the consumer.
"""

from app import count, size

_KEYS = "local stream, letters, index, hash, group, me = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1], ARGV[2]\n"

# Who owns an entry, and how often it was delivered.
_PENDING = """
local function pending(id)
  local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if row then return row[2], row[4] end
end
"""

# An event has one letter, however often it is buried. `fields`: names and values in turn; `death`: those of its end;
# `kind`: as what its letter is counted, false for nothing. Of an entry that has more than a call takes arguments, which
# is none of ours, the letter has the first.
_BURY = count.LUA + size.COUNT + """
redis.call('XACK', stream, group, '0-1')
local function bury(fields, death, kind)
  local named = {}
  for i = 1, #fields, 2 do named[fields[i]] = fields[i + 1] end
  for i = #fields, 7001, -1 do fields[i] = nil end
  for i = 1, #death do fields[#fields + 1] = death[i] end
  local name = named.event_index and named.batch_id and named.batch_id .. '/' .. named.event_index
  local id = name and redis.call('HGET', index, name)
  local has_one = id and #redis.call('XRANGE', letters, id, id) > 0
  if not has_one then
    id = redis.call('XADD', letters, '*', unpack(fields))
    grow(hash, 'letters', bytes_of(fields))
    if name then redis.call('HSET', index, name, id) end
  elseif kind == 'buried' then
    kind = 'duplicate'
  else
    kind = false
  end
  if kind then count(string.sub(named.received_at, 1, 16), kind, named.count) end
end
"""

# Arguments: the id to read after, the byte budget, from how many deliveries on an entry is read alone, the most
# entries, how many were read just before.
# Redis reads by count alone and entries are of any size, so this takes one after the other until the budget is spent.
# Returns the bytes, and for each entry: id, fields (false if it was deleted), deliveries.
READ = _KEYS + """
local start, budget, suspect_at, most = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local entries, bytes, is_suspect = {}, 0, false
while bytes < budget and #entries < most and not is_suspect do
  local deliveries = 1
  if start ~= '>' then
    local row = redis.call('XPENDING', stream, group, '(' .. start, '+', 1, me)[1]
    if not row then break end
    deliveries = row[4] + 1
    is_suspect = deliveries >= suspect_at
    if is_suspect and #entries + ARGV[7] > 0 then break end
  end
  local reply = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', stream, start)
  local entry = reply and reply[1][2][1]
  if not entry then break end
  entries[#entries + 1] = {entry[1], entry[2], deliveries}
  if start ~= '>' then start = entry[1] end
  for i = 2, #(entry[2] or {}), 2 do bytes = bytes + #entry[2][i] end
end
return {bytes, entries}
"""

# Arguments: as what they are counted, as `count.packed` says; the bytes of all; ids in the stream's order. Releases
# those that are still the consumer's. In parts, as a call takes only so many arguments.
RELEASE = _KEYS + size.COUNT + """
local fields, which, events = unpack(cmsgpack.unpack(ARGV[3]))
local mine, sums, released = {}, {}, 0
for first = 5, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  for _, row in ipairs(redis.call('XPENDING', stream, group, ARGV[first], ARGV[last], 1000000, me)) do
    mine[row[1]] = true
  end
  local ids = {}
  for i = first, last do
    if mine[ARGV[i]] then
      ids[#ids + 1] = ARGV[i]
      sums[which[i - 4]] = (sums[which[i - 4]] or 0) + events[i - 4]
    end
  end
  if #ids > 0 then
    redis.call('XACK', stream, group, unpack(ids))
    redis.call('XDEL', stream, unpack(ids))
    released = released + #ids
  end
end
for place, field in ipairs(fields) do
  if sums[place] then redis.pcall('HINCRBY', '""" + count.KEY + """', field, sums[place]) end
end
if released > 0 then grow(hash, 'stream', 0 - math.floor(ARGV[4] * released / (#ARGV - 4))) end
return released
"""

# Arguments: how often they are to count as delivered, ids. Returns those that are still the consumer's, as if they had
# just been delivered to it.
KEEP = _KEYS + _PENDING + """
local kept = {}
for i = 4, #ARGV do
  if pending(ARGV[i]) == me then
    redis.call('XCLAIM', stream, group, me, 0, ARGV[i], 'RETRYCOUNT', ARGV[3], 'JUSTID')
    kept[#kept + 1] = ARGV[i]
  end
end
return kept
"""

# Arguments: a name to keep it under, from which others take it over as from a consumer that is gone; for how many ms it
# is to count as idle already; how often as delivered; an id. Gives an entry away, if it is still the consumer's.
SET_ASIDE = _KEYS + _PENDING + """
if pending(ARGV[6]) ~= me then return 0 end
redis.call('XCLAIM', stream, group, ARGV[3], 0, ARGV[6], 'IDLE', ARGV[4], 'RETRYCOUNT', ARGV[5], 'JUSTID')
return 1
"""

# Arguments: an id, the names and values of its death, its reason first. Moves the entry, whole, if it is still the
# consumer's.
BURY = _KEYS + _PENDING + _BURY + """
local id = ARGV[3]
local entry = redis.call('XRANGE', stream, id, id)[1]
if pending(id) ~= me or not entry then return 0 end
grow(hash, 'stream', -bytes_of(entry[2]))
bury(entry[2], {unpack(ARGV, 4)}, ARGV[5] ~= 'not_an_entry' and 'buried')
redis.call('XACK', stream, group, id)
redis.call('XDEL', stream, id)
return 1
"""

# Arguments: names and values of one letter. Adds it; its batch stays where it is.
BURY_EVENT = _KEYS + _BURY + """
bury({unpack(ARGV, 3)}, {}, 'buried_lone')
"""

# Arguments: from how many ms of idleness on, the id to begin at, how many entries to look at; the name of what is set
# aside, of which one is taken at a time, that which has waited longest; the prefix of names that keep what is of a
# format, and which of them may be taken; how many of what is set aside were taken just before.
# Takes over those that their consumers have not touched for so long; behind the last one, removes consumers that have
# not been seen for so long and have none. Deliveries stay what they were. Returns rows of an entry taken over (id, from
# whom), the number of entries that were deleted while they were pending, the names removed, and the id to go on after,
# or false; then how many entries are set aside, and how many are of formats that may not be taken.
# A name that may not be removed stays: nothing is lost by it. A full 6.2 refuses to, unless the script has written.
TAKE_OVER = _KEYS + """
local idle_ms, most, aside, prefix, known = ARGV[3], tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
local taken, lost, removed, next_aside = {}, 0, {}, {nil, nil, -1}
local function is_strange(name) return string.sub(name, 1, #prefix) == prefix and name ~= known end
local rows = redis.call('XPENDING', stream, group, 'IDLE', idle_ms, ARGV[4], '+', most)
for _, row in ipairs(rows) do
  if row[2] == aside and ARGV[9] == '0' and row[3] > next_aside[3] then next_aside = row end
end
for _, row in ipairs(rows) do
  if row[2] ~= me and not is_strange(row[2]) and (row[2] ~= aside or row == next_aside) then
    local claimed = redis.call('XCLAIM', stream, group, me, idle_ms, row[1], 'RETRYCOUNT', row[4], 'JUSTID')
    if #claimed > 0 then
      taken[#taken + 1] = {row[1], row[2]}
    else
      lost = lost + 1
    end
  end
end
if #rows == most then return {taken, lost, removed, rows[most][1], 0, 0} end
redis.call('XACK', stream, group, '0-1')
local aside_count, strange_count = 0, 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local one = {}
  for i = 1, #info, 2 do one[info[i]] = info[i + 1] end
  if one.name == aside then aside_count = one.pending end
  if is_strange(one.name) then strange_count = strange_count + one.pending end
  if one.name ~= me and one.pending == 0 and one.idle >= tonumber(idle_ms) then
    local dropped = redis.pcall('XGROUP', 'DELCONSUMER', stream, group, one.name)
    if type(dropped) == 'number' then removed[#removed + 1] = one.name end
  end
end
return {taken, lost, removed, false, aside_count, strange_count}
"""
