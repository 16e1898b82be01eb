//! Which requests may use each other's KV blocks: those with the same adapters and the same salts. Without a salt a client could
//! read in `cached_tokens` whether another client's prompt begins as its own, and guess that prompt block by block.

use std::sync::Arc;

use crate::adapter_id::AdapterId;

/// The adapters of a sequence with the bits of their scales, in order.
pub(crate) type AdapterSet = Arc<[(AdapterId, u32)]>;

/// Separates the cached prompts of clients: a block is found only by requests that give it the same salt. The default has no
/// salt: all requests share their blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSalt {
    /// How many of the prompt's first tokens were not written by the client. Full blocks of them have the salt `shared`.
    pub shared_tokens: usize,
    /// The salt of these blocks.
    pub shared: Option<u128>,
    /// The salt of all other blocks.
    pub own: Option<u128>,
}

impl CacheSalt {
    /// The salt of a block that ends before the token `end`.
    pub(crate) fn of_block(&self, end: usize) -> Option<u128> {
        if end <= self.shared_tokens {
            self.shared
        } else {
            self.own
        }
    }
}

/// What a sequence's blocks depend on besides its tokens, and who may find them.
pub(crate) struct CacheScope {
    pub adapters: AdapterSet,
    pub salt: CacheSalt,
}
