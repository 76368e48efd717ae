//! Status of an `AtlasModel`.

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{Condition, Time},
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the controller and the gateways saw of a model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AtlasModelStatus {
    /// Generation of the specification that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The stable URL, inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The tier that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_tier: Option<String>,
    /// The model file that serves, as shown in `x-atlas-model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_model: Option<String>,
    /// The product name of the card that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_gpu: Option<String>,
    /// Memory that the serving tier needs of what its card offers, such as `20629Mi/22000Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_vram: Option<String>,
    /// What is being downloaded, such as `primary 42%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<String>,
    /// Replicas of the first tier, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the first tier's pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Each tier, in the order of the specification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tiers: Vec<TierStatus>,
    /// Failovers that the gateways measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverStatus>,
    /// `Accepted`, `VramFits`, `Scheduled`, `ModelCached`, `Available`, `Degraded`, `Progressing`, `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One tier as it is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TierStatus {
    /// Name of the tier.
    pub name: String,
    /// Node of its pod; of the first by name where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Pods that are ready.
    #[serde(default)]
    pub ready: i32,
    /// Pods that are wanted.
    #[serde(default)]
    pub replicas: i32,
    /// What keeps it from serving, or what it does; empty while it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Planned memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram: Option<VramStatus>,
    /// Download of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<DownloadStatus>,
    /// What an engine of this tier read in its model's header; absent where the operator reads the header itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderStatus>,
}

/// The numbers of a model's header that a plan needs, as an engine read them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HeaderStatus {
    /// The source that it was read from.
    pub source: String,
    /// Architecture, such as `llama`.
    pub architecture: String,
    /// Name of the quantization, such as `Q4_K_M`, where the header tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Number of weights.
    pub parameters: i64,
    /// Bytes of each layer's weights.
    pub layer_weight_bytes: Vec<i64>,
    /// Bytes of the weights that belong to no layer: embeddings, output head, norms.
    pub other_weight_bytes: i64,
    /// Elements of a token's keys in the KV cache of one layer.
    pub key_elements: i64,
    /// Elements of a token's values in the KV cache of one layer.
    pub value_elements: i64,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Width of the feed-forward layer.
    pub feed_forward: i64,
    /// Elements of a token's queries.
    pub query_elements: i64,
    /// Whether a Q8_0 KV cache can hold its heads.
    pub takes_q8_cache: bool,
    /// Size of the vocabulary.
    pub vocabulary: i64,
    /// Context that the model was trained for, in tokens.
    pub trained_context: i64,
}

/// Planned memory of a tier on its card.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct VramStatus {
    /// Weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Quantity>,
    /// KV cache at the full context and batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<Quantity>,
    /// Activations and runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead: Option<Quantity>,
    /// Sum of the three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<Quantity>,
    /// What the card offers: its memory less the reserve, or `maxVram`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<Quantity>,
    /// The most that an engine of this tier was seen to use; absent on processors and before it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Quantity>,
    /// Largest context that fits at this batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_context_tokens: Option<i32>,
}

/// Download of a tier's weights.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct DownloadStatus {
    /// Bytes on the node.
    pub bytes: i64,
    /// Bytes of the whole file, where the source says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
    /// Percent done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
    /// Times it was begun.
    pub attempts: i32,
}

/// Failovers that the gateways measured.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct FailoverStatus {
    /// Number of moves away from a better tier.
    pub count: i64,
    /// Time of the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
    /// Its cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reason: Option<String>,
    /// Milliseconds from the first sign of trouble to the move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_millis: Option<i64>,
}
