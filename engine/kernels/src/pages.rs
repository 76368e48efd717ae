//! Memory of whole pages, large ones where the system gives them.

use std::io;
use std::ops::{Deref, DerefMut};

/// Zeroed memory, aligned to pages.
#[derive(Debug)]
pub struct Pages {
    map: memmap2::MmapMut,
    length: usize,
}

impl Pages {
    /// This many bytes. They take real memory once they are written.
    ///
    /// # Errors
    /// The system has no address space left.
    pub fn new(length: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(length.max(1))?;
        // Large pages save address look-ups; a system without them serves small ones. Miri knows no advice.
        #[cfg(all(target_os = "linux", not(miri)))]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, length })
    }

    /// The same, every byte written.
    ///
    /// # Errors
    /// As for [`Pages::new`].
    pub fn filled(length: usize, value: u8) -> io::Result<Self> {
        let mut pages = Self::new(length)?;
        pages.map.fill(value);
        Ok(pages)
    }

    /// Where they begin, for threads that write disjoint parts.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.map.as_mut_ptr()
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[..self.length]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.length]
    }
}
