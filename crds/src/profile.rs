//! `GpuProfile`: one kind of card, and how its nodes are found.

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One kind of card: what it has, what of it is kept free, and how its nodes are found.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "atlas.gillsystems.com",
    version = "v1alpha1",
    kind = "GpuProfile",
    plural = "gpuprofiles",
    shortname = "gpup",
    category = "atlas",
    status = "GpuProfileStatus",
    derive = "PartialEq",
    doc = "One kind of card: what it has, what of it is kept free, and how its nodes are found.",
    printcolumn(name = "Product", type_ = "string", json_path = ".spec.product"),
    printcolumn(name = "VRAM", type_ = "string", json_path = ".spec.vram"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.matchedNodes"),
    printcolumn(name = "Capacity", type_ = "integer", json_path = ".status.capacity"),
    printcolumn(name = "InUse", type_ = "integer", json_path = ".status.inUse"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.gfxTarget", priority = "1"),
    printcolumn(
        name = "Unambiguous",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Unambiguous\")].status",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.backend != 'Hip' || has(self.gfxTarget)")
        .message("gfxTarget is required with backend Hip, for example gfx1100 for a Radeon RX 7900 XTX"),
    validation = Rule::new("self.backend != 'Hip' || has(self.match)")
        .message("match is required with backend Hip: set match.vramClass and match.computeUnits, or the profile finds no node"),
    validation = Rule::new("!isQuantity(string(self.vram)) || !isQuantity(string(self.reservedVram)) || quantity(string(self.reservedVram)).isLessThan(quantity(string(self.vram)))")
        .message("reservedVram must be less than vram: nothing would be left for a model"),
    validation = Rule::new("!has(self.tolerations) || self.tolerations.all(t, (has(t.operator) && t.operator == 'Exists') ? (!has(t.value) || t.value == '') : (has(t.key) && t.key != ''))")
        .message("tolerations: one with operator Exists takes no value, and any other needs a key")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuProfileSpec {
    /// The product's name as people know it, for example `Radeon RX 7900 XTX`.
    #[schemars(length(min = 1, max = 128))]
    pub product: String,
    /// What runs the model on this card.
    #[serde(default)]
    pub backend: Backend,
    /// Instruction set of the card as the compiler names it, for example `gfx1100`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::gfx_target")]
    pub gfx_target: Option<String>,
    /// Memory that the driver reports (`mem_info_vram_total`), for example `24560Mi`; not the rounded marketing figure.
    #[schemars(schema_with = "crate::schema::memory")]
    pub vram: Quantity,
    /// Memory that is never planned for: the desktop, the driver, fragmentation. The hardware guide asks for 2 to 3 GB.
    #[serde(default = "default_reserved_vram")]
    #[schemars(schema_with = "crate::schema::memory_or_zero")]
    pub reserved_vram: Quantity,
    /// Number of compute units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub compute_units: Option<i32>,
    /// Board power in watts, for capacity planning only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2000))]
    pub board_power_watts: Option<i32>,
    /// Largest batch that is sensible on this card; a tier asking for more is refused.
    #[serde(default = "default_max_batch")]
    #[schemars(range(min = 1, max = 256))]
    pub max_batch: i32,
    /// How nodes with this card are found: by the labels that the AMD node labeller sets, in plain and in split form.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub node_match: Option<NodeMatch>,
    /// How a pod gets its card: from the device plugin, or through a DRA resource claim.
    #[serde(default)]
    pub allocation: Allocation,
    /// Extended resource that the device plugin advertises.
    #[serde(default = "default_resource_name")]
    #[schemars(schema_with = "crate::schema::resource_name")]
    pub resource_name: String,
    /// Versions of the amdgpu driver that this card was validated with, as the node label `amd.com/gpu.driver-version`
    /// tells them; `6.3.6` holds for `6.3.6-1718217.22.04` too. Others are told, never refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64)))]
    pub validated_drivers: Vec<String>,
    /// Taints of this card's nodes that engine pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// Ids of the host's render and video groups, which own `/dev/kfd` and `/dev/dri/render*`; they differ between distributions.
    #[serde(default = "default_groups")]
    #[schemars(length(max = 16), inner(range(min = 0, max = 2_147_483_647)))]
    pub supplemental_groups: Vec<i64>,
    /// Where engines of this profile keep model files.
    #[serde(default)]
    pub model_cache: ModelCache,
}

/// What runs the model.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// HIP kernels on an AMD card.
    #[default]
    Hip,
    /// The CPU of any node.
    Cpu,
}

/// How a pod gets its card.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// An extended resource of the AMD device plugin.
    #[default]
    DevicePlugin,
    /// A claim against the DRA DeviceClass `gpu.amd.com`, which can tell two cards of one node apart.
    ResourceClaim,
}

/// Labels of the AMD node labeller that identify the card. Both are compared, since neither is unique alone.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeMatch {
    /// Value of `amd.com/gpu.vram`, a rounded class name such as `24G`.
    #[schemars(schema_with = "crate::schema::vram_class")]
    pub vram_class: String,
    /// Value of `amd.com/gpu.cu-count`.
    #[schemars(range(min = 1, max = 1024))]
    pub compute_units: i32,
}

/// Where model files are kept: exactly one of the three; an empty folder of the pod where none is named.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = Rule::new("[has(self.emptyDir), has(self.claim), has(self.hostPath)].filter(x, x).size() <= 1")
    .message("modelCache takes one of emptyDir, claim and hostPath"))]
#[serde(rename_all = "camelCase")]
pub struct ModelCache {
    /// A folder that lives as long as the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirCache>,
    /// A PersistentVolumeClaim in the model's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimCache>,
    /// A folder of the node. The restricted and baseline Pod Security Standards refuse such pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathCache>,
}

/// A folder that lives as long as the pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDirCache {
    /// Upper bound of its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::memory")]
    pub size_limit: Option<Quantity>,
}

/// A PersistentVolumeClaim.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimCache {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Group that owns the volume's files.
    #[serde(default = "default_fs_group")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub fs_group: i64,
}

/// A folder of the node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("!self.path.matches('(^|/)[.][.](/|$)')")
    .message("modelCache.hostPath.path must not lead upwards: write it without .."))]
#[serde(rename_all = "camelCase")]
pub struct HostPathCache {
    /// Absolute path on the node.
    #[schemars(length(max = 1024), regex(pattern = "^/.+"))]
    pub path: String,
}

/// What the controller saw of a card's nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GpuProfileStatus {
    /// Generation of the specification that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes with this card, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub nodes: Vec<ProfileNode>,
    /// Number of matched nodes.
    #[serde(default)]
    pub matched_nodes: i32,
    /// Cards that the matched nodes offer (allocatable).
    #[serde(default)]
    pub capacity: i32,
    /// Cards that engine pods of Atlas hold.
    #[serde(default)]
    pub in_use: i32,
    /// Nodes on which an engine found another card than this profile's; none is tried again before its time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub excluded: Vec<ExcludedNode>,
    /// Cards that failed lately; one that failed again within an hour is left alone for a while, longer each time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub card_faults: Vec<CardFault>,
    /// What engines measured of the runtime's share of this card; plans to come take it in place of the estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// `NodesMatched`, `NodesUsable`, `Unambiguous`, `LabelsConsistent`, `CardsHealthy`, `DriverValidated`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::cel::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The runtime's share of a card, as engines measured it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Calibration {
    /// Target of the cards that it holds for.
    pub gfx_target: String,
    /// Memory that the runtime takes beside weights, KV cache and activations: the highest of the engines that serve,
    /// rounded up and bounded.
    pub runtime: Quantity,
    /// The engine that measured it: namespace, model and tier.
    pub measured_on: String,
    /// Since when this figure holds.
    pub since: Time,
}

/// A node on which an engine found another card.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExcludedNode {
    /// The node's name.
    pub name: String,
    /// Whether it takes no pods now; otherwise it may be tried again.
    pub active: bool,
    /// How often an engine found another card there.
    pub failures: i32,
    /// When the last one did.
    pub since: Time,
    /// When it may be tried again.
    pub until: Time,
    /// What the engine said.
    pub message: String,
}

/// A card that failed under an engine.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CardFault {
    /// The node's name.
    pub node: String,
    /// The card's PCI address, where the engine told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// Whether the node takes no pods of this profile now.
    pub active: bool,
    /// How often it failed, each time within an hour of the time before.
    pub count: i32,
    /// How it failed last.
    pub error: CardError,
    /// When it failed last.
    pub last: Time,
    /// Until when it is left alone; the same as `last` after the first time, which is forgiven.
    pub until: Time,
    /// What the engine said.
    pub message: String,
}

/// How a card failed.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardError {
    /// It did not finish its work.
    Hang,
    /// It is gone, or computes wrong values.
    Lost,
}

/// One node with the card.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProfileNode {
    /// The node's name.
    pub name: String,
    /// Cards of this kind on it, as far as the labels tell.
    pub cards: i32,
    /// Cards that can be handed out now; 0 with a positive capacity means that the device plugin is stuck.
    pub allocatable: i32,
    /// Cards that a new engine pod could get now: allocatable, less what pods of Atlas and of others hold.
    #[serde(default)]
    pub free: i32,
    /// Why it takes no new engine pod: not ready, cordoned, tainted, no card offered, cards held by other workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

fn default_reserved_vram() -> Quantity {
    Quantity("2560Mi".into())
}
fn default_max_batch() -> i32 {
    4
}
fn default_resource_name() -> String {
    "amd.com/gpu".into()
}
fn default_groups() -> Vec<i64> {
    vec![44, 109]
}
fn default_fs_group() -> i64 {
    65532
}
