//! The card: found and compared with the flags before anything is fetched, opened once the model's size is known.

use crate::config::{HipFiles, Serve};
use crate::error::Fatal;
use crate::model::{ModelConfig, ModelShape, ROPE_FACTORS, Tensors};
use atlas_engine_core::backend::{Backend, KvSpec};
use atlas_engine_core::program::Heads;
use atlas_kernels::hip::predict::{CardLimits, Split};
use atlas_kernels::hip::{self, Card, Expected, HipBackend, Options, Sizes};

/// Whatever card there is.
pub fn any(files: &HipFiles) -> Options {
    Options { root: files.system_root.clone(), library: files.hip_library.clone(), ..Options::new() }
}

/// The card that the flags ask for.
pub fn options(arguments: &Serve) -> Options {
    let gfx_target = arguments.expect_gfx_target.clone();
    let expected = Expected { gfx_target, vram_bytes: arguments.expect_vram_bytes };
    Options { expected, ..any(&arguments.hip) }
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
    options: Options,
    tensors: &Tensors,
    config: &ModelConfig,
    offloaded: usize,
    shape: &ModelShape,
) -> Result<Box<dyn Backend>, Fatal> {
    let spec = config.kv_spec(shape.kv_type, shape.blocks);
    let layers =
        spec.layers.start.saturating_add(u16::try_from(offloaded).unwrap_or(u16::MAX))..spec.layers.end;
    let spec = KvSpec { layers, ..spec };
    let kv = spec.block_bytes().map_or(0, |bytes| bytes.saturating_mul(u64::from(shape.blocks)));
    let on_card = tensors.iter().filter(|(name, _)| !is_hosts(tensors, name, offloaded));
    // Each begins at a multiple of 256 bytes.
    let weight_bytes: u64 = on_card.map(|(_, tensor)| tensor.byte_count() + 255).sum();
    let sizes = Sizes {
        hidden: config.hidden,
        feed_forward: config.feed_forward,
        vocabulary: config.vocabulary,
        heads: Heads { query: config.heads, kv: config.kv_heads, size: config.head_size },
    };
    let scratch = sizes.scratch_bytes(&shape.max);
    let arena_bytes = weight_bytes.saturating_add(kv).saturating_add(scratch);
    tracing::info!(weight_bytes, kv_cache_bytes = kv, scratch_bytes = scratch, "taking memory on the card");
    Ok(Box::new(HipBackend::open(&Options { arena_bytes: Some(arena_bytes), ..options })?))
}

/// Tokens a second that one sequence should get, by the model of the card's data sheet and the weights' bytes; `None`
/// for cards that it does not know.
pub fn expected_speed(
    arguments: &Serve,
    tensors: &Tensors,
    config: &ModelConfig,
    offloaded: usize,
) -> Option<f64> {
    let card = Card::find(&arguments.hip.system_root).ok()?;
    let limits = CardLimits::of(&card.gfx_target, card.vram_bytes)?;
    let host_bytes = tensors.iter().filter(|(name, _)| layer(name).is_some_and(|layer| layer < offloaded));
    let host_bytes = host_bytes.map(|(_, tensor)| tensor.byte_count()).sum();
    let on_card = tensors.iter().filter(|(name, _)| !is_hosts(tensors, name, offloaded));
    let card_bytes = on_card.map(|(_, tensor)| tensor.byte_count()).sum();
    let split = Split { card_bytes, card_layers: config.layers.saturating_sub(offloaded), host_bytes };
    // Two digits are as many as a prediction has.
    Some((split.tokens_per_second(&limits) * 10.0).round() / 10.0)
}

/// Whether a tensor is the processor's alone when it takes so many first layers: the embedding goes with them, where the
/// head has a matrix of its own.
fn is_hosts(tensors: &Tensors, name: &str, layers: usize) -> bool {
    match layer(name) {
        Some(layer) => layer < layers,
        None => layers > 0 && name == "token_embd.weight" && has_own_head(tensors),
    }
}

fn has_own_head(tensors: &Tensors) -> bool {
    tensors.contains("output.weight")
}

/// Bytes of the weights that the processor holds when it takes so many first layers: theirs, and the embedding.
pub fn host_bytes(tensors: &Tensors, layers: usize) -> u64 {
    let held = |name: &str| layers > 0 && (name == "token_embd.weight" || is_hosts(tensors, name, layers));
    tensors.iter().filter(|(name, _)| held(name)).map(|(_, tensor)| tensor.byte_count()).sum()
}

/// The layer that a tensor belongs to, by its name: `blk.17.ffn_up.weight`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Bytes of the weights that go to the card when the processor takes so many first layers.
pub fn card_bytes(tensors: &Tensors, layers: usize) -> u64 {
    // The divisors of RoPE's frequencies go into every step's angles instead.
    let goes = |name: &str| name != ROPE_FACTORS && !is_hosts(tensors, name, layers);
    tensors.iter().filter(|(name, _)| goes(name)).map(|(_, tensor)| tensor.byte_count()).sum()
}
