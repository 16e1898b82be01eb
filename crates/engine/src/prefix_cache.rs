//! The contents of computed KV blocks, so that a prompt with the prefix of an earlier one need not be computed again. Knows
//! block ids and tokens only; the bytes are the model's.
//!
//! A block's keys and values follow from the adapters with their scales and from every token up to its end. These are its
//! cache key, written as a chain in which a block names its parent, with a salt that separates clients. Keys are compared whole,
//! not by a hash, so a block is never confused with one of another adapter or another text.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::cache_scope::{AdapterSet, CacheScope};

/// A block is kept for a client with few blocks while this many times the idle blocks become idle.
const KEPT_FOR: u64 = 8;

/// Names a content that was computed. An id is never reused, so a parent id means the same content or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContentId(u64);

#[derive(Debug, PartialEq, Eq, Hash)]
struct BlockKey {
    salt: Option<u128>,
    parent: Parent,
    tokens: Box<[u32]>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Parent {
    /// It is the first block of a sequence with these adapters.
    Start(AdapterSet),
    Block(ContentId),
}

/// The blocks whose contents are known, and which of them are idle: without a holder.
#[derive(Default)]
pub(crate) struct PrefixCache {
    blocks: HashMap<Arc<BlockKey>, (u32, ContentId)>,
    /// The key of each block that is in `blocks`.
    keys: HashMap<u32, Arc<BlockKey>>,
    /// The idle blocks of each salt, by when they were released; the longest ago is evicted first.
    idle: BTreeMap<Option<u128>, BTreeMap<u64, u32>>,
    idle_since: HashMap<u32, u64>,
    clock: u64,
    next_content: u64,
}

impl PrefixCache {
    /// The block with `part`, which ends before the token `end`, after `parent` or at the start of a sequence of this scope.
    pub fn find(
        &self,
        scope: &CacheScope,
        parent: Option<ContentId>,
        part: &[u32],
        end: usize,
    ) -> Option<(u32, ContentId)> {
        self.blocks.get(&key(scope, parent, part, end)).copied()
    }

    /// Records that `block` holds `part`. The content must not be in the cache yet.
    pub fn insert(
        &mut self,
        scope: &CacheScope,
        parent: Option<ContentId>,
        part: &[u32],
        end: usize,
        block: u32,
    ) -> ContentId {
        let content = ContentId(self.next_content);
        self.next_content += 1;
        let key = Arc::new(key(scope, parent, part, end));
        self.keys.insert(block, Arc::clone(&key));
        let before = self.blocks.insert(key, (block, content));
        debug_assert!(before.is_none(), "one content in two blocks");
        content
    }

    /// The block's last holder released it. Returns whether it stays cached; a block whose content is unknown does not.
    pub fn set_idle(&mut self, block: u32) -> bool {
        let Some(key) = self.keys.get(&block) else {
            return false;
        };
        let own = self.idle.entry(key.salt).or_default();
        own.insert(self.clock, block);
        self.idle_since.insert(block, self.clock);
        self.clock += 1;
        true
    }

    /// The block has a holder again.
    pub fn set_held(&mut self, block: u32) {
        if let Some(since) = self.idle_since.remove(&block)
            && let Some(key) = self.keys.get(&block)
            && let Some(own) = self.idle.get_mut(&key.salt)
        {
            own.remove(&since);
            if own.is_empty() {
                self.idle.remove(&key.salt);
            }
        }
    }

    /// Evicts a block and returns it: of the salt with the most idle blocks, the one that has been idle for longest. So a client
    /// with many prompts does not evict those of another with few; but a block that has been idle for long goes first.
    pub fn evict(&mut self) -> Option<u32> {
        let firsts = self.idle.iter().filter_map(|(salt, own)| {
            let (since, _) = own.first_key_value()?;
            Some((*since, own.len(), *salt))
        });
        let firsts: Vec<_> = firsts.collect();
        let (oldest, _, its_salt) = *firsts.iter().min()?;
        let is_stale = self.clock - oldest > KEPT_FOR * self.idle_since.len() as u64;
        let (_, _, largest) = *firsts
            .iter()
            .max_by_key(|(since, count, _)| (*count, u64::MAX - since))?;
        let salt = if is_stale { its_salt } else { largest };
        let own = self.idle.get_mut(&salt)?;
        let (_, block) = own.pop_first()?;
        if own.is_empty() {
            self.idle.remove(&salt);
        }
        self.idle_since.remove(&block);
        if let Some(key) = self.keys.remove(&block) {
            self.blocks.remove(&key);
        }
        Some(block)
    }

    /// The number of idle blocks.
    pub fn idle(&self) -> usize {
        self.idle_since.len()
    }
}

fn key(scope: &CacheScope, parent: Option<ContentId>, part: &[u32], end: usize) -> BlockKey {
    BlockKey {
        salt: scope.salt.of_block(end),
        parent: parent.map_or_else(|| Parent::Start(Arc::clone(&scope.adapters)), Parent::Block),
        tokens: part.into(),
    }
}
