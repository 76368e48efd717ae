//! What a node's files tell, gathered without judging it.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its path on the node.
    pub path: String,
    /// Group that owns it.
    pub group: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether this process may open it for reading and writing; `None` where nobody tried.
    pub opens: Option<Result<(), String>>,
}

/// A card as sysfs shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardFacts {
    /// PCI address.
    pub address: String,
    /// PCI device id, such as `744c`.
    pub device: String,
    /// Bytes of memory.
    pub vram_total: Option<u64>,
    /// Bytes in use.
    pub vram_used: Option<u64>,
    /// Speed of the link, such as `16.0 GT/s PCIe`.
    pub link_speed: Option<String>,
    /// Lanes of the link, now and at most.
    pub link_width: Option<(u32, u32)>,
    /// Temperature of the hottest spot in degrees.
    pub junction_celsius: Option<u32>,
}

/// Everything that the checks look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `/dev/kfd`.
    pub kfd: Option<Device>,
    /// `/dev/dri/renderD*`.
    pub render_nodes: Vec<Device>,
    /// Groups of this process.
    pub own_groups: Vec<u32>,
    /// Names of groups by id.
    pub group_names: Vec<(u32, String)>,
    /// Whether the kernel module is there.
    pub module_loaded: bool,
    /// Version of the amdgpu driver, where it is not the kernel's own.
    pub driver_version: Option<String>,
    /// Version of ROCm on the host.
    pub rocm_version: Option<String>,
    /// AMD cards.
    pub cards: Vec<CardFacts>,
    /// The kernel's log; `None` where it may not be read.
    pub kernel_log: Option<String>,
}

/// Reads a node whose file system begins at `root`.
pub fn gather(root: &Path, kernel_log: Option<String>) -> NodeFacts {
    let at = |path: &str| root.join(path);
    let text = |path: &str| read(&at(path));
    let mut render_nodes: Vec<Device> = entries(&at("dev/dri"))
        .into_iter()
        .filter(|name| name.starts_with("renderD"))
        .filter_map(|name| device(root, &format!("dev/dri/{name}")))
        .collect();
    render_nodes.sort_by(|a, b| a.path.cmp(&b.path));
    NodeFacts {
        kfd: device(root, "dev/kfd"),
        render_nodes,
        own_groups: own_groups(&text("proc/self/status").unwrap_or_default()),
        group_names: group_names(&text("etc/group").unwrap_or_default()),
        module_loaded: at("sys/module/amdgpu").is_dir(),
        driver_version: text("sys/module/amdgpu/version"),
        rocm_version: text("opt/rocm/.info/version"),
        cards: cards(&at("sys/bus/pci/devices")),
        kernel_log,
    }
}

/// The kernel's log as `dmesg` tells it, where this user may read it.
pub fn read_kernel_log() -> Option<String> {
    let output = Command::new("dmesg").output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn device(root: &Path, path: &str) -> Option<Device> {
    let file = root.join(path);
    let metadata = fs::metadata(&file).ok()?;
    let opens = fs::OpenOptions::new().read(true).write(true).open(&file);
    Some(Device {
        path: format!("/{path}"),
        group: metadata.gid(),
        mode: metadata.permissions().mode() & 0o777,
        opens: Some(opens.map(|_| ()).map_err(|error| error.to_string())),
    })
}

/// The line `Groups:` and the effective group of `/proc/self/status`.
fn own_groups(status: &str) -> Vec<u32> {
    let numbers = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned();
        line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()
    };
    let mut groups = numbers("Groups:");
    groups.extend(numbers("Gid:").get(1));
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn group_names(file: &str) -> Vec<(u32, String)> {
    file.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        })
        .collect()
}

/// AMD's display controllers on the PCI bus.
fn cards(bus: &Path) -> Vec<CardFacts> {
    let mut cards: Vec<CardFacts> = entries(bus)
        .into_iter()
        .filter_map(|address| {
            let folder = bus.join(&address);
            let text = |name: &str| read(&folder.join(name));
            let number = |name: &str| text(name)?.parse().ok();
            let display = text("class")?.starts_with("0x03");
            if text("vendor").as_deref() != Some("0x1002") || !display {
                return None;
            }
            let width = |name: &str| text(name)?.parse::<u32>().ok();
            Some(CardFacts {
                device: text("device")?.trim_start_matches("0x").to_owned(),
                vram_total: number("mem_info_vram_total"),
                vram_used: number("mem_info_vram_used"),
                link_speed: text("current_link_speed"),
                link_width: width("current_link_width").zip(width("max_link_width")),
                junction_celsius: junction(&folder.join("hwmon")),
                address,
            })
        })
        .collect();
    cards.sort_by(|a, b| a.address.cmp(&b.address));
    cards
}

fn junction(hwmon: &Path) -> Option<u32> {
    let folder = entries(hwmon).into_iter().next()?;
    let millidegrees: u32 = read(&hwmon.join(folder).join("temp2_input"))?.parse().ok()?;
    Some(millidegrees / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("dev/kfd", "");
        write("dev/dri/renderD128", "");
        write("dev/dri/card0", "");
        write("proc/self/status", "Name:\tx\nGid:\t1000\t1000\t1000\t1000\nGroups:\t44 109\n");
        write("etc/group", "root:x:0:\nvideo:x:44:a,b\nrender:x:109:a\n");
        write("sys/module/amdgpu/version", "6.3.6\n");
        let card = "sys/bus/pci/devices/0000:03:00.0";
        for (name, text) in [
            ("vendor", "0x1002\n"),
            ("class", "0x030000\n"),
            ("device", "0x744c\n"),
            ("mem_info_vram_total", "25753026560\n"),
            ("current_link_width", "4\n"),
            ("max_link_width", "16\n"),
            ("hwmon/hwmon3/temp2_input", "71000\n"),
        ] {
            write(&format!("{card}/{name}"), text);
        }
        write("sys/bus/pci/devices/0000:04:00.0/vendor", "0x8086\n");
        let facts = gather(root.path(), None);
        assert_eq!(facts.kfd.as_ref().map(|kfd| kfd.path.as_str()), Some("/dev/kfd"));
        assert_eq!((facts.render_nodes.len(), facts.own_groups.as_slice()), (1, &[44, 109, 1000][..]));
        assert!(facts.group_names.contains(&(109, "render".to_owned())) && facts.module_loaded);
        assert_eq!(facts.driver_version.as_deref(), Some("6.3.6"));
        let [card] = facts.cards.as_slice() else { panic!("one card: {:?}", facts.cards) };
        assert_eq!((card.device.as_str(), card.vram_total), ("744c", Some(25_753_026_560)));
        assert_eq!((card.link_width, card.junction_celsius), (Some((4, 16)), Some(71)));
        assert_eq!(gather(&root.path().join("none"), None), NodeFacts::default());
    }
}
