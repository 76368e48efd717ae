//! Judgements: from what a node's files tell to findings with remedies. Pure.

use serde::Serialize;

use super::{
    log::find_patterns,
    node::{CardFacts, Device, NodeFacts},
};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// As it should be.
    Well,
    /// Worth a look.
    Warning,
    /// Keeps engines from working.
    Broken,
    /// Cannot be told from here.
    Unknown,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn well(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, severity: Severity::Well, found: found.into(), remedy: None }
    }

    /// Not as it should be.
    pub fn bad(
        check: &'static str,
        severity: Severity,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check, severity, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// PCI device ids of RDNA 3 cards that have a sample profile.
const KNOWN_CARDS: &[(&str, &str)] = &[
    ("744c", "Radeon RX 7900 XTX, XT or GRE"),
    ("7448", "Radeon PRO W7900"),
    ("747e", "Radeon RX 7800 XT or 7700 XT"),
    ("7480", "Radeon RX 7600 or 7600 XT"),
];
/// The ROCm release that the hardware guide validates.
const VALIDATED_ROCM: &str = "6.0.2";
/// Junction temperatures from here on throttle the card (AMD's limit is 110).
const HOT_CELSIUS: u32 = 105;

/// Every check of a node, in the order in which one depends on the other.
pub fn check_node(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = vec![check_module(facts), check_kfd(facts), check_render_nodes(facts)];
    findings.extend(check_groups(facts));
    findings.push(check_cards(facts));
    findings.extend(facts.cards.iter().flat_map(check_card));
    findings.push(check_driver(facts));
    findings.push(check_rocm(facts));
    findings.extend(check_log(facts));
    findings
}

fn check_module(facts: &NodeFacts) -> Finding {
    if facts.module_loaded {
        return Finding::well("kernel module", "amdgpu is loaded");
    }
    let remedy =
        "load it with `modprobe amdgpu`, or install the driver; see the kernel's log where that fails";
    Finding::bad("kernel module", Severity::Broken, "amdgpu is not loaded", remedy)
}

fn check_kfd(facts: &NodeFacts) -> Finding {
    match &facts.kfd {
        Some(kfd) => Finding::well("/dev/kfd", format!("is there, {}", owner(kfd, facts))),
        None => Finding::bad(
            "/dev/kfd",
            Severity::Broken,
            "is missing: no program can compute on the card",
            "install the amdgpu driver with compute support and restart; in a pod, ask for amd.com/gpu",
        ),
    }
}

fn check_render_nodes(facts: &NodeFacts) -> Finding {
    if facts.render_nodes.is_empty() {
        let remedy = "load amdgpu; in a pod, ask for amd.com/gpu";
        return Finding::bad("render nodes", Severity::Broken, "/dev/dri has no renderD*", remedy);
    }
    let names: Vec<&str> = facts.render_nodes.iter().map(|device| device.path.as_str()).collect();
    Finding::well("render nodes", names.join(", "))
}

fn check_groups(facts: &NodeFacts) -> Vec<Finding> {
    let devices: Vec<&Device> = facts.kfd.iter().chain(&facts.render_nodes).collect();
    let closed: Vec<&Device> =
        devices.iter().copied().filter(|device| matches!(device.opens, Some(Err(_)))).collect();
    if devices.is_empty() {
        return Vec::new();
    }
    let mut groups: Vec<u32> =
        devices.iter().map(|device| device.group).filter(|group| *group != 0).collect();
    groups.sort_unstable();
    groups.dedup();
    let needed: Vec<String> = groups.iter().map(|group| describe_group(*group, facts)).collect();
    if closed.is_empty() {
        let note =
            format!("this user may open them; supplementalGroups of the GpuProfile: {}", needed.join(", "));
        return vec![Finding::well("permissions", note)];
    }
    let paths: Vec<&str> = closed.iter().map(|device| device.path.as_str()).collect();
    let names: Vec<&str> = groups
        .iter()
        .filter(|group| !facts.own_groups.contains(group))
        .filter_map(|group| group_name(*group, facts))
        .collect();
    let join = if names.is_empty() {
        String::new()
    } else {
        format!("sudo usermod -a -G {} $USER, then log in again; ", names.join(","))
    };
    let remedy =
        format!("{join}for engines, set supplementalGroups of the GpuProfile to {}", needed.join(", "));
    vec![Finding::bad(
        "permissions",
        Severity::Broken,
        format!("{} cannot be opened", paths.join(", ")),
        remedy,
    )]
}

fn check_cards(facts: &NodeFacts) -> Finding {
    if facts.cards.is_empty() {
        let remedy = "check the card's seat and power, and that the BIOS shows it; `lspci -d 1002:` lists AMD's devices";
        return Finding::bad("cards", Severity::Broken, "no AMD card on the PCI bus", remedy);
    }
    let names: Vec<String> = facts
        .cards
        .iter()
        .map(|card| {
            let known = KNOWN_CARDS.iter().find(|(id, _)| *id == card.device).map(|(_, name)| *name);
            let memory = card.vram_total.map_or(String::new(), |bytes| format!(", {} MiB", bytes >> 20));
            format!("{} {} ({}{memory})", card.address, known.unwrap_or("AMD GPU"), card.device)
        })
        .collect();
    Finding::well("cards", names.join("; "))
}

fn check_card(card: &CardFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((now, most)) = card.link_width.filter(|(now, most)| now < most) {
        findings.push(Finding::bad(
            "PCIe link",
            Severity::Warning,
            format!("{} runs {now} of {most} lanes", card.address),
            "loading a model takes longer, answers do not; another slot or a reseated card mends it",
        ));
    }
    if let Some(celsius) = card.junction_celsius.filter(|celsius| *celsius >= HOT_CELSIUS) {
        findings.push(Finding::bad(
            "temperature",
            Severity::Warning,
            format!("{} is at {celsius} degrees and throttles", card.address),
            "clean the fans, mend the airflow, or lower the power limit",
        ));
    }
    if let (Some(used), Some(total)) = (card.vram_used, card.vram_total) {
        findings.push(Finding::well(
            "VRAM in use",
            format!("{}: {} of {} MiB", card.address, used >> 20, total >> 20),
        ));
    }
    findings
}

fn check_driver(facts: &NodeFacts) -> Finding {
    match &facts.driver_version {
        Some(version) => Finding::well("driver", format!("amdgpu {version}")),
        None if facts.module_loaded => {
            Finding::well("driver", "the kernel's own amdgpu, which tells no version")
        }
        None => Finding {
            check: "driver",
            severity: Severity::Unknown,
            found: "cannot be told without the module".to_owned(),
            remedy: None,
        },
    }
}

/// Engines bring their own runtime; the host's ROCm matters for tools such as rocm-smi alone.
fn check_rocm(facts: &NodeFacts) -> Finding {
    let Some(version) = &facts.rocm_version else {
        return Finding::well("ROCm", "not on the host: engine images bring their own runtime");
    };
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if version == VALIDATED_ROCM || version.starts_with(&format!("{VALIDATED_ROCM}-")) {
        return Finding::well("ROCm", format!("{version}, the validated release"));
    }
    match major {
        Some(major) if major < 6 => Finding::bad(
            "ROCm",
            Severity::Warning,
            format!("{version} is older than 6.0, which is known to be troublesome on these cards"),
            format!("install ROCm {VALIDATED_ROCM} or later"),
        ),
        _ => Finding::well("ROCm", format!("{version}; {VALIDATED_ROCM} is what was validated")),
    }
}

fn check_log(facts: &NodeFacts) -> Vec<Finding> {
    let Some(log) = &facts.kernel_log else {
        return vec![Finding {
            check: "kernel log",
            severity: Severity::Unknown,
            found: "may not be read".to_owned(),
            remedy: Some("run it as root, or give a file with --kernel-log".to_owned()),
        }];
    };
    let found = find_patterns(log);
    if found.is_empty() {
        return vec![Finding::well("kernel log", "nothing that is known to be bad")];
    }
    found
        .into_iter()
        .map(|(pattern, line)| {
            Finding::bad(
                "kernel log",
                Severity::Broken,
                format!("{}: {line}", pattern.meaning),
                pattern.remedy,
            )
        })
        .collect()
}

fn owner(device: &Device, facts: &NodeFacts) -> String {
    format!("group {}, mode {:o}", describe_group(device.group, facts), device.mode)
}

fn describe_group(group: u32, facts: &NodeFacts) -> String {
    group_name(group, facts).map_or_else(|| group.to_string(), |name| format!("{group} ({name})"))
}

fn group_name(group: u32, facts: &NodeFacts) -> Option<&str> {
    facts.group_names.iter().find(|(id, _)| *id == group).map(|(_, name)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> NodeFacts {
        let device =
            |path: &str, group| Device { path: path.into(), group, mode: 0o660, opens: Some(Ok(())) };
        NodeFacts {
            kfd: Some(device("/dev/kfd", 109)),
            render_nodes: vec![device("/dev/dri/renderD128", 109)],
            own_groups: vec![109],
            group_names: vec![(44, "video".into()), (109, "render".into())],
            module_loaded: true,
            driver_version: Some("6.3.6".into()),
            rocm_version: None,
            cards: vec![CardFacts {
                address: "0000:03:00.0".into(),
                device: "744c".into(),
                ..CardFacts::default()
            }],
            kernel_log: Some("fine\n".into()),
        }
    }

    #[test]
    fn a_healthy_node_has_no_complaints() {
        let findings = check_node(&healthy());
        assert!(findings.iter().all(|finding| finding.severity == Severity::Well), "{findings:#?}");
        let groups = findings.iter().find(|finding| finding.check == "permissions").unwrap();
        assert!(groups.found.contains("supplementalGroups of the GpuProfile: 109 (render)"), "{groups:?}");
    }

    #[test]
    fn every_fault_of_the_guide_is_found_with_its_remedy() {
        let check = |what: &str, severity: Severity, says: &str, change: &dyn Fn(&mut NodeFacts)| {
            let mut facts = healthy();
            change(&mut facts);
            let findings = check_node(&facts);
            let found = findings.iter().find(|finding| finding.check == what && finding.severity == severity);
            let remedy = found.and_then(|finding| finding.remedy.as_deref()).unwrap_or_default();
            assert!(remedy.contains(says), "{what}: {says}: {findings:#?}");
        };
        let broken = Severity::Broken;
        check("kernel module", broken, "modprobe amdgpu", &|facts| facts.module_loaded = false);
        check("/dev/kfd", broken, "install the amdgpu driver", &|facts| facts.kfd = None);
        check("render nodes", broken, "ask for amd.com/gpu", &|facts| facts.render_nodes.clear());
        check("permissions", broken, "usermod -a -G render $USER", &|facts| {
            facts.own_groups.clear();
            facts.kfd.iter_mut().for_each(|kfd| kfd.opens = Some(Err("Permission denied".into())));
        });
        check("cards", broken, "lspci", &|facts| facts.cards.clear());
        check("PCIe link", Severity::Warning, "another slot", &|facts| {
            facts.cards[0].link_width = Some((4, 16))
        });
        check("temperature", Severity::Warning, "airflow", &|facts| {
            facts.cards[0].junction_celsius = Some(109)
        });
        check("ROCm", Severity::Warning, "6.0.2", &|facts| facts.rocm_version = Some("5.7.1".into()));
        check("kernel log", Severity::Unknown, "as root", &|facts| facts.kernel_log = None);
        check("kernel log", broken, "root port", &|facts| {
            facts.kernel_log = Some("kfd: PCIE atomic ops is not supported\n".into());
        });
    }
}
