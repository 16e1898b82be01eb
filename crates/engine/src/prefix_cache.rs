//! The contents of computed KV blocks, so that a prompt with the prefix of an earlier one need not be computed again. Knows
//! block ids and tokens only; the bytes are the model's.
//!
//! A block's keys and values follow from the adapters with their scales and from every token up to its end. These are its
//! cache key, written as a chain in which a block names its parent. Keys are compared whole, not by a hash, so a block is
//! never confused with one of another adapter or another text.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::adapter_id::AdapterId;

/// The adapters of a sequence with the bits of their scales, in order.
pub(crate) type AdapterSet = Arc<[(AdapterId, u32)]>;

/// Names a content that was computed. An id is never reused, so a parent id means the same content or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContentId(u64);

#[derive(Debug, PartialEq, Eq, Hash)]
struct BlockKey {
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
    /// Idle blocks by when they were released; the longest ago is evicted first.
    idle: BTreeMap<u64, u32>,
    idle_since: HashMap<u32, u64>,
    clock: u64,
    next_content: u64,
}

impl PrefixCache {
    /// The block with `tokens` after `parent`, or at the start of a sequence with these adapters.
    pub fn find(
        &self,
        adapters: &AdapterSet,
        parent: Option<ContentId>,
        tokens: &[u32],
    ) -> Option<(u32, ContentId)> {
        self.blocks.get(&key(adapters, parent, tokens)).copied()
    }

    /// Records that `block` holds `tokens` after `parent`. The content must not be in the cache yet.
    pub fn insert(
        &mut self,
        adapters: &AdapterSet,
        parent: Option<ContentId>,
        tokens: &[u32],
        block: u32,
    ) -> ContentId {
        let content = ContentId(self.next_content);
        self.next_content += 1;
        let key = Arc::new(key(adapters, parent, tokens));
        self.keys.insert(block, Arc::clone(&key));
        let before = self.blocks.insert(key, (block, content));
        debug_assert!(before.is_none(), "one content in two blocks");
        content
    }

    /// The block's last holder released it. Returns whether it stays cached; a block whose content is unknown does not.
    pub fn set_idle(&mut self, block: u32) -> bool {
        if !self.keys.contains_key(&block) {
            return false;
        }
        self.idle.insert(self.clock, block);
        self.idle_since.insert(block, self.clock);
        self.clock += 1;
        true
    }

    /// The block has a holder again.
    pub fn set_held(&mut self, block: u32) {
        if let Some(since) = self.idle_since.remove(&block) {
            self.idle.remove(&since);
        }
    }

    /// Evicts the block that has been idle for longest, and returns it.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.idle.pop_first()?;
        self.idle_since.remove(&block);
        if let Some(key) = self.keys.remove(&block) {
            self.blocks.remove(&key);
        }
        Some(block)
    }

    /// The number of idle blocks.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }
}

fn key(adapters: &AdapterSet, parent: Option<ContentId>, tokens: &[u32]) -> BlockKey {
    BlockKey {
        parent: parent.map_or_else(|| Parent::Start(Arc::clone(adapters)), Parent::Block),
        tokens: tokens.into(),
    }
}
