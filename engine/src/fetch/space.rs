//! Whether the disk has room for what is about to be downloaded.

use super::FetchError;
use nix::sys::statvfs::statvfs;
use std::path::Path;

/// Refuses to begin what cannot be finished. A file system that does not tell is believed to have room.
///
/// # Errors
/// There is less free than needed.
pub fn check(folder: &Path, needed: u64) -> Result<(), FetchError> {
    let Ok(stat) = statvfs(folder) else { return Ok(()) };
    let (blocks, block_bytes) = (stat.blocks_available(), stat.fragment_size());
    #[allow(clippy::useless_conversion)]
    let free = u64::from(blocks).saturating_mul(u64::from(block_bytes));
    match free < needed {
        true => Err(FetchError::NoSpace { path: folder.to_owned(), free, needed }),
        false => Ok(()),
    }
}
