//! The blocks of the KV cache: who holds which. Knows ids only; the bytes are the model's.
//!
//! A [`BlockTable`] is the only way to hold blocks, and gives them back when it is dropped, so none can leak. Several tables
//! may hold one block, if what they computed begins alike ([`crate::prefix`]); a block that nobody holds keeps what it holds
//! until its room is needed.
//!
//! Whoever holds a block holds all before it, and gives the last one back first. So a block is idle for at least as long as its
//! parent, is evicted before it, and every chain in the cache begins at its root.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::prefix::{Content, Prefixes, Root};

/// All blocks, shared with every table that holds some.
#[derive(Clone)]
pub(crate) struct BlockPool {
    shared: Arc<Mutex<Shared>>,
    blocks: usize,
    block_tokens: usize,
    /// Whether what was computed is kept.
    keep: bool,
}

struct Shared {
    /// Blocks that hold nothing known.
    empty: Vec<u32>,
    /// How many tables hold each block.
    holders: Vec<u32>,
    prefixes: Prefixes,
    evictions: u64,
}

/// There are not enough free blocks; nothing was taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfBlocks;

impl BlockPool {
    /// A pool of `blocks` free blocks, each for `block_tokens` tokens. With `keep`, computed blocks are found again.
    pub fn new(blocks: usize, block_tokens: usize, keep: bool) -> Self {
        let shared = Shared {
            empty: (0..blocks as u32).rev().collect(),
            holders: vec![0; blocks],
            prefixes: Prefixes::default(),
            evictions: 0,
        };
        BlockPool {
            shared: Arc::new(Mutex::new(shared)),
            blocks,
            block_tokens,
            keep,
        }
    }

    /// How many blocks `tokens` tokens take.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.lock().free()
    }

    /// Blocks that nobody holds and whose contents are kept.
    pub fn cached(&self) -> usize {
        self.lock().prefixes.idle()
    }

    /// How often a kept content made room.
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
        self.empty.len() + self.prefixes.idle()
    }

    /// One more holder of a block whose content is known.
    fn hold(&mut self, block: u32) {
        self.prefixes.set_held(block);
        self.holders[block as usize] += 1;
    }

    /// A block to write to.
    fn take(&mut self) -> Option<u32> {
        let block = self.empty.pop().or_else(|| {
            self.evictions += u64::from(self.prefixes.idle() > 0);
            self.prefixes.evict()
        })?;
        self.holders[block as usize] = 1;
        Some(block)
    }

    fn give_back(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        if *holders == 0 && !self.prefixes.set_idle(block) {
            self.empty.push(block);
        }
    }
}

/// The blocks of one sequence, in the order of its positions.
#[derive(Default)]
pub(crate) struct BlockTable {
    pool: Option<BlockPool>,
    ids: Vec<u32>,
    /// The contents of the first blocks, as far as they are known.
    contents: Vec<Content>,
}

impl BlockTable {
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Holds the blocks that begin as `tokens` do, and says how many tokens they cover: never all, as the last one must run to
    /// give logits. Only for a table that holds nothing.
    pub fn reuse(&mut self, tokens: &[u32], root: &Root, pool: &BlockPool) -> usize {
        debug_assert!(self.ids.is_empty());
        if !pool.keep {
            return 0;
        }
        let mut shared = pool.lock();
        let before_last = &tokens[..tokens.len().saturating_sub(1)];
        for part in before_last.chunks_exact(pool.block_tokens) {
            let parent = self.contents.last().copied();
            let Some((block, content)) = shared.prefixes.find(root, parent, part) else {
                break;
            };
            shared.hold(block);
            self.ids.push(block);
            self.contents.push(content);
        }
        self.pool.get_or_insert_with(|| pool.clone());
        self.ids.len() * pool.block_tokens
    }

    /// Makes what `tokens` wrote into the full ones of these blocks known. Where the same is known of another block, that one is
    /// held instead.
    pub fn keep(&mut self, tokens: &[u32], root: &Root) {
        let Some(pool) = self.pool.as_ref().filter(|pool| pool.keep) else {
            return;
        };
        let full = tokens.chunks_exact(pool.block_tokens);
        if full.len() == self.contents.len() {
            return;
        }
        let mut shared = pool.lock();
        for (own, part) in self.ids.iter_mut().zip(full).skip(self.contents.len()) {
            let parent = self.contents.last().copied();
            let content = match shared.prefixes.find(root, parent, part) {
                Some((block, content)) => {
                    shared.hold(block);
                    shared.give_back(std::mem::replace(own, block));
                    content
                }
                None => shared.prefixes.add(root, parent, part, *own),
            };
            self.contents.push(content);
        }
    }

    /// Takes blocks from `pool` until the table covers `tokens` tokens; all that it lacks, or none.
    pub fn cover(&mut self, tokens: usize, pool: &BlockPool) -> Result<(), OutOfBlocks> {
        let lacking = pool.needed(tokens).saturating_sub(self.ids.len());
        if lacking == 0 {
            return Ok(());
        }
        let mut shared = pool.lock();
        if shared.free() < lacking {
            return Err(OutOfBlocks);
        }
        self.ids
            .extend(std::iter::from_fn(|| shared.take()).take(lacking));
        self.pool.get_or_insert_with(|| pool.clone());
        Ok(())
    }

    /// How many tokens its blocks have room for.
    pub fn room(&self, pool: &BlockPool) -> usize {
        self.ids.len() * pool.block_tokens
    }

    /// Gives all blocks back.
    pub fn release(&mut self) {
        if let Some(pool) = self.pool.take() {
            let mut shared = pool.lock();
            for block in self.ids.drain(..).rev() {
                shared.give_back(block);
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
    use crate::adapters::AdapterId;

    fn root(adapters: &[(u8, f32)]) -> Root {
        let bits = |(id, scale): &(u8, f32)| (AdapterId([*id; 32]), scale.to_bits());
        adapters.iter().map(bits).collect()
    }

    /// A table that has computed `tokens`.
    fn computed(tokens: &[u32], root: &Root, pool: &BlockPool) -> BlockTable {
        let mut table = BlockTable::default();
        table.reuse(tokens, root, pool);
        table.cover(tokens.len(), pool).unwrap();
        table.keep(tokens, root);
        table
    }

    fn found(tokens: &[u32], root: &Root, pool: &BlockPool) -> usize {
        BlockTable::default().reuse(tokens, root, pool)
    }

    #[test]
    fn covers_in_whole_blocks_and_takes_all_or_nothing() {
        let pool = BlockPool::new(4, 16, true);
        let mut first = BlockTable::default();
        first.cover(17, &pool).unwrap();
        assert_eq!(first.ids(), [0, 1]);
        first.cover(32, &pool).unwrap();
        assert_eq!(first.ids().len(), 2);
        let mut second = BlockTable::default();
        assert_eq!(second.cover(33, &pool), Err(OutOfBlocks));
        assert_eq!((second.ids().len(), pool.free()), (0, 2));
        second.cover(32, &pool).unwrap();
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn a_dropped_or_released_table_gives_every_block_back_once() {
        let pool = BlockPool::new(8, 4, true);
        {
            let mut table = BlockTable::default();
            table.cover(32, &pool).unwrap();
            table.release();
            table.release();
            assert_eq!(pool.free(), 8);
            table.cover(5, &pool).unwrap();
        }
        let mut all = BlockTable::default();
        all.cover(32, &pool).unwrap();
        let mut ids = all.ids().to_vec();
        ids.sort_unstable();
        assert_eq!(ids, (0..8).collect::<Vec<u32>>());
    }

    #[test]
    fn a_beginning_is_found_under_the_same_adapters_only() {
        let pool = BlockPool::new(16, 4, true);
        let warm = root(&[(1, 1.0)]);
        let tokens: Vec<u32> = (0..14).collect();
        let held = computed(&tokens, &warm, &pool);
        assert_eq!(found(&tokens, &warm, &pool), 12);
        // The last token must run, so a prompt of whole blocks finds one less.
        assert_eq!(found(&tokens[..12], &warm, &pool), 8);
        drop(held);
        assert_eq!((pool.free(), pool.cached()), (16, 3));
        assert_eq!(found(&tokens, &warm, &pool), 12);
        for other in [
            root(&[]),
            root(&[(2, 1.0)]),
            root(&[(1, 0.5)]),
            root(&[(1, 1.0), (2, 1.0)]),
        ] {
            assert_eq!(found(&tokens, &other, &pool), 0);
        }
        let mut changed = tokens.clone();
        changed[5] = 99;
        assert_eq!(found(&changed, &warm, &pool), 4);
        // The same block of tokens at another place is another content.
        assert_eq!(found(&tokens[4..], &warm, &pool), 0);
    }

    #[test]
    fn two_that_computed_the_same_hold_one_block_in_the_end() {
        let pool = BlockPool::new(8, 4, true);
        let root = root(&[]);
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let [mut first, mut second] = [(); 2].map(|()| {
            let mut table = BlockTable::default();
            table.cover(tokens.len(), &pool).unwrap();
            table
        });
        assert_eq!(pool.free(), 2);
        first.keep(&tokens[..4], &root);
        second.keep(&tokens[..8], &root);
        first.keep(&tokens[..8], &root);
        assert_eq!(first.ids()[..2], second.ids()[..2]);
        assert_ne!(first.ids()[2], second.ids()[2]);
        assert_eq!(pool.free(), 4);
        drop(first);
        assert_eq!(pool.free(), 5);
        drop(second);
        assert_eq!((pool.free(), pool.cached()), (8, 2));
    }

    #[test]
    fn room_is_made_from_the_end_of_what_nobody_held_for_longest() {
        let pool = BlockPool::new(6, 4, true);
        let root = root(&[]);
        let [old, new] = [100, 200].map(|first| (first..first + 9).collect::<Vec<u32>>());
        drop(computed(&old, &root, &pool));
        drop(computed(&new, &root, &pool));
        assert_eq!((pool.free(), pool.cached()), (6, 4));
        let mut table = BlockTable::default();
        table.cover(12, &pool).unwrap();
        assert_eq!(pool.evictions(), 1);
        assert_eq!(
            (found(&old, &root, &pool), found(&new, &root, &pool)),
            (4, 8)
        );
        // What someone holds is never taken.
        let mut held = BlockTable::default();
        assert_eq!(held.reuse(&old, &root, &pool), 4);
        let mut more = BlockTable::default();
        assert_eq!(more.cover(12, &pool), Err(OutOfBlocks));
        more.cover(8, &pool).unwrap();
        assert_eq!((pool.free(), found(&old, &root, &pool)), (0, 4));
    }

    #[test]
    fn nothing_is_kept_where_that_is_switched_off() {
        let pool = BlockPool::new(6, 4, false);
        let root = root(&[]);
        drop(computed(&[1, 2, 3, 4, 5], &root, &pool));
        assert_eq!(found(&[1, 2, 3, 4, 5], &root, &pool), 0);
        assert_eq!(pool.cached(), 0);
    }
}
