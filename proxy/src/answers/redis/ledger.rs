//! The hash of purges in Redis, and what is done to it there: changes are scripts, so that each is one.

use std::collections::HashMap;

use super::{
    link::{Link, Trouble},
    marks::{
        EPOCH, Hash, LATEST, Ledger, RETENTION, Seen, Written, hash, numbers, read_written, texts,
    },
    work::within,
};
use crate::answers::Purge;

/// The hash of purges. It can not be the key of an answer: those end in 64 digits.
const PURGES: &str = "outrigger:a1:purges";

/// Puts a mark beside purges, and takes those away that no answer can be older than. The server's clock gives the number,
/// unless a mark that is known is later. KEYS: the hash; ARGV: its two fields, the epoch that must be there, the latest mark
/// that is known, how long marks are kept, and a field and an identity for each purge.
const PURGE: &str = "\
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[3] then return false end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local latest = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or 0) or 0
local number = math.max(now, latest + 1, tonumber(ARGV[4]) + 1)
local mark = string.format('%.0f', number)
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local old = tonumber(string.match(all[at + 1], '^(%d+) %x+$') or mark)
  if old + tonumber(ARGV[5]) < number then
    redis.call('HDEL', KEYS[1], all[at])
  end
end
local written = {mark}
for at = 7, #ARGV, 2 do
  local id = ARGV[at + 1]
  local there = redis.call('HGET', KEYS[1], ARGV[at])
  if there and string.match(there, ' (%x+)$') ~= id then id = ARGV[6] end
  redis.call('HSET', KEYS[1], ARGV[at], mark .. ' ' .. id)
  table.insert(written, id)
end
redis.call('HSET', KEYS[1], ARGV[2], mark)
return written";

/// Begins an epoch, if nobody else has done so meanwhile. KEYS: the hash; ARGV: its two fields, the epoch that was seen (0
/// for none), the new one, the latest mark that is known.
const RENEW: &str = "\
local epoch = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if #epoch ~= 16 or string.find(epoch, '[^0-9a-f]') then epoch = '0000000000000000' end
if epoch ~= ARGV[3] then return end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local latest = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or 0) or 0
local mark = string.format('%.0f', math.max(now, latest + 1, tonumber(ARGV[5]) + 1))
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4], ARGV[2], mark)";

impl Ledger for Link {
    async fn seen(&mut self) -> Result<Seen, Trouble> {
        let mut command = redis::cmd("HMGET");
        command.arg(PURGES).arg(EPOCH).arg(LATEST);
        let (epoch, latest) = within("a look at the purges", self.ask(&command)).await?;
        let both = [(EPOCH, epoch), (LATEST, latest)].map(|(field, value): (&str, Option<_>)| {
            (field.as_bytes().to_vec(), value.unwrap_or_default())
        });
        Ok(hash(&both.into()).seen)
    }

    async fn all(&mut self) -> Result<Hash, Trouble> {
        let mut command = redis::cmd("HGETALL");
        command.arg(PURGES);
        let fields: HashMap<Vec<u8>, Vec<u8>> =
            within("a look at the purges", self.ask(&command)).await?;
        Ok(hash(&fields))
    }

    async fn renew(&mut self, from: Seen, to: u64) -> Result<(), Trouble> {
        let mut command = redis::cmd("EVAL");
        command.arg(RENEW).arg(1).arg(PURGES).arg(EPOCH).arg(LATEST);
        command.arg(numbers(from.epoch)).arg(numbers(to)).arg(from.latest);
        within("the beginning of an epoch", self.ask(&command)).await
    }

    async fn purge(
        &mut self,
        known: Seen,
        purges: &[(Purge, u64)],
        fresh: u64,
    ) -> Result<Option<Written>, Trouble> {
        let mut command = redis::cmd("EVAL");
        command.arg(PURGE).arg(1).arg(PURGES).arg(EPOCH).arg(LATEST);
        command.arg(numbers(known.epoch)).arg(known.latest).arg(RETENTION).arg(numbers(fresh));
        for (purge, id) in purges {
            let (field, id) = texts(purge, *id);
            command.arg(field).arg(id);
        }
        let written: Option<Vec<String>> = within("a purge", self.ask(&command)).await?;
        Ok(written.as_deref().and_then(read_written))
    }
}
