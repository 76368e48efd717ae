//! The script that turns a process into something like a container.
//!
//! Pure: it only writes shell. The script runs as the first process of new mount, PID, host-name and IPC namespaces.
//! It lays an overlay in memory over this machine's root, mounts the container's volumes into it, makes that the root and
//! becomes the container's program. What a container has and this has not: its own user namespace, cgroup limits,
//! seccomp, and an image's files (the machine's own are seen instead).

use std::path::{Path, PathBuf};

/// One folder or file to show inside the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On this machine.
    pub source: PathBuf,
    /// Inside the container.
    pub target: String,
    /// Whether it may not be written to.
    pub read_only: bool,
}

/// Whom the program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Supplemental groups.
    pub groups: Vec<u32>,
    /// Whether the program may gain privileges.
    pub no_new_privileges: bool,
}

/// Everything the script depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// A folder of this run's own: mount point, `resolv.conf` and `hosts`.
    pub folder: PathBuf,
    /// The pod's host name.
    pub hostname: String,
    /// In the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Whom it runs as.
    pub identity: Identity,
    /// Whether only volumes may be written to.
    pub read_only_root: bool,
    /// Where it starts.
    pub working_dir: String,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// The line that the script sends on its standard input's pipe once the container is ready to run.
pub const STARTED: &str = "started";

const PREAMBLE: &str = r#"set -eu
# Until the program takes over, what goes wrong goes to the agent; afterwards stderr is the log.
exec 3>&2 2>&0
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
show() {
  if [ -d "$1" ]; then mkdir -p "$2"; else mkdir -p "$(dirname "$2")"; if [ ! -e "$2" ]; then : >"$2"; fi; fi
  mount --bind "$1" "$2"
  if [ "$3" = ro ]; then mount -o remount,bind,ro "$2"; fi
}
mount -t tmpfs -o mode=755 tmpfs "$folder/layer"
cd "$folder/layer"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/layer/upper,workdir=$folder/layer/work" root
cd root
mkdir -p proc sys dev tmp run .host
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do : >dev/$node; mount --bind /dev/$node dev/$node; done
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mkdir -m 1777 dev/shm
mount -t tmpfs -o mode=1777 tmpfs dev/shm
pivot_root . .host
cd /
rm -f etc/resolv.conf etc/hosts etc/hostname
cp ".host$folder/resolv.conf" ".host$folder/hosts" etc/
"#;

impl Sandbox {
    /// Writes the script.
    pub fn script(&self) -> String {
        let mut script = format!("folder={}\n{PREAMBLE}", quote(&self.folder.to_string_lossy()));
        script.push_str(&format!("hostname {0}\necho {0} >etc/hostname\n", quote(&self.hostname)));
        for Mount { source, target, read_only } in &self.mounts {
            let source = Path::new("/.host").join(source.strip_prefix("/").unwrap_or(source));
            let mode = if *read_only { "ro" } else { "rw" };
            script.push_str(&format!("show {} {} {mode}\n", quote(&source.to_string_lossy()), quote(target)));
        }
        script.push_str("umount -l /.host\nrmdir /.host\n");
        if self.read_only_root {
            script.push_str("mount -o remount,ro /\n");
        }
        script.push_str(&format!("mkdir -p {0} 2>/dev/null || :\ncd {0}\n", quote(&self.working_dir)));
        script.push_str(&format!("echo {STARTED} >&0\nexec 2>&3 3>&- 0</dev/null\n"));
        script.push_str(&format!("exec setpriv {}", self.identity.setpriv()));
        script.push_str(" env -i");
        for (name, value) in &self.environment {
            script.push_str(&format!(" {}", quote(&format!("{name}={value}"))));
        }
        for argument in &self.command {
            script.push_str(&format!(" {}", quote(argument)));
        }
        script.push('\n');
        script
    }
}

impl Identity {
    fn setpriv(&self) -> String {
        // The parent-death signal must come after the change of user, which clears it.
        let mut options = format!("--pdeathsig KILL --reuid {} --regid {}", self.user, self.group);
        if self.groups.is_empty() {
            options.push_str(" --clear-groups");
        } else {
            let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
            options.push_str(&format!(" --groups {}", groups.join(",")));
        }
        if self.no_new_privileges {
            options.push_str(" --no-new-privs");
        }
        options
    }
}

/// A word that the shell takes as it is.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_unchanged() {
        for word in ["plain", "a b", "it's", "$(rm)", "`x`", "\"q\"", "new\nline", "", "\\", "''"] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quote(word))])
                .output()
                .expect("sh runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn the_program_runs_as_the_pod_says() {
        let identity = Identity { user: 1000, group: 2000, groups: vec![44, 109], no_new_privileges: true };
        assert_eq!(
            identity.setpriv(),
            "--pdeathsig KILL --reuid 1000 --regid 2000 --groups 44,109 --no-new-privs"
        );
        let root = Identity { user: 0, group: 0, groups: vec![], no_new_privileges: false };
        assert_eq!(root.setpriv(), "--pdeathsig KILL --reuid 0 --regid 0 --clear-groups");
    }
}
