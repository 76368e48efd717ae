//! One download of a file at a time, among all processes that share the cache folder.
//!
//! The lock belongs to an open file, so a process that ends in any way gives it back.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(200);

/// The turn to download a file; dropping it gives it to the next one.
pub struct Turn {
    path: PathBuf,
    _file: File,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Still locked, so nobody else has it by this name; who waits for this one looks whether it has the name still.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Waits for the turn to download to `path`. Where the folder cannot lock, nobody waits: a checksum then tells whether
/// two downloads met.
pub async fn take_turn(path: &Path) -> Option<Turn> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    if let Some(folder) = path.parent() {
        // The download says what is wrong with the folder.
        let _ = std::fs::create_dir_all(folder);
    }
    let mut told = false;
    loop {
        // So does it where no file can be made in it.
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&name).ok()?;
        match file.try_lock() {
            Ok(()) if is_named(&file, &name) => return Some(Turn { path: name, _file: file }),
            // Whoever had it before has removed it: the name is another file's now.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                if !told {
                    tracing::info!(file = %path.display(), "another process downloads it: waiting");
                    told = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(TryLockError::Error(error)) => {
                tracing::warn!(%error, "the model cache cannot lock: downloads at a time are not kept apart");
                return None;
            }
        }
    }
}

fn is_named(file: &File, name: &Path) -> bool {
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().ok().map(id) == std::fs::metadata(name).ok().map(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache/m.gguf");
        let first = take_turn(&path).await.unwrap();
        let second = take_turn(&path);
        tokio::pin!(second);
        assert!(tokio::time::timeout(PAUSE * 3, &mut second).await.is_err(), "both had the turn");
        drop(first);
        let second = second.await.unwrap();
        assert!(second.path.exists());
        drop(second);
        assert_eq!(std::fs::read_dir(folder.path().join("cache")).unwrap().count(), 0);
    }
}
