//! What computed blocks hold, so that a prompt that begins as another did need not be computed again. Knows ids and tokens
//! only; the bytes are the model's.
//!
//! A block's keys and values follow from the adapters with their scales and from every token up to its end: that is its key,
//! written as a chain, a block naming its parent. Keys are compared whole, not by a hash of theirs, so a block is never taken
//! for that of another tone, version or text.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::adapters::AdapterId;

/// Under which weights a sequence runs: its adapters with the bits of their scales, in order.
pub(crate) type Root = Arc<[(AdapterId, u32)]>;

/// A content that was computed once. Numbers are never used again, so a chain leads where it led or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Content(u64);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    tokens: Box<[u32]>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Parent {
    Root(Root),
    Block(Content),
}

/// The blocks whose contents are known, and which of them nobody holds.
#[derive(Default)]
pub(crate) struct Prefixes {
    blocks: HashMap<Arc<Key>, (u32, Content)>,
    /// The key of each block that is in `blocks`.
    keys: HashMap<u32, Arc<Key>>,
    /// The blocks that nobody holds, by when they were given back; the longest ago goes first.
    idle: BTreeMap<u64, u32>,
    idle_since: HashMap<u32, u64>,
    clock: u64,
    contents: u64,
}

impl Prefixes {
    /// The block with `tokens` after `parent`, or at the beginning under `root`.
    pub fn find(
        &self,
        root: &Root,
        parent: Option<Content>,
        tokens: &[u32],
    ) -> Option<(u32, Content)> {
        self.blocks.get(&key(root, parent, tokens)).copied()
    }

    /// Notes that `block` holds `tokens` after `parent`; what is there already must not be added again.
    pub fn add(
        &mut self,
        root: &Root,
        parent: Option<Content>,
        tokens: &[u32],
        block: u32,
    ) -> Content {
        let content = Content(self.contents);
        self.contents += 1;
        let key = Arc::new(key(root, parent, tokens));
        self.keys.insert(block, Arc::clone(&key));
        let before = self.blocks.insert(key, (block, content));
        debug_assert!(before.is_none(), "a content is in two blocks");
        content
    }

    /// The block's last holder let go. Whether it is kept: it is not if its content is unknown.
    pub fn set_idle(&mut self, block: u32) -> bool {
        if !self.keys.contains_key(&block) {
            return false;
        }
        self.idle.insert(self.clock, block);
        self.idle_since.insert(block, self.clock);
        self.clock += 1;
        true
    }

    /// Someone holds the block again.
    pub fn set_held(&mut self, block: u32) {
        if let Some(since) = self.idle_since.remove(&block) {
            self.idle.remove(&since);
        }
    }

    /// Forgets what the block that nobody held for longest holds.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.idle.pop_first()?;
        self.idle_since.remove(&block);
        if let Some(key) = self.keys.remove(&block) {
            self.blocks.remove(&key);
        }
        Some(block)
    }

    /// How many known blocks nobody holds.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }
}

fn key(root: &Root, parent: Option<Content>, tokens: &[u32]) -> Key {
    Key {
        parent: parent.map_or_else(|| Parent::Root(Arc::clone(root)), Parent::Block),
        tokens: tokens.into(),
    }
}
