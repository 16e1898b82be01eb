//! The blocks of the KV cache: which sequence holds which. Knows block ids only; the bytes are the model's.
//!
//! A [`BlockTable`] is the only way to hold blocks, and releases them when it is dropped, so none can leak. Several tables
//! may hold one block if their sequences have the same prefix (`prefix_cache`). A block without a holder keeps its content
//! until its room is needed.
//!
//! A table that holds a block holds all blocks before it, and releases the last one first. So a block is idle for at least as
//! long as its parent and, if both have one salt, is evicted before it. A block whose parent is gone is not found any more, and is
//! evicted in its turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cache_scope::CacheScope;
use crate::prefix_cache::{ContentId, PrefixCache};

/// All blocks, shared with every table that holds some.
#[derive(Clone)]
pub(crate) struct BlockPool {
    shared: Arc<Mutex<Shared>>,
    blocks: usize,
    block_tokens: usize,
    /// Whether computed blocks enter the prefix cache.
    caching: bool,
}

struct Shared {
    /// Blocks whose content is not cached and that no table holds.
    empty: Vec<u32>,
    /// How many tables hold each block.
    holders: Vec<u32>,
    cache: PrefixCache,
    evictions: u64,
}

/// There are not enough free blocks; nothing was allocated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfBlocks;

impl BlockPool {
    /// A pool of `blocks` free blocks, each for `block_tokens` tokens. With `caching`, computed blocks are reused.
    pub fn new(blocks: usize, block_tokens: usize, caching: bool) -> Self {
        let shared = Shared {
            empty: (0..blocks as u32).rev().collect(),
            holders: vec![0; blocks],
            cache: PrefixCache::default(),
            evictions: 0,
        };
        BlockPool {
            shared: Arc::new(Mutex::new(shared)),
            blocks,
            block_tokens,
            caching,
        }
    }

    /// The number of blocks that `tokens` tokens take.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks without a holder.
    pub fn free(&self) -> usize {
        self.lock().free()
    }

    /// Blocks without a holder whose content is cached.
    pub fn cached(&self) -> usize {
        self.lock().cache.idle()
    }

    /// How many cached blocks were evicted.
    pub fn evictions(&self) -> u64 {
        self.lock().evictions
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn free(&self) -> usize {
        self.empty.len() + self.cache.idle()
    }

    /// Adds a holder to a block whose content is cached.
    fn hold(&mut self, block: u32) {
        self.cache.set_held(block);
        self.holders[block as usize] += 1;
    }

    /// A block to write to.
    fn allocate(&mut self) -> Option<u32> {
        let block = self.empty.pop().or_else(|| {
            self.evictions += u64::from(self.cache.idle() > 0);
            self.cache.evict()
        })?;
        self.holders[block as usize] = 1;
        Some(block)
    }

    fn release(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        if *holders == 0 && !self.cache.set_idle(block) {
            self.empty.push(block);
        }
    }
}

/// The blocks of one sequence, in the order of its positions.
#[derive(Default)]
pub(crate) struct BlockTable {
    pool: Option<BlockPool>,
    ids: Vec<u32>,
    /// The cached contents of the first blocks.
    contents: Vec<ContentId>,
}

impl BlockTable {
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Takes the cached blocks of a prefix of `tokens`. Returns how many tokens they cover: never all, as the last one must run
    /// to give logits. Only for a table that holds nothing.
    pub fn reuse_prefix(&mut self, tokens: &[u32], scope: &CacheScope, pool: &BlockPool) -> usize {
        debug_assert!(self.ids.is_empty());
        if !pool.caching {
            return 0;
        }
        let mut shared = pool.lock();
        let before_last = &tokens[..tokens.len().saturating_sub(1)];
        for part in before_last.chunks_exact(pool.block_tokens) {
            let parent = self.contents.last().copied();
            let end = (self.contents.len() + 1) * pool.block_tokens;
            let Some((block, content)) = shared.cache.find(scope, parent, part, end) else {
                break;
            };
            shared.hold(block);
            self.ids.push(block);
            self.contents.push(content);
        }
        self.pool.get_or_insert_with(|| pool.clone());
        self.ids.len() * pool.block_tokens
    }

    /// Inserts the full blocks into the prefix cache; `tokens` are those computed so far. A block whose content is cached
    /// already is replaced by the cached one.
    pub fn cache_full_blocks(&mut self, tokens: &[u32], scope: &CacheScope) {
        let Some(pool) = self.pool.as_ref().filter(|pool| pool.caching) else {
            return;
        };
        let full = tokens.chunks_exact(pool.block_tokens);
        if full.len() == self.contents.len() {
            return;
        }
        let mut shared = pool.lock();
        for (own, part) in self.ids.iter_mut().zip(full).skip(self.contents.len()) {
            let parent = self.contents.last().copied();
            let end = (self.contents.len() + 1) * pool.block_tokens;
            let content = match shared.cache.find(scope, parent, part, end) {
                Some((block, content)) => {
                    shared.hold(block);
                    shared.release(std::mem::replace(own, block));
                    content
                }
                None => shared.cache.insert(scope, parent, part, end, *own),
            };
            self.contents.push(content);
        }
    }

    /// Allocates blocks from `pool` until the table covers `tokens` tokens: all that are missing, or none.
    pub fn grow_to(&mut self, tokens: usize, pool: &BlockPool) -> Result<(), OutOfBlocks> {
        let missing = pool.needed(tokens).saturating_sub(self.ids.len());
        if missing == 0 {
            return Ok(());
        }
        let mut shared = pool.lock();
        if shared.free() < missing {
            return Err(OutOfBlocks);
        }
        self.ids
            .extend(std::iter::from_fn(|| shared.allocate()).take(missing));
        self.pool.get_or_insert_with(|| pool.clone());
        Ok(())
    }

    /// How many tokens its blocks hold.
    pub fn capacity(&self, pool: &BlockPool) -> usize {
        self.ids.len() * pool.block_tokens
    }

    /// Releases all blocks.
    pub fn release(&mut self) {
        if let Some(pool) = self.pool.take() {
            let mut shared = pool.lock();
            for block in self.ids.drain(..).rev() {
                shared.release(block);
            }
            self.contents.clear();
        }
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter_id::AdapterId;
    use crate::cache_scope::CacheSalt;

    fn adapters(adapters: &[(u8, f32)]) -> CacheScope {
        let bits = |(id, scale): &(u8, f32)| (AdapterId([*id; 32]), scale.to_bits());
        CacheScope {
            adapters: adapters.iter().map(bits).collect(),
            salt: CacheSalt::default(),
        }
    }

    /// A table that has computed `tokens`.
    fn computed(tokens: &[u32], scope: &CacheScope, pool: &BlockPool) -> BlockTable {
        let mut table = BlockTable::default();
        table.reuse_prefix(tokens, scope, pool);
        table.grow_to(tokens.len(), pool).unwrap();
        table.cache_full_blocks(tokens, scope);
        table
    }

    /// How many of the tokens are cached.
    fn cached(tokens: &[u32], scope: &CacheScope, pool: &BlockPool) -> usize {
        BlockTable::default().reuse_prefix(tokens, scope, pool)
    }

    #[test]
    fn table_grows_by_whole_blocks_all_or_nothing() {
        let pool = BlockPool::new(4, 16, true);
        let mut first = BlockTable::default();
        first.grow_to(17, &pool).unwrap();
        assert_eq!(first.ids(), [0, 1]);
        first.grow_to(32, &pool).unwrap();
        assert_eq!(first.ids().len(), 2);
        let mut second = BlockTable::default();
        assert_eq!(second.grow_to(33, &pool), Err(OutOfBlocks));
        assert_eq!((second.ids().len(), pool.free()), (0, 2));
        second.grow_to(32, &pool).unwrap();
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn dropped_or_released_table_releases_every_block_once() {
        let pool = BlockPool::new(8, 4, true);
        {
            let mut table = BlockTable::default();
            table.grow_to(32, &pool).unwrap();
            table.release();
            table.release();
            assert_eq!(pool.free(), 8);
            table.grow_to(5, &pool).unwrap();
        }
        let mut all = BlockTable::default();
        all.grow_to(32, &pool).unwrap();
        let mut ids = all.ids().to_vec();
        ids.sort_unstable();
        assert_eq!(ids, (0..8).collect::<Vec<u32>>());
    }

    #[test]
    fn prefix_is_reused_under_the_same_adapters_only() {
        let pool = BlockPool::new(16, 4, true);
        let warm = adapters(&[(1, 1.0)]);
        let tokens: Vec<u32> = (0..14).collect();
        let held = computed(&tokens, &warm, &pool);
        assert_eq!(cached(&tokens, &warm, &pool), 12);
        // The last token must run, so a prompt of whole blocks reuses one less.
        assert_eq!(cached(&tokens[..12], &warm, &pool), 8);
        drop(held);
        assert_eq!((pool.free(), pool.cached()), (16, 3));
        assert_eq!(cached(&tokens, &warm, &pool), 12);
        for other in [
            adapters(&[]),
            adapters(&[(2, 1.0)]),
            adapters(&[(1, 0.5)]),
            adapters(&[(1, 1.0), (2, 1.0)]),
        ] {
            assert_eq!(cached(&tokens, &other, &pool), 0);
        }
        let mut changed = tokens.clone();
        changed[5] = 99;
        assert_eq!(cached(&changed, &warm, &pool), 4);
        // The same tokens at another position are another content.
        assert_eq!(cached(&tokens[4..], &warm, &pool), 0);
    }

    #[test]
    fn two_tables_with_the_same_content_end_up_sharing_one_block() {
        let pool = BlockPool::new(8, 4, true);
        let base = adapters(&[]);
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let [mut first, mut second] = [(); 2].map(|()| {
            let mut table = BlockTable::default();
            table.grow_to(tokens.len(), &pool).unwrap();
            table
        });
        assert_eq!(pool.free(), 2);
        first.cache_full_blocks(&tokens[..4], &base);
        second.cache_full_blocks(&tokens[..8], &base);
        first.cache_full_blocks(&tokens[..8], &base);
        assert_eq!(first.ids()[..2], second.ids()[..2]);
        assert_ne!(first.ids()[2], second.ids()[2]);
        assert_eq!(pool.free(), 4);
        drop(first);
        assert_eq!(pool.free(), 5);
        drop(second);
        assert_eq!((pool.free(), pool.cached()), (8, 2));
    }

    #[test]
    fn the_chain_idle_for_longest_is_evicted_from_its_end() {
        let pool = BlockPool::new(6, 4, true);
        let base = adapters(&[]);
        let [old, new] = [100, 200].map(|first| (first..first + 9).collect::<Vec<u32>>());
        drop(computed(&old, &base, &pool));
        drop(computed(&new, &base, &pool));
        assert_eq!((pool.free(), pool.cached()), (6, 4));
        let mut table = BlockTable::default();
        table.grow_to(12, &pool).unwrap();
        assert_eq!(pool.evictions(), 1);
        assert_eq!(
            (cached(&old, &base, &pool), cached(&new, &base, &pool)),
            (4, 8)
        );
        // A block with a holder is never evicted.
        let mut held = BlockTable::default();
        assert_eq!(held.reuse_prefix(&old, &base, &pool), 4);
        let mut more = BlockTable::default();
        assert_eq!(more.grow_to(12, &pool), Err(OutOfBlocks));
        more.grow_to(8, &pool).unwrap();
        assert_eq!((pool.free(), cached(&old, &base, &pool)), (0, 4));
    }

    #[test]
    fn client_with_many_prompts_does_not_evict_those_of_a_client_with_few() {
        let pool = BlockPool::new(20, 4, true);
        let scope = |own| CacheScope {
            salt: CacheSalt {
                own: Some(own),
                ..CacheSalt::default()
            },
            ..adapters(&[])
        };
        let (hostile, other) = (scope(1), scope(2));
        let prompt = |first: u32| (first..first + 9).collect::<Vec<u32>>();
        drop(computed(&prompt(7), &other, &pool));
        for n in 0..60 {
            drop(computed(&prompt(100 * n), &hostile, &pool));
        }
        assert_eq!(cached(&prompt(7), &other, &pool), 8);
        // Once nobody has asked for it for long, its room is used.
        for n in 0..200 {
            drop(computed(&prompt(100 * n + 50), &hostile, &pool));
        }
        assert_eq!(cached(&prompt(7), &other, &pool), 0);
    }

    #[test]
    fn nothing_is_cached_when_caching_is_off() {
        let pool = BlockPool::new(6, 4, false);
        let base = adapters(&[]);
        drop(computed(&[1, 2, 3, 4, 5], &base, &pool));
        assert_eq!(cached(&[1, 2, 3, 4, 5], &base, &pool), 0);
        assert_eq!(pool.cached(), 0);
    }
}
