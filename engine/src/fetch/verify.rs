//! Whether a file is a whole model, and the one that is wanted: checksums are remembered beside the file, so that a
//! restart does not read gigabytes again.

use super::FetchError;
use atlas_format::{Gguf, GgufError};
use atlas_kernels::MappedFile;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What shows that a file is no model as its source has it: another format, or an early end. What else may be wrong with
/// a header, another download would not mend.
pub async fn find_fault(path: PathBuf) -> Option<GgufError> {
    let look = move || {
        // One that cannot be read is not judged here.
        let file = MappedFile::open(&path).ok()?;
        match Gguf::parse_file(&file) {
            Err(error @ (GgufError::Magic { .. } | GgufError::LfsPointer | GgufError::Truncated { .. })) => {
                Some(error)
            }
            _ => None,
        }
    };
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Checks a file's sha256, or finds that it was checked since it last changed.
///
/// # Errors
/// The sum differs, or the file cannot be read.
pub fn check(path: &Path, expected: &str, checked: &AtomicU64) -> Result<(), FetchError> {
    let missing = |source| FetchError::Missing { path: path.to_owned(), source };
    let marker = marker(path);
    let mark = mark(path, expected).map_err(missing)?;
    if fs::read_to_string(&marker).is_ok_and(|found| found == mark) {
        return Ok(());
    }
    let found = sha256(path, checked, 0).map_err(missing)?;
    if found != expected {
        let (path, expected) = (path.to_owned(), expected.to_owned());
        return Err(FetchError::Checksum {
            path,
            found,
            expected,
            hint: ": fix --sha256 or remove the file",
        });
    }
    remember(path, expected);
    Ok(())
}

/// Remembers that a file has this sum, as it is now.
pub fn remember(path: &Path, sha256: &str) {
    let marker = marker(path);
    // Models often lie on read-only volumes, where the next start has to hash again.
    if let Err(error) = mark(path, sha256).and_then(|mark| fs::write(&marker, mark)) {
        tracing::debug!(marker = %marker.display(), %error, "the checksum is not remembered");
    }
}

/// The sha256 of a file, in hex; `checked` counts the bytes, on from `from`.
pub fn sha256(path: &Path, checked: &AtomicU64, from: u64) -> io::Result<String> {
    checked.store(from, Relaxed);
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            count => {
                hash.update(&buffer[..count]);
                checked.fetch_add(count as u64, Relaxed);
            }
        }
    }
}

fn marker(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// What the marker of this file holds: sum, size and time of change.
fn mark(path: &Path, sha256: &str) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{sha256} {} {}\n", metadata.len(), changed.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_sum_is_checked_remembered_and_forgotten_with_the_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(&path, "abc").unwrap();
        let (counted, none) = (AtomicU64::new(0), AtomicU64::new(0));
        assert!(check(&path, OF_ABC, &counted).is_ok());
        assert_eq!(counted.load(Relaxed), 3);
        assert!(marker(&path).exists());
        assert!(matches!(check(&path, &"0".repeat(64), &none), Err(FetchError::Checksum { .. })));
        fs::write(&path, "abcd").unwrap();
        assert!(matches!(check(&path, OF_ABC, &none), Err(FetchError::Checksum { .. })));
        // The marker alone is believed: that is what spares the reading.
        fs::write(marker(&path), mark(&path, OF_ABC).unwrap()).unwrap();
        assert!(check(&path, OF_ABC, &none).is_ok());
    }
}
