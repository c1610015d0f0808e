"""The Lua scripts of the Redis log; each is one atomic step.

A recording has three keys of one hash slot: `m`, a hash with its state; `d`, the stream of its bytes; `r`, a sorted set
of its readers by the second at which they expire. The ID of an entry of `d` is the position behind its bytes, as
`<end>-0`; that of the end marker is `<end>-1`. All times of expiry are milliseconds.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end
"""

#: Begin a recording. KEYS: m. ARGV: generation, first position, process, header, expiry, and for how long the recorder
#: counts as alive.
CREATE = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return end
redis.call('HSET', KEYS[1], 'gen', ARGV[1], 'end', ARGV[2], 'state', 'open', 'proc', ARGV[3], 'head', ARGV[4],
  'until', text(now + ARGV[6]))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
"""
)

_END = """
local function finish(at, reason, ttl, tombstone)
  redis.call('XADD', KEYS[2], at .. '-1', 'r', reason)
  redis.call('HSET', KEYS[1], 'state', reason)
  redis.call('PEXPIRE', KEYS[1], ttl + tombstone)
  redis.call('PEXPIRE', KEYS[2], ttl)
end
"""

#: Append bytes, and the end marker if there is a reason. KEYS: m, d, r. ARGV: generation, the end that is expected,
#: position of the bytes, bytes, most bytes kept, reason or "", expiry, expiry after the end, expiry of the tombstone,
#: and for how long the recorder counts as alive.
#: Returns what became of it: the number of readers, or a word and the state or end that was found.
APPEND = (
    _NOW
    + _END
    + """
local found = redis.call('HMGET', KEYS[1], 'gen', 'end', 'state')
if not found[1] then return {'missing', ''} end
if found[1] ~= ARGV[1] or found[3] ~= 'open' then return {'fenced', found[3]} end
if found[2] ~= ARGV[2] then return {'moved', found[2]} end
local behind = tonumber(ARGV[3]) + #ARGV[4]
if #ARGV[4] > 0 then
  local floor = text(math.max(0, behind - tonumber(ARGV[5])))
  redis.call('XADD', KEYS[2], 'MINID', '~', floor .. '-0', text(behind) .. '-0', 'b', ARGV[4])
end
redis.call('HSET', KEYS[1], 'end', text(behind), 'until', text(now + ARGV[10]))
if ARGV[6] ~= '' then
  finish(text(behind), ARGV[6], tonumber(ARGV[8]), tonumber(ARGV[9]))
else
  redis.call('PEXPIRE', KEYS[1], ARGV[7])
  redis.call('PEXPIRE', KEYS[2], ARGV[7])
end
return {'ok', redis.call('ZCOUNT', KEYS[3], time[1], '+inf')}
"""
)

#: End an open recording from another process. KEYS: m, d. ARGV: generation of a recorder that may be dead, then nothing
#: is done while it lives, or "" for any; reason, expiry after the end, expiry of the tombstone.
#: Returns the state and the end that it has then, nil if there is none.
END = (
    _NOW
    + _END
    + """
local found = redis.call('HMGET', KEYS[1], 'state', 'end', 'gen', 'until')
if not found[1] then return nil end
if found[1] == 'open' and (ARGV[1] == '' or (ARGV[1] == found[3] and tonumber(found[4]) < now)) then
  finish(found[2], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
  found[1] = ARGV[2]
end
return {found[1], found[2]}
"""
)

#: Erase a recording. KEYS: m, d, r. ARGV: expiry of the tombstone.
ERASE = """
redis.call('DEL', KEYS[2], KEYS[3])
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'state', 'erased')
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 1
"""

#: Return the state of a recording: header, state, end, generation, ID and bytes of the first entry.
#: KEYS: m, d. The last two are "" where there is none, the state is "" where the bytes have expired.
LOOK = """
local found = redis.call('HMGET', KEYS[1], 'head', 'state', 'end', 'gen')
if not found[1] then return nil end
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
found[5] = first and first[1] or ''
found[6] = first and first[2][1] == 'b' and #first[2][2] or 0
return found
"""

#: Return the number of readers. KEYS: r.
COUNT = "return redis.call('ZCOUNT', KEYS[1], redis.call('TIME')[1], '+inf')"

#: Return the claim of a key after setting it, if there was none or the one named. KEYS: the claim. ARGV: the new one,
#: the one to be replaced or "", expiry.
CLAIM = """
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[2] then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
"""

#: Delete a claim if it is the one named. KEYS: the claim. ARGV: the one named.
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
