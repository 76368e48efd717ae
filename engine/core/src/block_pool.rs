//! The blocks of the KV cache: who refers to each, which are free, and which hold a prefix worth keeping.
//!
//! A block is either referenced, by one sequence or several, or free. A free block may still hold a known prefix: it
//! is found again until its memory is needed, the longest unused one first. It knows nothing of sequences.

use crate::program::BLOCK_TOKENS;
use crate::sequence::TokenId;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Index of a block on every device of the model.
pub type BlockId = u32;

/// Whose prefixes may serve each other: a digest of model revision, adapter and API key. Requests of one scope never
/// find, and never time, what another one has computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(pub u128);

/// What stands before a block: the scope, or a cached block in the state that it had then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parent {
    /// The block is a sequence's first.
    Root(Scope),
    /// The block before, and how often that had been filled anew.
    Block(BlockId, u64),
}

/// The content of a cached block: its own tokens after its parent's. Comparing it compares the whole prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    parent: Parent,
    tokens: [TokenId; BLOCK_TOKENS],
}

impl Content {
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        Hash::hash(self, &mut hasher);
        hasher.finish()
    }
}

#[derive(Debug, Default)]
struct Block {
    references: u32,
    /// Counts what the block has held, so that a child of older content is not taken for one of the present.
    generation: u64,
    content: Option<Content>,
    /// When it became free; orders eviction.
    freed: u64,
}

/// All blocks.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Free blocks, the longest unused first.
    free: BTreeSet<(u64, BlockId)>,
    /// From a content's hash to the block that holds it; verified at every use.
    cached: HashMap<u64, BlockId>,
    clock: u64,
}

impl BlockPool {
    /// A pool of free blocks.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self {
            blocks: (0..count).map(|_| Block::default()).collect(),
            free: (0..count).map(|id| (0, id)).collect(),
            cached: HashMap::new(),
            clock: 0,
        }
    }

    /// Blocks in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are no blocks at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Blocks that nobody refers to; some of them may hold prefixes.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Blocks that hold a prefix, referenced or free.
    #[must_use]
    pub fn cached_count(&self) -> usize {
        self.cached.len()
    }

    /// Takes a free block for new content, with one reference. What it held is forgotten.
    pub fn take(&mut self) -> Option<BlockId> {
        let (_, id) = self.free.pop_first()?;
        self.forget(id);
        let block = &mut self.blocks[id as usize];
        block.references = 1;
        block.generation += 1;
        Some(id)
    }

    /// Adds a reference.
    pub fn share(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        if block.references == 0 {
            let was_free = self.free.remove(&(block.freed, id));
            debug_assert!(was_free, "block {id} had no reference and was not free");
        }
        block.references += 1;
    }

    /// Gives a reference up; the last one frees the block.
    pub fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        debug_assert!(block.references > 0, "block {id} is released once too often");
        block.references = block.references.saturating_sub(1);
        if block.references == 0 {
            self.clock += 1;
            // Without a prefix there is nothing to keep: such blocks go first.
            block.freed = if block.content.is_some() { self.clock } else { 0 };
            self.free.insert((block.freed, id));
        }
    }

    /// Whether writing into the block would change what somebody else reads, now or later.
    #[must_use]
    pub fn is_shared(&self, id: BlockId) -> bool {
        let block = &self.blocks[id as usize];
        block.references > 1 || block.content.is_some()
    }

    /// Makes a full block findable, and names the parent that the next block has. Where another block holds the same
    /// already, that one stays the known one.
    pub fn publish(&mut self, id: BlockId, parent: Parent, tokens: [TokenId; BLOCK_TOKENS]) -> Parent {
        let content = Content { parent, tokens };
        let hash = content.hash();
        match self.cached.get(&hash) {
            Some(known) if self.blocks[*known as usize].content.as_ref() == Some(&content) => {
                self.as_parent(*known)
            }
            // Another content of the same hash stays; this block's children hang on a block that cannot be found.
            Some(_) => self.as_parent(id),
            None => {
                self.forget(id);
                self.blocks[id as usize].content = Some(content);
                self.cached.insert(hash, id);
                self.as_parent(id)
            }
        }
    }

    /// The block that holds these tokens after this parent, and what it is as a parent.
    #[must_use]
    pub fn find(&self, parent: Parent, tokens: [TokenId; BLOCK_TOKENS]) -> Option<(BlockId, Parent)> {
        let content = Content { parent, tokens };
        let id = *self.cached.get(&content.hash())?;
        let same = self.blocks[id as usize].content.as_ref() == Some(&content);
        same.then(|| (id, self.as_parent(id)))
    }

    fn as_parent(&self, id: BlockId) -> Parent {
        Parent::Block(id, self.blocks[id as usize].generation)
    }

    fn forget(&mut self, id: BlockId) {
        if let Some(content) = self.blocks[id as usize].content.take() {
            self.cached.remove(&content.hash());
        }
    }

    /// Whether a block is referenced exactly this often.
    #[must_use]
    pub fn references(&self, id: BlockId) -> u32 {
        self.blocks[id as usize].references
    }

    /// Asserts what must hold between calls: free and referenced blocks are the pool, and every known prefix is where
    /// its hash says. For debug builds and tests; it looks at every block.
    ///
    /// # Panics
    /// Something does not hold, which is a defect.
    pub fn assert_consistent(&self) {
        let referenced = self.blocks.iter().filter(|block| block.references > 0).count();
        assert_eq!(
            referenced + self.free.len(),
            self.blocks.len(),
            "free and referenced blocks are the pool"
        );
        for (freed, id) in &self.free {
            let block = &self.blocks[*id as usize];
            assert!(block.references == 0 && block.freed == *freed, "free block {id} is referenced");
        }
        let held = self.blocks.iter().filter(|block| block.content.is_some()).count();
        assert_eq!(held, self.cached.len(), "every known prefix can be found");
        for (hash, id) in &self.cached {
            let content = self.blocks[*id as usize].content.as_ref();
            assert_eq!(content.map(Content::hash), Some(*hash), "block {id} holds what it is known for");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Parent = Parent::Root(Scope(1));

    fn tokens(first: TokenId) -> [TokenId; BLOCK_TOKENS] {
        std::array::from_fn(|index| first + index as TokenId)
    }

    #[test]
    fn a_prefix_is_found_until_its_memory_is_needed_and_the_longest_unused_goes_first() {
        let mut pool = BlockPool::new(3);
        let ids: Vec<BlockId> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.take(), None);
        pool.publish(ids[0], ROOT, tokens(0));
        pool.publish(ids[1], ROOT, tokens(100));
        for id in [ids[1], ids[0], ids[2]] {
            pool.release(id);
        }
        assert_eq!((pool.free_count(), pool.cached_count()), (3, 2));
        // The block without a prefix goes first, then the one that was freed first.
        assert_eq!(pool.take(), Some(ids[2]));
        assert_eq!(pool.find(ROOT, tokens(100)).map(|found| found.0), Some(ids[1]));
        assert_eq!(pool.take(), Some(ids[1]));
        assert_eq!(pool.find(ROOT, tokens(100)), None);
        assert_eq!(pool.find(ROOT, tokens(0)).map(|found| found.0), Some(ids[0]));
        pool.share(ids[0]);
        assert_eq!((pool.take(), pool.references(ids[0])), (None, 1));
        pool.assert_consistent();
    }

    #[test]
    fn a_child_is_found_after_its_own_parent_only() {
        let mut pool = BlockPool::new(4);
        let [a, b, c] = [(); 3].map(|()| pool.take().unwrap());
        let first = pool.publish(a, ROOT, tokens(0));
        pool.publish(b, first, tokens(50));
        assert_eq!(pool.find(first, tokens(50)).map(|found| found.0), Some(b));
        assert_eq!(pool.find(ROOT, tokens(50)), None);
        assert_eq!(pool.find(Parent::Root(Scope(2)), tokens(0)), None, "another scope");
        // The parent's memory gets another content: the child of the old one is no child of the new one.
        pool.release(a);
        pool.release(c);
        while pool.take().is_some_and(|id| id != a) {}
        let second = pool.publish(a, ROOT, tokens(7));
        assert_eq!(pool.find(second, tokens(50)), None);
        pool.assert_consistent();
    }

    #[test]
    fn the_same_content_twice_is_known_once() {
        let mut pool = BlockPool::new(2);
        let [a, b] = [(); 2].map(|()| pool.take().unwrap());
        let parent = pool.publish(a, ROOT, tokens(0));
        assert_eq!(pool.publish(b, ROOT, tokens(0)), parent);
        assert!(pool.is_shared(a) && !pool.is_shared(b));
        assert_eq!(pool.cached_count(), 1);
        pool.assert_consistent();
    }
}
