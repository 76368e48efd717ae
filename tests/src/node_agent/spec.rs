//! What a simulated node looks like: its cards, the labels AMD's labeller gives them, and its capacity.
//!
//! Pure. The label rules are those of the AMD node labeller: one distinct value of a kind gives the plain key, several
//! give one key per value with the number of cards, and the `beta.` keys always carry the counted form.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The extended resource that AMD's device plugin registers.
pub const GPU_RESOURCE: &str = "amd.com/gpu";

/// One card as the labeller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The rounded VRAM class, for example `24G`.
    pub vram_class: String,
    /// Compute units.
    pub compute_units: u32,
    /// SIMD units, two per compute unit on RDNA 3.
    pub simds: u32,
    /// PCI device id in hexadecimal.
    pub device_id: String,
    /// Product name with underscores.
    pub product_name: String,
}

impl Card {
    /// A Radeon RX 7900 XTX.
    pub fn rx_7900_xtx() -> Self {
        Self {
            vram_class: "24G".into(),
            compute_units: 96,
            simds: 192,
            device_id: "744c".into(),
            product_name: "AMD_Radeon_RX_7900_XTX".into(),
        }
    }

    /// A Radeon RX 7600.
    pub fn rx_7600() -> Self {
        Self {
            vram_class: "8G".into(),
            compute_units: 32,
            simds: 64,
            device_id: "7480".into(),
            product_name: "AMD_Radeon_RX_7600".into(),
        }
    }

    /// The labeller's kinds with this card's values; both cards share the family, so it cannot tell them apart.
    fn properties(&self) -> [(&'static str, String); 6] {
        [
            ("vram", self.vram_class.clone()),
            ("cu-count", self.compute_units.to_string()),
            ("simd-count", self.simds.to_string()),
            ("device-id", self.device_id.clone()),
            ("family", "GC_11_0_0".into()),
            ("product-name", self.product_name.clone()),
        ]
    }
}

/// A node to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// The node's name.
    pub name: String,
    /// Its cards; each counts as one `amd.com/gpu`.
    pub cards: Vec<Card>,
    /// Labels besides those of the cards and the usual ones.
    pub labels: BTreeMap<String, String>,
    /// CPUs it claims to have; nothing enforces them.
    pub cpus: u32,
    /// Memory it claims to have, in GiB; nothing enforces it.
    pub memory_gib: u32,
    /// How many pods it takes.
    pub pods: u32,
}

impl NodeSpec {
    /// A node with one Radeon RX 7900 XTX.
    pub fn rx_7900_xtx(name: &str) -> Self {
        Self::with_cards(name, vec![Card::rx_7900_xtx()])
    }

    /// A node with one Radeon RX 7600.
    pub fn rx_7600(name: &str) -> Self {
        Self::with_cards(name, vec![Card::rx_7600()])
    }

    /// A node without a card.
    pub fn without_gpu(name: &str) -> Self {
        Self::with_cards(name, Vec::new())
    }

    /// A node with both cards, which gives the split label form.
    pub fn mixed(name: &str) -> Self {
        Self::with_cards(name, vec![Card::rx_7900_xtx(), Card::rx_7600()])
    }

    fn with_cards(name: &str, cards: Vec<Card>) -> Self {
        Self { name: name.to_owned(), cards, labels: BTreeMap::new(), cpus: 16, memory_gib: 64, pods: 110 }
    }

    /// All labels of the Node object.
    pub fn node_labels(&self) -> BTreeMap<String, String> {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), self.name.clone()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), arch.to_owned()),
        ]);
        labels.extend(gpu_labels(&self.cards));
        labels.extend(self.labels.clone());
        labels
    }

    /// Capacity, or allocatable, with this many cards usable.
    pub fn resources(&self, usable_gpus: usize) -> BTreeMap<String, Quantity> {
        let mut resources = BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Gi", self.memory_gib))),
            ("ephemeral-storage".to_owned(), Quantity("200Gi".to_owned())),
            ("pods".to_owned(), Quantity(self.pods.to_string())),
        ]);
        if !self.cards.is_empty() {
            resources.insert(GPU_RESOURCE.to_owned(), Quantity(usable_gpus.to_string()));
        }
        resources
    }
}

/// The labels that AMD's node labeller gives a node with these cards.
fn gpu_labels(cards: &[Card]) -> BTreeMap<String, String> {
    let mut kinds: BTreeMap<&'static str, BTreeMap<String, u32>> = BTreeMap::new();
    for (kind, value) in cards.iter().flat_map(Card::properties) {
        *kinds.entry(kind).or_default().entry(value).or_default() += 1;
    }
    let mut labels = BTreeMap::new();
    for (kind, values) in kinds {
        let only = values.len() == 1;
        for (value, count) in values {
            labels.insert(format!("beta.amd.com/gpu.{kind}.{value}"), count.to_string());
            if only {
                labels.insert(format!("beta.amd.com/gpu.{kind}"), value.clone());
                labels.insert(format!("amd.com/gpu.{kind}"), value);
            } else {
                labels.insert(format!("amd.com/gpu.{kind}.{value}"), count.to_string());
            }
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels under `amd.com/` and `beta.amd.com/`, one `key=value` a line.
    fn amd_labels(spec: &NodeSpec) -> Vec<String> {
        let labels = spec.node_labels().into_iter().filter(|(key, _)| key.contains("amd.com/"));
        labels.map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn one_card_gives_plain_keys_and_counted_beta_keys() {
        assert_eq!(
            amd_labels(&NodeSpec::rx_7900_xtx("n")),
            [
                "amd.com/gpu.cu-count=96",
                "amd.com/gpu.device-id=744c",
                "amd.com/gpu.family=GC_11_0_0",
                "amd.com/gpu.product-name=AMD_Radeon_RX_7900_XTX",
                "amd.com/gpu.simd-count=192",
                "amd.com/gpu.vram=24G",
                "beta.amd.com/gpu.cu-count=96",
                "beta.amd.com/gpu.cu-count.96=1",
                "beta.amd.com/gpu.device-id=744c",
                "beta.amd.com/gpu.device-id.744c=1",
                "beta.amd.com/gpu.family=GC_11_0_0",
                "beta.amd.com/gpu.family.GC_11_0_0=1",
                "beta.amd.com/gpu.product-name=AMD_Radeon_RX_7900_XTX",
                "beta.amd.com/gpu.product-name.AMD_Radeon_RX_7900_XTX=1",
                "beta.amd.com/gpu.simd-count=192",
                "beta.amd.com/gpu.simd-count.192=1",
                "beta.amd.com/gpu.vram=24G",
                "beta.amd.com/gpu.vram.24G=1",
            ]
        );
    }

    #[test]
    fn two_kinds_of_card_split_every_key_that_differs() {
        let labels = NodeSpec::mixed("n").node_labels();
        for (key, value) in [
            ("amd.com/gpu.vram.24G", "1"),
            ("amd.com/gpu.vram.8G", "1"),
            ("amd.com/gpu.cu-count.96", "1"),
            ("amd.com/gpu.cu-count.32", "1"),
            ("amd.com/gpu.family", "GC_11_0_0"),
            ("beta.amd.com/gpu.family.GC_11_0_0", "2"),
        ] {
            assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert!(!labels.contains_key("amd.com/gpu.vram"));
        assert!(!labels.contains_key("beta.amd.com/gpu.vram"));
    }

    #[test]
    fn a_node_without_cards_has_neither_labels_nor_the_resource() {
        let spec = NodeSpec::without_gpu("n");
        assert_eq!(amd_labels(&spec), Vec::<String>::new());
        assert!(!spec.resources(0).contains_key(GPU_RESOURCE));
    }

    #[test]
    fn a_lost_card_leaves_the_resource_at_zero() {
        let spec = NodeSpec::rx_7600("n");
        assert_eq!(spec.resources(0).get(GPU_RESOURCE), Some(&Quantity("0".into())));
        assert_eq!(spec.resources(1).get(GPU_RESOURCE), Some(&Quantity("1".into())));
    }
}
