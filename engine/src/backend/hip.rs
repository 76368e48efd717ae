//! The card: found and compared with the flags before anything is fetched, opened once the model's size is known.

use crate::config::Serve;
use crate::error::Fatal;
use crate::model::{ModelConfig, ModelShape};
use atlas_engine_core::backend::{Backend, KvSpec};
use atlas_engine_core::program::Heads;
use atlas_format::{Gguf, TensorInfo};
use atlas_kernels::hip::{self, Card, Expected, HipBackend, Options, Sizes};

fn options(arguments: &Serve) -> Options {
    Options {
        root: arguments.hip.system_root.clone(),
        library: arguments.hip.hip_library.clone(),
        expected: Expected {
            gfx_target: arguments.expect_gfx_target.clone(),
            vram_bytes: arguments.expect_vram_bytes,
        },
        ..Options::new()
    }
}

/// The card, if it and its runtime can be used.
///
/// # Errors
/// No card, no permission, another card than planned, no runtime, or no kernels in this build.
pub fn find(arguments: &Serve) -> Result<Card, Fatal> {
    Ok(hip::find(&options(arguments))?)
}

/// Opens the card with memory for the weights, the cache and the largest step.
///
/// # Errors
/// The card has not so much memory, or a call fails.
pub fn open(
    arguments: &Serve,
    header: &Gguf,
    config: &ModelConfig,
    offloaded: usize,
    shape: &ModelShape,
) -> Result<Box<dyn Backend>, Fatal> {
    let spec = config.kv_spec(shape.kv_type, shape.blocks);
    let layers =
        spec.layers.start.saturating_add(u16::try_from(offloaded).unwrap_or(u16::MAX))..spec.layers.end;
    let spec = KvSpec { layers, ..spec };
    let kv = spec.block_bytes().map_or(0, |bytes| bytes.saturating_mul(u64::from(shape.blocks)));
    // The embedding goes with the first layers, where the head has a matrix of its own.
    let own_head = header.tensors().iter().any(|tensor| tensor.name == "output.weight");
    let on_card = |tensor: &&TensorInfo| match layer(&tensor.name) {
        Some(layer) => layer >= offloaded,
        None => offloaded == 0 || !own_head || tensor.name != "token_embd.weight",
    };
    // Each begins at a multiple of 256 bytes.
    let bytes = |tensor: &TensorInfo| tensor.byte_range().map_or(0, |range| (range.end - range.start) + 255);
    let weight_bytes: u64 = header.tensors().iter().filter(on_card).map(bytes).sum();
    let sizes = Sizes {
        hidden: config.hidden,
        feed_forward: config.feed_forward,
        vocabulary: config.vocabulary,
        heads: Heads { query: config.heads, kv: config.kv_heads, size: config.head_size },
    };
    let scratch = sizes.scratch_bytes(&shape.max);
    let arena_bytes = weight_bytes.saturating_add(kv).saturating_add(scratch);
    tracing::info!(weight_bytes, kv_cache_bytes = kv, scratch_bytes = scratch, "taking memory on the card");
    Ok(Box::new(HipBackend::open(&Options { arena_bytes: Some(arena_bytes), ..options(arguments) })?))
}

/// The layer that a tensor belongs to, by its name: `blk.17.ffn_up.weight`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
