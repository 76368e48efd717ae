//! The one allocation on the card, given out from its beginning and never taken back.

use super::device::{Address, Device};
use super::error::HipError;

/// Bytes that every piece begins at a multiple of: a cache line of any card, and every vector load's size.
const ALIGNMENT: u64 = 256;

/// A piece of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    at: Address,
    bytes: u64,
}

impl Span {
    /// Nothing.
    pub const EMPTY: Self = Self { at: Address::NULL, bytes: 0 };

    /// Where it begins, if it has this many bytes.
    ///
    /// # Errors
    /// It is shorter.
    pub fn at_least(&self, what: &'static str, needed: u64) -> Result<Address, HipError> {
        if self.bytes < needed {
            return Err(HipError::Bounds { what, found: self.bytes, needed });
        }
        Ok(self.at)
    }

    /// What is left of it after so many bytes; empty where there is nothing.
    #[must_use]
    pub fn after(&self, bytes: u64) -> Self {
        let skipped = bytes.min(self.bytes);
        Self { at: self.at.plus(skipped), bytes: self.bytes - skipped }
    }

    /// So many bytes of it from an offset on.
    ///
    /// # Errors
    /// It ends before.
    pub fn slice(&self, what: &'static str, at: u64, bytes: u64) -> Result<Self, HipError> {
        let rest = self.after(at);
        rest.at_least(what, bytes)?;
        Ok(Self { at: rest.at, bytes })
    }
}

/// A stretch of device memory that is given out piece by piece.
pub struct Arena {
    first: Address,
    bytes: u64,
    used: u64,
}

impl Arena {
    /// Allocates the memory.
    ///
    /// # Errors
    /// The card has not so much.
    pub fn new(device: &mut Device, bytes: u64) -> Result<Self, HipError> {
        Ok(Self {
            first: device.allocate("the arena for weights, KV cache and scratch", bytes)?,
            bytes,
            used: 0,
        })
    }

    /// A piece of it.
    ///
    /// # Errors
    /// What is left is less.
    pub fn take(&mut self, what: &'static str, bytes: u64) -> Result<Span, HipError> {
        let at = self.used.next_multiple_of(ALIGNMENT);
        let available = self.bytes.saturating_sub(at);
        if bytes > available {
            return Err(HipError::OutOfMemory { what, needed: bytes, available });
        }
        self.used = at + bytes;
        Ok(Span { at: self.first.plus(at), bytes })
    }

    /// Gives the memory back; its pieces mean nothing any more.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn free(self, device: &mut Device) -> Result<(), HipError> {
        device.free(self.first)
    }

    /// Bytes that are not given out.
    pub fn left(&self) -> u64 {
        self.bytes - self.used
    }
}
