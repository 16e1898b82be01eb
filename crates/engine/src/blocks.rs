//! The blocks of the KV cache: who holds which. Knows ids only; the bytes are the model's.
//!
//! A [`BlockTable`] is the only way to hold blocks, and gives them back when it is dropped, so none can leak.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The free blocks, shared with every table that took some.
#[derive(Clone)]
pub(crate) struct BlockPool {
    free: Arc<Mutex<Vec<u32>>>,
    blocks: usize,
    block_tokens: usize,
}

/// There are not enough free blocks; nothing was taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfBlocks;

impl BlockPool {
    /// A pool of `blocks` free blocks, each for `block_tokens` tokens.
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        let free = (0..blocks as u32).rev().collect();
        BlockPool {
            free: Arc::new(Mutex::new(free)),
            blocks,
            block_tokens,
        }
    }

    /// How many blocks `tokens` tokens take.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    pub fn free(&self) -> usize {
        self.lock().len()
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks of one sequence, in the order of its positions.
#[derive(Default)]
pub(crate) struct BlockTable {
    pool: Option<BlockPool>,
    ids: Vec<u32>,
}

impl BlockTable {
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Takes blocks from `pool` until the table covers `tokens` tokens; all that it lacks, or none.
    pub fn cover(&mut self, tokens: usize, pool: &BlockPool) -> Result<(), OutOfBlocks> {
        let lacking = pool.needed(tokens).saturating_sub(self.ids.len());
        if lacking == 0 {
            return Ok(());
        }
        let mut free = pool.lock();
        let left = free.len().checked_sub(lacking).ok_or(OutOfBlocks)?;
        self.ids.extend(free.drain(left..).rev());
        self.pool.get_or_insert_with(|| pool.clone());
        Ok(())
    }

    /// Gives all blocks back.
    pub fn release(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.lock().extend(self.ids.drain(..).rev());
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

    #[test]
    fn covers_in_whole_blocks_and_takes_all_or_nothing() {
        let pool = BlockPool::new(4, 16);
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
        let pool = BlockPool::new(8, 4);
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
}
