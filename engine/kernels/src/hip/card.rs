//! Which card this process has, and how it is: read from the driver's files, with no runtime and on any machine.
//!
//! The HIP runtime's own property struct is laid out anew from version to version; the kernel's files are not.
//! Source: Documentation/gpu/amdgpu and the KFD topology of the Linux kernel.

use super::error::HipError;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A card that the driver shows and whose device file this process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Such as `0000:03:00.0`.
    pub pci_address: String,
    /// Such as `gfx1100`.
    pub gfx_target: String,
    /// Bytes of its memory.
    pub vram_bytes: u64,
    /// Its folder of the PCI bus, for [`Health::read`].
    folder: PathBuf,
}

/// What the engine's flags say about the card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// The gfx target.
    pub gfx_target: Option<String>,
    /// Bytes of memory.
    pub vram_bytes: Option<u64>,
}

impl Card {
    /// The first card that is usable here: the driver lists every card of the node, the container has the device file
    /// of its own. `root` is `/` but in tests.
    ///
    /// # Errors
    /// No driver, no permission or no card.
    pub fn find(root: &Path) -> Result<Self, HipError> {
        open(&root.join("dev/kfd"))?;
        let nodes = root.join("sys/class/kfd/kfd/topology/nodes");
        let mut names: Vec<u32> = fs::read_dir(&nodes)
            .map_err(|_| HipError::NoDriver { path: nodes.clone() })?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        names.sort_unstable();
        let mut others = 0;
        for name in names {
            let Some(node) = Node::read(&nodes.join(name.to_string())) else { continue };
            let device = root.join(format!("dev/dri/renderD{}", node.render_minor));
            if !device.exists() {
                others += 1;
                continue;
            }
            open(&device)?;
            let folder = root.join("sys/bus/pci/devices").join(&node.pci_address);
            let vram_bytes = number(&folder.join("mem_info_vram_total")).unwrap_or(node.memory_bytes);
            let Node { pci_address, gfx_target, .. } = node;
            return Ok(Self { pci_address, gfx_target, vram_bytes, folder });
        }
        Err(HipError::NoCard {
            reason: format!(
                "{others} cards are in the node, none has its /dev/dri file here; ask for amd.com/gpu"
            ),
        })
    }

    /// Compares with what was planned for.
    ///
    /// # Errors
    /// It is another card.
    pub fn check(&self, expected: &Expected) -> Result<(), HipError> {
        let Expected { gfx_target, vram_bytes } = expected;
        let pci_address = || self.pci_address.clone();
        match (gfx_target, vram_bytes) {
            (Some(target), _) if *target != self.gfx_target => Err(HipError::WrongTarget {
                pci_address: pci_address(),
                found: self.gfx_target.clone(),
                expected: target.clone(),
            }),
            (_, Some(bytes)) if *bytes != self.vram_bytes => Err(HipError::WrongVram {
                pci_address: pci_address(),
                found: self.vram_bytes,
                expected: *bytes,
            }),
            _ => Ok(()),
        }
    }
}

/// What the driver tells of one node of its topology.
struct Node {
    pci_address: String,
    gfx_target: String,
    render_minor: u64,
    memory_bytes: u64,
}

impl Node {
    /// `None` for processors and for what cannot be read.
    fn read(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join("properties")).ok()?;
        let property = |name: &str| properties(&text).find(|(key, _)| *key == name).map(|(_, value)| value);
        // 110000 is gfx1100: major, minor and step in two digits each; the last two are written in hexadecimal.
        let version = property("gfx_target_version").filter(|version| *version > 0)?;
        let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
        let (domain, location) = (property("domain").unwrap_or(0), property("location_id")?);
        let (bus, device, function) = (location >> 8 & 0xff, location >> 3 & 0x1f, location & 7);
        // A bank that cannot be read shows as 0 bytes, which differs from what any profile expects.
        let bank = fs::read_to_string(folder.join("mem_banks/0/properties")).unwrap_or_default();
        let memory = properties(&bank).find(|(key, _)| *key == "size_in_bytes").map_or(0, |(_, size)| size);
        Some(Self {
            pci_address: format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"),
            gfx_target: format!("gfx{major}{minor:x}{step:x}"),
            render_minor: property("drm_render_minor")?,
            memory_bytes: memory,
        })
    }
}

fn properties(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Opens a device file for reading and writing, as the runtime will.
fn open(path: &Path) -> Result<(), HipError> {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(refusal(path, &error, fs::metadata(path).map_or(0, |about| about.gid()))),
    }
}

fn refusal(path: &Path, error: &std::io::Error, group: u32) -> HipError {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => HipError::Permission { path: path.to_owned(), group },
        _ => HipError::NoDriver { path: path.to_owned() },
    }
}

/// What the driver measures. `None` where a card or driver does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Health {
    /// Bytes of memory in use, by anyone.
    pub vram_used_bytes: Option<u64>,
    /// Share of time the card was busy lately.
    pub busy_percent: Option<u64>,
    /// Hottest spot, in degrees Celsius.
    pub junction_celsius: Option<f64>,
    /// Memory, in degrees Celsius.
    pub memory_celsius: Option<f64>,
    /// Power drawn.
    pub watts: Option<f64>,
}

impl Health {
    /// Reads the card's files; takes microseconds and disturbs nothing.
    #[must_use]
    pub fn read(card: &Card) -> Self {
        // A card without sensors is served all the same; its figures are absent then.
        let sensors = fs::read_dir(card.folder.join("hwmon")).ok();
        let sensors = sensors.and_then(|mut entries| entries.next()?.ok()).map(|entry| entry.path());
        let sensor = |name: &str| number(&sensors.as_ref()?.join(name));
        // temp1 edge, temp2 junction, temp3 memory, in thousandths; power in millionths.
        let celsius = |name: &str| Some(sensor(name)? as f64 / 1e3);
        let watts = sensor("power1_average").or_else(|| sensor("power1_input"));
        Self {
            vram_used_bytes: number(&card.folder.join("mem_info_vram_used")),
            busy_percent: number(&card.folder.join("gpu_busy_percent")),
            junction_celsius: celsius("temp2_input").or_else(|| celsius("temp1_input")),
            memory_celsius: celsius("temp3_input"),
            watts: watts.map(|microwatts| microwatts as f64 / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_engine_core::ExitCode;

    /// A root with both cards of a node, the container having the device files of `present`.
    fn root(present: &[u64]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let nodes = "sys/class/kfd/kfd/topology/nodes";
        write(&format!("{nodes}/0/properties"), "cpu_cores_count 16\ngfx_target_version 0\n");
        for (node, version, location, minor, size) in
            [(1, 110_000, 768, 128, 25_753_026_560_u64), (2, 110_002, 2304, 129, 8_573_157_376)]
        {
            write(
                &format!("{nodes}/{node}/properties"),
                &format!(
                    "simd_count 192\ngfx_target_version {version}\nlocation_id {location}\ndomain 0\n\
                     drm_render_minor {minor}\n"
                ),
            );
            write(&format!("{nodes}/{node}/mem_banks/0/properties"), &format!("size_in_bytes {size}\n"));
        }
        let card = "sys/bus/pci/devices/0000:09:00.0";
        for (file, text) in [
            ("mem_info_vram_total", "8573157376\n"),
            ("mem_info_vram_used", "1048576\n"),
            ("gpu_busy_percent", "97\n"),
            ("hwmon/hwmon3/temp2_input", "71000\n"),
            ("hwmon/hwmon3/power1_average", "151500000\n"),
        ] {
            write(&format!("{card}/{file}"), text);
        }
        write("dev/kfd", "");
        for minor in present {
            write(&format!("dev/dri/renderD{minor}"), "");
        }
        root
    }

    #[test]
    fn the_card_is_the_one_whose_device_file_is_here() {
        for (present, expected) in [
            (vec![128], Ok(("0000:03:00.0", "gfx1100", 25_753_026_560))),
            (vec![129], Ok(("0000:09:00.0", "gfx1102", 8_573_157_376))),
            (vec![128, 129], Ok(("0000:03:00.0", "gfx1100", 25_753_026_560))),
            (vec![], Err(ExitCode::NoRuntime)),
        ] {
            let root = root(&present);
            let found = Card::find(root.path());
            let found = found.as_ref().map_err(HipError::exit_code);
            let found =
                found.map(|card| (card.pci_address.as_str(), card.gfx_target.as_str(), card.vram_bytes));
            assert_eq!(found, expected, "{present:?}");
        }
    }

    #[test]
    fn a_node_without_driver_says_so() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(Card::find(root.path()), Err(HipError::NoDriver { .. })));
    }

    #[test]
    fn a_refused_device_file_names_its_group() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = refusal(Path::new("/dev/kfd"), &denied, 109);
        assert_eq!(error.exit_code(), ExitCode::NoPermission);
        assert!(error.to_string().contains("group 109"), "{error}");
    }

    #[test]
    fn another_card_than_planned_is_refused() {
        let root = root(&[129]);
        let card = Card::find(root.path()).unwrap();
        let expected =
            |target: &str, vram_bytes| Expected { gfx_target: Some(target.to_owned()), vram_bytes };
        for (expected, fits) in [
            (Expected::default(), true),
            (expected("gfx1102", Some(8_573_157_376)), true),
            (expected("gfx1100", None), false),
            (expected("gfx1102", Some(25_753_026_560)), false),
        ] {
            let checked = card.check(&expected).map_err(|error| error.exit_code());
            assert_eq!(checked, if fits { Ok(()) } else { Err(ExitCode::WrongCard) }, "{expected:?}");
        }
    }

    #[test]
    fn health_shows_what_the_driver_measures() {
        let root = root(&[129]);
        let health = Health::read(&Card::find(root.path()).unwrap());
        let expected = Health {
            vram_used_bytes: Some(1 << 20),
            busy_percent: Some(97),
            junction_celsius: Some(71.0),
            memory_celsius: None,
            watts: Some(151.5),
        };
        assert_eq!(health, expected);
    }
}
