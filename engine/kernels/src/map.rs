//! A read-only memory map of a weight file.

use atlas_engine_core::backend::SharedOwner;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

/// A file's bytes, mapped read-only and private.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps a regular file.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is private and read-only, and its bytes are only read as plain data, so another process
        // that writes the file can change what we read but breaks no invariant of ours. A file that is truncated
        // while mapped raises SIGBUS; downloads are renamed into place whole and never written again.
        unsafe { memmap2::Mmap::map(&file) }.map(Self)
    }
}

impl SharedOwner for MappedFile {
    /// Lets the pages of these bytes go; they are read from the file again where somebody looks at them.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if self.0.get(range.clone()).is_some() {
            // SAFETY: the map is read-only and of a file, so what is let go is read again with the same contents. The
            // advice is one; where the system refuses it, the pages stay.
            let _ = unsafe {
                self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_map_shows_the_files_bytes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"weights").unwrap();
        assert_eq!(&MappedFile::open(file.path()).unwrap()[..], b"weights");
    }

    #[test]
    fn released_bytes_read_the_same() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 20_000]).unwrap();
        let map = MappedFile::open(file.path()).unwrap();
        assert!(map.iter().all(|byte| *byte == 7));
        map.release(100..19_000);
        map.release(0..usize::MAX);
        assert!(map.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(MappedFile::open(folder.path()).is_err());
    }
}
