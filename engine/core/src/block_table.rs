//! One sequence's blocks: prefix hits, growth, publication, copy-on-write.
//!
//! A table owns a reference to each of its blocks and gives them up in [`BlockTable::release`], which every path that
//! ends or preempts a sequence goes through.

use crate::block_pool::{BlockId, BlockPool, Parent, Scope};
use crate::program::BLOCK_TOKENS;
use crate::sequence::TokenId;

/// The blocks that hold a sequence's positions, in order.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Full blocks that are published already.
    published: usize,
    /// What stands before the first block that is not published yet.
    parent: Parent,
}

impl BlockTable {
    /// A table without blocks.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self { blocks: Vec::new(), published: 0, parent: Parent::Root(scope) }
    }

    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Takes the longest known prefix of these tokens into an empty table, the last token left out, since its logits
    /// are wanted; the number of tokens that need no computing.
    pub fn take_prefix(&mut self, pool: &mut BlockPool, tokens: &[TokenId]) -> usize {
        debug_assert!(self.blocks.is_empty(), "a prefix comes first");
        let (known, parent) = find_prefix(pool, self.parent, tokens);
        for id in &known {
            pool.share(*id);
        }
        (self.published, self.parent, self.blocks) = (known.len(), parent, known);
        self.published * BLOCK_TOKENS
    }

    /// Shares another sequence's blocks up to a position into an empty table.
    pub fn take_from(&mut self, pool: &mut BlockPool, other: &Self, tokens: usize) {
        debug_assert!(self.blocks.is_empty(), "a prefix comes first");
        let count = tokens.div_ceil(BLOCK_TOKENS).min(other.blocks.len());
        self.blocks.extend_from_slice(&other.blocks[..count]);
        for id in &self.blocks {
            pool.share(*id);
        }
        // Publishing them once more finds them known; the parent of a later block comes out right.
    }

    /// How many new blocks it takes to write positions `from..to`, copies of shared ones included.
    #[must_use]
    pub fn lacking(&self, pool: &BlockPool, from: usize, to: usize) -> usize {
        to.div_ceil(BLOCK_TOKENS).saturating_sub(self.blocks.len()) + self.shared(pool, from, to).count()
    }

    /// Indices of blocks that positions `from..to` would be written into although others read them.
    fn shared<'a>(&'a self, pool: &'a BlockPool, from: usize, to: usize) -> impl Iterator<Item = usize> + 'a {
        let written = from / BLOCK_TOKENS..to.div_ceil(BLOCK_TOKENS).min(self.blocks.len());
        written.filter(|index| pool.is_shared(self.blocks[*index]))
    }

    /// Makes positions `from..to` writable; the pool has [`Self::lacking`] free blocks. The pairs are blocks whose
    /// contents must be copied, from the first to the second, before anything is written.
    pub fn grow(&mut self, pool: &mut BlockPool, from: usize, to: usize) -> Vec<(BlockId, BlockId)> {
        let shared: Vec<usize> = self.shared(pool, from, to).collect();
        let mut copies = Vec::new();
        for index in shared {
            let old = self.blocks[index];
            let new = pool.take().expect("the caller has asked for lacking blocks");
            pool.release(old);
            self.blocks[index] = new;
            copies.push((old, new));
            debug_assert!(index >= self.published, "a published block is written again");
        }
        while self.blocks.len() * BLOCK_TOKENS < to {
            self.blocks.push(pool.take().expect("the caller has asked for lacking blocks"));
        }
        copies
    }

    /// Publishes the blocks that are full of computed tokens. `tokens` are the computed ones from the beginning.
    pub fn publish(&mut self, pool: &mut BlockPool, tokens: impl Fn(usize) -> TokenId, computed: usize) {
        while (self.published + 1) * BLOCK_TOKENS <= computed {
            let first = self.published * BLOCK_TOKENS;
            let content = std::array::from_fn(|offset| tokens(first + offset));
            self.parent = pool.publish(self.blocks[self.published], self.parent, content);
            self.published += 1;
        }
    }

    /// Gives up the blocks that hold nothing below this position: room of drafts that were not taken.
    pub fn shrink(&mut self, pool: &mut BlockPool, tokens: usize) {
        let kept = tokens.div_ceil(BLOCK_TOKENS);
        while self.blocks.len() > kept {
            self.blocks.pop().into_iter().for_each(|id| pool.release(id));
        }
    }

    /// Gives all blocks up, the last first, so that the beginning of a prefix outlives its end.
    pub fn release(&mut self, pool: &mut BlockPool, scope: Scope) {
        self.shrink(pool, 0);
        *self = Self::new(scope);
    }
}

/// The blocks of the longest known prefix, without the last token.
fn find_prefix(pool: &BlockPool, mut parent: Parent, tokens: &[TokenId]) -> (Vec<BlockId>, Parent) {
    let usable = &tokens[..tokens.len().saturating_sub(1)];
    let mut known = Vec::new();
    for content in usable.as_chunks::<BLOCK_TOKENS>().0 {
        let Some((id, next)) = pool.find(parent, *content) else { break };
        known.push(id);
        parent = next;
    }
    (known, parent)
}
