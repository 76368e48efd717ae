//! The label forms of the AMD node labeller.
//!
//! A node with one kind of card carries `amd.com/gpu.vram=24G`; with two kinds the plain key disappears and
//! `amd.com/gpu.vram.24G=1`, `amd.com/gpu.vram.8G=1` stand instead. The `beta.` prefix carries both forms always.
//! Split keys are never removed by the labeller, so a plain key wins over what may be a stale split one.

use std::collections::BTreeMap;

/// Prefixes of the labeller's keys, the current one first.
pub const PREFIXES: [&str; 2] = ["amd.com/gpu.", "beta.amd.com/gpu."];
/// Kind of label: the rounded memory class, for example `24G`.
pub const VRAM: &str = "vram";
/// Kind of label: the number of compute units.
pub const CU_COUNT: &str = "cu-count";
/// Keys of which an AMD node carries at least one; `family` stays plain where both cards share it.
pub const AMD_MARKER_KEYS: [&str; 6] = [
    "amd.com/gpu.vram",
    "amd.com/gpu.cu-count",
    "amd.com/gpu.device-id",
    "amd.com/gpu.family",
    "beta.amd.com/gpu.vram",
    "beta.amd.com/gpu.family",
];

/// What the labels of one kind say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelForm {
    /// One kind of card: its value.
    Plain(String),
    /// Several kinds of card: cards by value.
    Split(BTreeMap<String, i32>),
}

impl LabelForm {
    /// How many cards with this value there are; `None` where the plain form does not count them.
    #[must_use]
    pub fn count_of(&self, value: &str) -> Option<Option<i32>> {
        match self {
            Self::Plain(plain) => (plain == value).then_some(None),
            Self::Split(split) => split.get(value).map(|count| Some(*count)),
        }
    }
}

/// Reads the labels of one kind (`vram`, `cu-count`), or `None` where the node carries none.
#[must_use]
pub fn read_label(labels: &BTreeMap<String, String>, kind: &str) -> Option<LabelForm> {
    for prefix in PREFIXES {
        if let Some(value) = labels.get(&format!("{prefix}{kind}")) {
            return Some(LabelForm::Plain(value.clone()));
        }
    }
    PREFIXES.iter().find_map(|prefix| {
        let stem = format!("{prefix}{kind}.");
        let split: BTreeMap<String, i32> = labels
            .range(stem.clone()..)
            .take_while(|(key, _)| key.starts_with(&stem))
            .filter_map(|(key, count)| Some((key.strip_prefix(&stem)?.to_owned(), count.parse().ok()?)))
            .filter(|(_, count)| *count > 0)
            .collect();
        (!split.is_empty()).then_some(LabelForm::Split(split))
    })
}
