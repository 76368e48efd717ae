//! What the model is held against: runs of llama.cpp on an RX 7900 XTX that others have published, and this build's own
//! runs on an NVIDIA card.
//!
//! Of llama.cpp's kernels this build knows the bytes and the launches, not the registers, so its launches count by
//! their bytes and gaps. On the NVIDIA card the same sources ran; its instructions are not counted, but those of
//! the AMD objects, at a price of their own.

use super::model::{Llama, Mix};
use super::{CardLimits, GAP_MICROSECONDS, RX_7900_XTX, STREAM, predict};

/// Launches of a layer of llama.cpp's HIP backend with flash attention, in decoding: two norms and two additions;
/// seven products less one that is fused, each after a quantization; two rotations, of which one writes the keys;
/// the values' write; attention and its merge.
const PEER_LAUNCHES_PER_LAYER: u32 = 21;

/// A published run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published {
    /// The model.
    pub model: Llama,
    /// Tokens before those that were timed, and half of these.
    pub context: u32,
    /// Tokens a second, lowest and highest.
    pub found: (f64, f64),
    /// Where it stands, with its date.
    pub source: &'static str,
    /// What was taken from it for the model; empty where nothing was.
    pub gives: &'static str,
}

const RESULTS: &str = "ggml-org/llama.cpp pull request 26284, 2026";
const SHARE: &str = "the difference of the two gives the share of bandwidth";
const ISSUE: &str = "ggml-org/llama.cpp issue 20934, 2026-03-24";

/// All of them: ROCm, one sequence.
pub const PUBLISHED: [Published; 5] = [
    Published {
        model: Llama::B8.with(Mix::Q5KM),
        context: 32,
        found: (100.5, 100.6),
        source: RESULTS,
        gives: "gives the gap",
    },
    Published {
        model: Llama::B8.with(Mix::Q4KM),
        context: 32,
        found: (105.5, 105.8),
        source: RESULTS,
        gives: SHARE,
    },
    Published {
        model: Llama::B8.with(Mix::Q4KM),
        context: 4096 + 32,
        found: (98.5, 98.7),
        source: RESULTS,
        gives: SHARE,
    },
    Published {
        model: Llama::B7.with(Mix::Q4_0),
        context: 64,
        found: (129.0, 144.0),
        source: ISSUE,
        gives: "",
    },
    Published {
        model: Llama::QWEN7.with(Mix::Q4KM),
        context: 64,
        found: (110.0, 114.0),
        source: ISSUE,
        gives: "",
    },
];

impl Published {
    /// Tokens a second that the model says.
    #[must_use]
    pub fn predicted(&self) -> f64 {
        let Self { model, context, .. } = self;
        let cache = model.cache_bytes_per_layer() * f64::from(model.layers * context);
        let memory = (model.read_bytes() + cache) / (RX_7900_XTX.gigabytes_per_second * STREAM) / 1e6;
        let launches = f64::from(model.layers * PEER_LAUNCHES_PER_LAYER + 4);
        1e3 / (memory + launches * GAP_MICROSECONDS / 1e3)
    }

    /// The middle of what was found.
    #[must_use]
    pub fn middle(&self) -> f64 {
        f64::midpoint(self.found.0, self.found.1)
    }
}

/// NVIDIA H200: four schedulers in each of 132 multiprocessors, the clock seen under load. Its share of bandwidth is the
/// self-test's copy (4.21 to 4.27 of 4.8 TB/s); its cycles, counted in the AMD objects' instructions, are what the self-test's
/// matvec_q4_k takes for 4 rows (1.69 TB/s); its gap is what one run took beyond that.
pub const H200: CardLimits = CardLimits {
    name: "NVIDIA H200",
    gfx_target: "gfx1100",
    gigabytes_per_second: 4800.0,
    teraflops: 989.0,
    simds: 528,
    gigahertz: 1.95,
    cycles_per_instruction: 2.3,
    stream: 0.89,
    gap_microseconds: 3.2,
};

/// A run of this build on the H200: `tests/nvidia.sh run`, 2026-11-26, random weights in the shape of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Own {
    /// The model.
    pub model: Llama,
    /// Tokens in each sequence's cache, at the middle of the run.
    pub context: u32,
    /// Sequences.
    pub batch: u32,
    /// Tokens a second over all of them.
    pub found: f64,
    /// What was taken from it for the model; empty where nothing was.
    pub gives: &'static str,
}

const fn own(model: Llama, context: u32, batch: u32, found: f64) -> Own {
    Own { model, context, batch, found, gives: "" }
}

/// All of them.
pub const OWN: [Own; 6] = [
    Own { gives: "the gap", ..own(Llama::B13, 528, 1, 242.4) },
    own(Llama::B13, 4112, 1, 191.0),
    own(Llama::B13, 528, 4, 599.6),
    own(Llama::MISTRAL, 528, 1, 358.3),
    own(Llama::MISTRAL, 4112, 1, 336.8),
    own(Llama::MISTRAL, 528, 4, 1070.1),
];

impl Own {
    /// Tokens a second that the model says.
    #[must_use]
    pub fn predicted(&self) -> f64 {
        predict(&H200, &self.model, self.context, self.batch).tokens_per_second()
    }

    /// The prediction's distance from what was found, relative to it.
    #[must_use]
    pub fn difference(&self) -> f64 {
        self.predicted() / self.found - 1.0
    }
}
