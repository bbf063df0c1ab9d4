//! What runs inside the server: each script is one step that nobody else comes between, and its writes are one transaction of the
//! append-only file.
//!
//! Invariant: a script checks everything before its first write, so one that refuses has changed nothing.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, cmd};

use super::failure::failed;
use crate::Result;

/// What every script on a topic begins with. KEYS: topic, ends. ARGV: mark.
const TOPIC: &str = "
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return {'absent'} end
if kind ~= 'hash' then return {'foreign', kind} end
local topic = redis.call('HMGET', KEYS[1], 'mark', 'incarnation', 'generations', 'epoch', 'partitions', 'sealed')
if topic[1] ~= ARGV[1] then return {'foreign', topic[1] or ''} end
";

/// Stores what is not stored yet. KEYS: topic, ends, stream. ARGV: mark, incarnation, epoch, partition, first sequence, largest record,
/// channel, topic; then id, type and bytes of each record.
const APPEND: &str = "
local partition, first = tonumber(ARGV[4]), tonumber(ARGV[5])
local last, largest = 0, 0
local field = redis.call('HGET', KEYS[2], ARGV[4])
if field then
    local a, b = string.match(field, '^(%d+) (%d+) ')
    last, largest = tonumber(a), tonumber(b)
end
local count = (#ARGV - 8) / 3
local stored = math.min(last + 1 - first, count)
local sealed = partition < tonumber(topic[6])
local state = {'refused', topic[2], topic[4], topic[5], sealed and 1 or 0, last}
if topic[2] ~= ARGV[2] or topic[4] ~= ARGV[3] or partition >= tonumber(topic[5]) or stored < 0 then return state end
for at = 0, stored - 1 do
    local id = string.format('%.0f-0', first + at)
    local found = redis.call('XRANGE', KEYS[3], id, id)[1]
    local expected = ARGV[9 + at * 3]
    if not found then
        local begins = redis.call('HGET', KEYS[1], 'begins:' .. ARGV[4])
        if begins and first + at < tonumber(string.match(begins, '^%d+')) then return {'trimmed', begins, first + at} end
    end
    if not found or found[2][2] ~= expected then return {'other', at, found and found[2][2] or ''} end
end
if stored == count then return {'stored', last} end
if sealed then return state end
for at = stored, count - 1 do
    local a = 9 + at * 3
    redis.call('XADD', KEYS[3], string.format('%.0f-0', first + at), 'id', ARGV[a], 'type', ARGV[a + 1], 'event', ARGV[a + 2])
end
last = first + count - 1
largest = math.max(largest, tonumber(ARGV[6]))
redis.call('HSET', KEYS[2], ARGV[4], string.format('%.0f %.0f ', last, largest) .. ARGV[6 + count * 3])
redis.call('PUBLISH', ARGV[7], string.format('%s %s:%.0f', ARGV[8], ARGV[4], last))
return {'stored', last}
";

/// Fences older writers. KEYS: topic, ends. ARGV: mark, incarnation, epoch. Says what was before, and the ends.
const RAISE: &str = "
if topic[2] == ARGV[2] and tonumber(ARGV[3]) > tonumber(topic[4]) then redis.call('HSET', KEYS[1], 'epoch', ARGV[3]) end
return {'topic', topic[2], topic[3], topic[4], redis.call('HGETALL', KEYS[2])}
";

/// Begins another generation if the topic is as expected. KEYS: topic, ends. ARGV: mark, incarnation, epoch, generations before and
/// after, partitions, sealed ones, which are those below.
const DIVIDE: &str = "
local expected = topic[2] == ARGV[2] and topic[4] == ARGV[3] and topic[3] == ARGV[4]
if expected then redis.call('HSET', KEYS[1], 'generations', ARGV[5], 'partitions', ARGV[6], 'sealed', ARGV[7]) end
return {'topic', topic[2], topic[3], topic[4]}
";

/// Makes a topic unless it is there. KEYS: topic, ends, topics, streams. ARGV: mark, incarnation, generations, partitions, sealed ones,
/// name.
const ENSURE: &str = "
if redis.call('EXISTS', KEYS[1]) == 0 then
    for at = 2, #KEYS do
        if at ~= 3 and redis.call('EXISTS', KEYS[at]) == 1 then return {'foreign', KEYS[at]} end
    end
    redis.call('SADD', KEYS[3], ARGV[6])
    redis.call('HSET', KEYS[1], 'mark', ARGV[1], 'incarnation', ARGV[2], 'generations', ARGV[3], 'epoch', '0',
        'partitions', ARGV[4], 'sealed', ARGV[5])
end
";
const ENSURED: &str = "return {'topic', topic[2], topic[3], topic[4]}\n";

/// Removes what lies before an entry, at most so many at once. KEYS: topic, ends, stream. ARGV: mark, incarnation, partition, sequence
/// and id of the entry that is to be the first, how many at once. Where it begins is written first, so that what a crash leaves is
/// removed by the next one. A server that is full must be able to do it, to make room.
///
/// A server that is full must be able to make room.
const TRIM: &str = "
local place, most = tonumber(ARGV[4]), tonumber(ARGV[6])
if topic[2] ~= ARGV[2] or tonumber(ARGV[3]) >= tonumber(topic[5]) then return {'refused', topic[2], topic[5]} end
local begins = redis.call('HGET', KEYS[1], 'begins:' .. ARGV[3])
local before = begins and tonumber(string.match(begins, '^%d+')) or 1
if place >= before then
    local id = string.format('%.0f-0', place)
    local found = redis.call('XRANGE', KEYS[3], id, id)[1]
    if not found or found[2][2] ~= ARGV[5] then
        return {'other', found and found[2][2] or '', redis.call('HGET', KEYS[2], ARGV[3]) or false}
    end
    if place > 1 then
        redis.call('HSET', KEYS[1], 'begins:' .. ARGV[3], string.format('%.0f ', place) .. ARGV[5])
        before = place
    end
end
local oldest = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
local first = oldest and tonumber(string.match(oldest[1], '^%d+')) or before
if first >= before then return {'trimmed'} end
redis.call('XTRIM', KEYS[3], 'MINID', string.format('%.0f-0', math.min(before, first + most)))
return {first + most < before and 'more' or 'trimmed'}
";

const TRIM_WHEN_FULL: &str = "#!lua flags=allow-oom\n";

/// Where a reader begins, of one moment: not a transaction, which a server that is full refuses. KEYS: topic, ends, stream. ARGV:
/// partition, place.
const LOOK: &str = "#!lua flags=no-writes,allow-oom
return {
    redis.call('HMGET', KEYS[1], 'mark', 'incarnation', 'partitions', 'begins:' .. ARGV[1]),
    redis.call('HGET', KEYS[2], ARGV[1]),
    redis.call('XRANGE', KEYS[3], ARGV[2], ARGV[2])
}
";

/// A topic and its ends, of one moment. KEYS: topic, ends.
const ENDS: &str = "#!lua flags=no-writes,allow-oom
return {redis.call('HMGET', KEYS[1], 'mark', 'incarnation', 'generations', 'epoch'), redis.call('HGETALL', KEYS[2])}
";

/// Tells everybody who hears a subject and one of each group. A member is passed over if its word is too old or nobody subscribes to its
/// channel. KEYS: the hash of the subject. ARGV: prefix of channels, content, a random number.
const SEND: &str = "
local now = tonumber(redis.call('TIME')[1])
local all = redis.call('HGETALL', KEYS[1])
local everybody, fields, groups, names, reached = {}, {}, {}, {}, 0
local function tell(handle, numbers) return redis.call('PUBLISH', ARGV[1] .. handle, numbers .. ' ' .. ARGV[2]) > 0 end
for at = 1, #all, 2 do
    local handle, number = string.match(all[at], '^(%S+) (%d+)$')
    local till, group = string.match(all[at + 1], '^(%d+) (.*)$')
    if tonumber(till) < now then
        redis.call('HDEL', KEYS[1], all[at])
    elseif group == '' then
        everybody[handle] = everybody[handle] and everybody[handle] .. ',' .. number or number
        fields[handle] = fields[handle] or {}
        table.insert(fields[handle], all[at])
    else
        if not groups[group] then groups[group] = {}; table.insert(names, group) end
        table.insert(groups[group], {all[at], handle, number})
    end
end
for handle, numbers in pairs(everybody) do
    if tell(handle, numbers) then reached = reached + 1 else redis.call('HDEL', KEYS[1], unpack(fields[handle])) end
end
for _, name in ipairs(names) do
    local members = groups[name]
    for at = 1, #members do
        local member = members[(tonumber(ARGV[3]) + at) % #members + 1]
        if tell(member[2], member[3]) then reached = reached + 1; break end
        redis.call('HDEL', KEYS[1], member[1])
    end
end
return reached
";

/// A script of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Ensure,
    Append,
    Raise,
    Divide,
    Trim,
    Look,
    Ends,
    Send,
}

/// The names under which a server keeps the scripts.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    names: Vec<(Script, String)>,
}

impl Script {
    const ALL: [Self; 8] = [
        Self::Ensure,
        Self::Append,
        Self::Raise,
        Self::Divide,
        Self::Trim,
        Self::Look,
        Self::Ends,
        Self::Send,
    ];

    fn text(self) -> String {
        match self {
            Self::Ensure => [ENSURE, TOPIC, ENSURED].concat(),
            Self::Append => [TOPIC, APPEND].concat(),
            Self::Raise => [TOPIC, RAISE].concat(),
            Self::Divide => [TOPIC, DIVIDE].concat(),
            Self::Trim => [TRIM_WHEN_FULL, TOPIC, TRIM].concat(),
            Self::Look => LOOK.to_owned(),
            Self::Ends => ENDS.to_owned(),
            Self::Send => SEND.to_owned(),
        }
    }
}

impl Scripts {
    /// Has the server keep them. It forgets them when it ends; then a connection ends too, and the next one does this again.
    pub(super) async fn load(
        connection: &mut MultiplexedConnection,
        change: impl Fn(Script, String) -> String,
    ) -> Result<Self> {
        let mut names = Vec::new();
        for script in Script::ALL {
            let text = change(script, script.text());
            let name = cmd("SCRIPT").arg("LOAD").arg(text).query_async(connection).await;
            names.push((script, name.map_err(|error| failed(&error))?));
        }
        Ok(Self { names })
    }

    /// A call of a script; its arguments follow.
    pub(super) fn call(&self, script: Script, keys: &[String]) -> Cmd {
        let name = self.names.iter().find(|(kept, _)| *kept == script);
        let mut call = cmd("EVALSHA");
        call.arg(name.map(|(_, name)| name.as_str()).unwrap_or_default()).arg(keys.len()).arg(keys);
        call
    }
}
