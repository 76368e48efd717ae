//! `AtlasModel`: a model with its tiers, in order of preference, behind one stable URL.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time;

use crate::status::AtlasModelStatus;

/// A model with its tiers, in order of preference, behind one stable URL.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "atlas.gillsystems.com",
    version = "v1alpha1",
    kind = "AtlasModel",
    plural = "atlasmodels",
    shortname = "am",
    category = "atlas",
    category = "all",
    namespaced,
    status = "AtlasModelStatus",
    derive = "PartialEq",
    doc = "A model with its tiers, in order of preference, behind one stable OpenAI-compatible URL.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name becomes the name of a Service: at most 63 lower-case letters, digits and '-', starting with a letter"),
    validation = Rule::new("self.metadata.name != 'atlas-gateway'")
        .message("metadata.name 'atlas-gateway' is the gateway's own: choose another name"),
    validation = Rule::new("!has(self.spec.aliases) || !(self.metadata.name in self.spec.aliases)")
        .message("spec.aliases repeats metadata.name, which is a model id already: remove it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Active", type_ = "string", json_path = ".status.activeTier"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.activeModel"),
    printcolumn(name = "GPU", type_ = "string", json_path = ".status.activeGpu"),
    printcolumn(name = "VRAM", type_ = "string", json_path = ".status.activeVram"),
    printcolumn(name = "Failovers", type_ = "integer", json_path = ".status.failover.count"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = "1"
    ),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = "1"),
    printcolumn(name = "Download", type_ = "string", json_path = ".status.download", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.tiers.size() == 0 || !has(self.tiers[0].replicas)")
        .message("tiers[0].replicas: the first tier is scaled by spec.replicas (kubectl scale needs one path): set that and remove this"),
    validation = Rule::new("self.failover.mode != 'Pinned' || has(self.failover.pinnedTier)")
        .message("failover.pinnedTier is required with failover.mode Pinned: name the tier to pin"),
    validation = Rule::new("self.failover.mode == 'Pinned' || !has(self.failover.pinnedTier)")
        .message("failover.pinnedTier has no meaning with failover.mode Auto: remove it, or set mode Pinned"),
    validation = Rule::new("!has(self.failover.pinnedTier) || self.tiers.exists(t, t.name == self.failover.pinnedTier)")
        .message("failover.pinnedTier names no tier: use a name from spec.tiers[].name")
)]
#[serde(rename_all = "camelCase")]
pub struct AtlasModelSpec {
    /// Further model ids that clients may use besides the object's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub aliases: Vec<String>,
    /// Replicas of the first tier; what `kubectl scale` sets.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 64))]
    pub replicas: i32,
    /// Takes every engine of the model down and keeps the object.
    #[serde(default)]
    pub suspend: bool,
    /// What serves the model, in order of preference: a later tier serves while the ones before it cannot.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tiers: Vec<Tier>,
    /// When traffic moves to another tier, and back.
    #[serde(default)]
    pub failover: Failover,
    /// How a change of a tier is rolled out on a single card.
    #[serde(default)]
    pub rollout: Rollout,
    /// Limits of what clients may ask for.
    #[serde(default)]
    pub requests: Requests,
    /// Who may ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// What happens to a stream whose engine is lost.
    #[serde(default)]
    pub resume: Resume,
    /// How the Service URL is reached from outside the cluster.
    #[serde(default)]
    pub expose: Expose,
}

/// One way to serve the model: a model file on one kind of card.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Tier {
    /// Name of the tier, shown in `x-atlas-tier`.
    #[schemars(schema_with = "crate::schema::tier_name")]
    pub name: String,
    /// The GpuProfile whose cards this tier runs on.
    #[schemars(length(min = 1, max = 253))]
    pub gpu_profile: String,
    /// The model file.
    pub model: ModelFile,
    /// Context window in tokens, prompt and answer together.
    #[serde(default = "default_context_tokens")]
    #[schemars(range(min = 256, max = 1048576))]
    pub context_tokens: i32,
    /// Sequences that are generated at once.
    #[serde(default = "default_max_batch")]
    #[schemars(range(min = 1, max = 256))]
    pub max_batch: i32,
    /// Type of the KV cache's elements.
    #[serde(default)]
    pub kv_cache_type: KvCacheType,
    /// Upper bound of the card's memory that this tier may use, for example `21Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::memory")]
    pub max_vram: Option<Quantity>,
    /// Layers that run on the CPU because the card cannot hold them. Experimental, and slow.
    #[serde(default)]
    #[schemars(range(min = 0, max = 512))]
    pub cpu_offload_layers: i32,
    /// Replicas of a tier after the first; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub replicas: Option<i32>,
    /// How ready a tier is kept while one before it serves.
    #[serde(default)]
    pub standby: Standby,
    /// Overrides for the engine's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineOverrides>,
}

/// A model file and its checksum.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[x_kube(
    validation = Rule::new("self.source.matches('^(hf|https|http|s3|file)://.+')")
        .message("source has no known scheme: use hf://, https://, http://, s3:// or file:///"),
    validation = Rule::new("!self.source.startsWith('hf://') || self.source.matches('^hf://[^/@]+/[^/@]+(/[^@]*)?(@[^@/]+)?$')")
        .message("source: expected hf://OWNER/REPO or hf://OWNER/REPO/FILE, optionally with @REVISION"),
    validation = Rule::new("!self.source.startsWith('file://') || self.source.matches('^file:///.+')")
        .message("source: expected file:///ABSOLUTE/PATH, inside the model cache"),
    validation = Rule::new("!(self.source.startsWith('http') || self.source.startsWith('s3://')) || self.source.matches('^[a-z0-9]+://[^/]+/.+')")
        .message("source: expected https://HOST/PATH, http://HOST/PATH or s3://BUCKET/KEY"),
    validation = Rule::new("!has(self.sha256) || self.sha256.matches('^[a-f0-9]{64}$')")
        .message("sha256: expected 64 lower-case hex digits, as sha256sum prints them"),
    validation = Rule::new("!has(self.sha256) || !self.source.matches('^hf://[^/@]+/[^/@]+(/([^@]*/)?)?(@.*)?$|^https?://[^?]*/([?].*)?$|^[^?@]*[.]safetensors([.]index[.]json)?([?@].*)?$')")
        .message("sha256 is the sum of one file, and source is a folder of safetensors: leave it out and name a commit as revision"),
    validation = Rule::new("!has(self.credentialsSecret) || self.source.startsWith('hf://') || self.source.startsWith('s3://')")
        .message("credentialsSecret is for hf:// and s3:// sources: remove it"),
    validation = Rule::new("!has(self.s3) || self.source.startsWith('s3://')")
        .message("s3 is for s3:// sources: remove it")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelFile {
    /// Where the weights come from: `hf://OWNER/REPO/FILE[@REVISION]`, `https://`, `http://`, `s3://BUCKET/KEY` or `file:///PATH` in the model cache.
    /// `hf://OWNER/REPO`, an address with `/` at its end and a `.safetensors` file mean the folder of safetensors.
    #[schemars(length(min = 1, max = 2048))]
    pub source: String,
    /// SHA-256 of the file in lower-case hex; a file that differs is never served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub sha256: Option<String>,
    /// Secret in the same namespace with what the source asks for: `HF_TOKEN` for `hf://`, `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY` (with `AWS_SESSION_TOKEN` where they are temporary) for `s3://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::secret_name")]
    pub credentials_secret: Option<String>,
    /// Where the bucket of an `s3://` source is; Amazon's region us-east-1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Options>,
}

/// Where the bucket of an `s3://` source is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct S3Options {
    /// The server, for buckets that are not Amazon's: `https://HOST` or `http://HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::endpoint")]
    pub endpoint: Option<String>,
    /// The bucket's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::region")]
    pub region: Option<String>,
    /// Whether the bucket's name stands in the path and not before the host; by default with an `endpoint` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
}

/// Type of the KV cache's elements.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheType {
    /// 16-bit floating point.
    #[default]
    F16,
    /// Blocks of 32 signed bytes with a scale: half the memory, a little less exact.
    #[serde(rename = "Q8_0")]
    Q8_0,
}

impl KvCacheType {
    /// As specifications and the engine's command line write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
        }
    }
}

/// How ready a tier is kept while one before it serves.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standby {
    /// Loaded and ready: failover is immediate.
    #[default]
    Hot,
    /// Weights on every node of the profile, nothing loaded, and no card held; needs a model cache that outlives pods.
    Warm,
    /// Nothing prepared.
    Cold,
}

/// Overrides for the engine's container; the operator's settings give the defaults.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EngineOverrides {
    /// Container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Arguments appended to the operator's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub extra_args: Vec<String>,
    /// CPU and memory; the card is added by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// When traffic moves to another tier, and back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Failover {
    /// Whether traffic moves by itself or stays on one tier.
    pub mode: FailoverMode,
    /// The tier that serves in mode Pinned, whatever its health.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub pinned_tier: Option<String>,
    /// Time without a sign of life after which an engine counts as unhealthy. A refused connection counts at once.
    #[schemars(schema_with = "crate::schema::positive_duration")]
    pub unhealthy_after: Duration,
    /// Unbroken health after which traffic returns to a better tier.
    #[schemars(schema_with = "crate::schema::duration")]
    pub failback_after: Duration,
}

/// Whether traffic moves by itself.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailoverMode {
    /// The healthiest tier in order of preference serves.
    #[default]
    Auto,
    /// One tier serves, whatever its health.
    Pinned,
}

/// How a change of a tier is rolled out on a single card.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// Order of the steps.
    pub strategy: RolloutStrategy,
    /// Longest time that a terminating engine may take to finish what runs.
    #[schemars(schema_with = "crate::schema::duration")]
    pub drain_timeout: Duration,
    /// Longest time that a changed tier may take to become ready, its download included; after it the change is taken
    /// back and the last good revision returns.
    #[schemars(schema_with = "crate::schema::positive_duration")]
    pub ready_timeout: Duration,
}

/// Order of the steps of a rollout.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloutStrategy {
    /// One tier at a time, last first, each only while the next one is ready to take its traffic.
    #[default]
    ShiftThenRecreate,
    /// Every changed tier at once.
    Recreate,
}

/// Limits of what clients may ask for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Requests {
    /// Longest time from request to last token.
    #[schemars(schema_with = "crate::schema::positive_duration")]
    pub timeout: Duration,
    /// Requests that wait for a place in the batch, per engine; one more is answered 429.
    #[schemars(range(min = 0, max = 65536))]
    pub queue: i32,
    /// Largest request body.
    #[schemars(schema_with = "crate::schema::memory")]
    pub max_body_bytes: Quantity,
    /// Whether clients may say by `priority` how urgent a request is; otherwise the gateways take that field out.
    pub client_priority: bool,
    /// Web origins whose pages may use the model from a browser, such as `https://chat.example.com`; `*` is all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 253), regex(pattern = r"^(\*|https?://[^/\s]+)$"))
    )]
    pub cors_origins: Vec<String>,
}

/// Who may ask.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Secret in the same namespace whose values are API keys.
    #[schemars(length(min = 1, max = 253))]
    pub api_keys_secret: String,
}

/// What happens to a stream whose engine is lost.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Resume {
    /// Whether a broken stream may continue on another model.
    pub across_models: bool,
}

/// How the Service URL is reached from outside the cluster.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Expose {
    /// Kind of exposure.
    #[serde(rename = "type")]
    pub type_: ExposeType,
}

/// Kind of exposure.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExposeType {
    /// Inside the cluster only.
    #[default]
    ClusterIP,
    /// A port of every node.
    NodePort,
    /// A load balancer of the cloud.
    LoadBalancer,
    /// A Gateway API HTTPRoute.
    HTTPRoute,
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            mode: FailoverMode::Auto,
            pinned_tier: None,
            unhealthy_after: time::Duration::from_secs(1).into(),
            failback_after: time::Duration::from_secs(60).into(),
        }
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::ShiftThenRecreate,
            drain_timeout: time::Duration::from_secs(300).into(),
            ready_timeout: time::Duration::from_secs(3600).into(),
        }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            timeout: time::Duration::from_secs(300).into(),
            queue: 64,
            max_body_bytes: Quantity("8Mi".into()),
            client_priority: false,
            cors_origins: Vec::new(),
        }
    }
}

fn default_replicas() -> i32 {
    1
}
fn default_context_tokens() -> i32 {
    4096
}
fn default_max_batch() -> i32 {
    1
}
