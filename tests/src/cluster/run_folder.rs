//! The folder of one run, and the removal of what killed runs left behind.
//!
//! Its name says whose it is: `PREFIX.PID.START`, START being the owner's start time in clock ticks, since process
//! ids come back. The prefix also names the run's network namespaces. Leftovers go only when their owner is gone.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::ClusterError;
use super::netns::{delete_namespace, kill_processes, list_namespaces};

/// A folder that is removed when dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    prefix: String,
}

impl RunFolder {
    /// Removes leftovers, then makes a folder with a prefix that no other run has.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create() -> Result<Self, ClusterError> {
        let parent = std::env::temp_dir().join("atlas-cluster");
        let make =
            |path: &Path, recursive| std::fs::DirBuilder::new().mode(0o700).recursive(recursive).create(path);
        make(&parent, true).map_err(ClusterError::io(format!("make the folder {}", parent.display())))?;
        remove_leftovers(&parent);
        let pid = std::process::id();
        let start = start_time(pid).unwrap_or(0);
        loop {
            let prefix = format!("at{:04x}", rand::random::<u16>());
            let path = parent.join(format!("{prefix}.{pid}.{start}"));
            if taken(&parent, &prefix) {
                continue;
            }
            match make(&path, false) {
                Ok(()) => return Ok(Self { path, prefix }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(ClusterError::io(format!("make the folder {}", path.display()))(error));
                }
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The prefix of the run's network namespaces.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a run's folder could not be removed");
        }
    }
}

/// The parts of a folder's name.
fn parse(name: &str) -> Option<(&str, u32, u64)> {
    let mut parts = name.split('.');
    let (prefix, pid, start) = (parts.next()?, parts.next()?, parts.next()?);
    // A prefix of another form could match namespaces that are not ours.
    let is_ours = prefix.len() == 6 && prefix.starts_with("at") && parts.next().is_none();
    is_ours.then_some((prefix, pid.parse().ok()?, start.parse().ok()?))
}

fn taken(parent: &Path, prefix: &str) -> bool {
    let folders = std::fs::read_dir(parent).into_iter().flatten().flatten();
    folders.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        || !list_namespaces(prefix).is_empty()
}

fn remove_leftovers(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((prefix, pid, start)) = name.to_str().and_then(parse) else { continue };
        if start_time(pid) == Some(start) {
            continue;
        }
        for namespace in list_namespaces(&format!("{prefix}-")) {
            kill_processes(&namespace);
            if let Err(error) = delete_namespace(&namespace) {
                tracing::warn!(namespace, %error, "a killed run's namespace could not be deleted");
            }
        }
        // Another process may be removing the same folder.
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// When a process started, in clock ticks since boot; nothing when it is gone.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold blanks; the start time is the 22nd field.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_form_are_leftovers() {
        assert_eq!(parse("at12ab.77.901"), Some(("at12ab", 77, 901)));
        for name in ["at.1.2", "other1.1.2", "at12ab.77", "at12ab.x.1", "at12ab.1.2.3", ""] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_living_process_has_a_start_time_and_a_dead_one_none() {
        assert!(start_time(std::process::id()).is_some());
        assert_eq!(start_time(u32::MAX), None);
    }
}
