//! The API of Atlas Operator: `AtlasModel` and `GpuProfile`, group `atlas.gillsystems.com`, version `v1alpha1`.
//!
//! This crate holds the types, their schema and the strings that Kubernetes matches on.
//! It deliberately has no client and no decision: reading and writing objects is the operator's work, deciding
//! what they mean is `atlas-operator-core`'s.
//! The manifests under `crds/manifests/` are written from these types by the `crdgen` binary.

// The printer columns of `#[kube(...)]` repeat their keys, which the lint takes for attributes given twice.
#![allow(clippy::duplicated_attributes)]

pub mod condition;
pub mod manifests;
pub mod model;
pub mod names;
pub mod profile;
pub mod quantity;
mod schema;
pub mod source;
pub mod status;

pub use condition::{ModelCondition, ProfileCondition};
pub use model::{AtlasModel, AtlasModelSpec, Tier};
pub use profile::{GpuProfile, GpuProfileSpec};
pub use source::ModelSource;
