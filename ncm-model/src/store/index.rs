//! A hash index of slots that grows in small parts.
//!
//! One table of a million slots would pause and briefly hold three times its memory while it doubles. Many small ones
//! double one at a time; and as their number is no power of two, sizes between two powers of two are met better.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

const SHARDS: usize = 48;

/// Slots by the hash of a key that the slots lead to.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<HashTable<u32>>,
    hasher: DefaultHashBuilder,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl Index {
    fn shard(hash: u64) -> usize {
        // The tables themselves use the lowest and the seven highest bits.
        ((((hash >> 16) & 0xffff_ffff) * SHARDS as u64) >> 32) as usize
    }

    /// Makes room for `count` slots in an index that is empty or nearly so.
    pub(crate) fn expect(&mut self, count: usize) {
        let each = count / SHARDS;
        // Slots spread unevenly: by no more than four standard deviations.
        let each = each + 4 * each.isqrt();
        for shard in self.shards.iter_mut().filter(|shard| shard.is_empty()) {
            // Nothing is in it that would have to move.
            shard.reserve(each, |_| 0);
        }
    }

    /// The slot for `key`.
    pub(crate) fn find<K: Hash>(&self, key: &K, eq: impl FnMut(&u32) -> bool) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.shards[Self::shard(hash)].find(hash, eq).copied()
    }

    /// The place of the slot for `key`, to be changed.
    pub(crate) fn find_mut<K: Hash>(&mut self, key: &K, eq: impl FnMut(&u32) -> bool) -> Option<&mut u32> {
        let hash = self.hasher.hash_one(key);
        self.shards[Self::shard(hash)].find_mut(hash, eq)
    }

    /// Adds a slot whose key is not in the index; `key_of` tells the keys of slots that have to move.
    pub(crate) fn insert<K: Hash>(&mut self, key: &K, slot: u32, key_of: impl Fn(u32) -> K) {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(key);
        self.shards[Self::shard(hash)].insert_unique(hash, slot, |slot| hasher.hash_one(key_of(*slot)));
    }

    /// Removes the slot for `key`.
    pub(crate) fn remove<K: Hash>(&mut self, key: &K, eq: impl FnMut(&u32) -> bool) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        let shard = &mut self.shards[Self::shard(hash)];
        let (slot, _) = shard.find_entry(hash, eq).ok()?.remove();
        if shard.is_empty() {
            *shard = HashTable::new();
        }
        Some(slot)
    }
}
