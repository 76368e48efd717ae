//! Which device computes.

mod hip;

use crate::config::{Backend as Choice, Compute, Serve};
use crate::error::Fatal;
use crate::model::{ModelConfig, ModelShape, Tensors};
use atlas_engine_core::backend::Backend;
use atlas_kernels::CpuBackend;
use atlas_kernels::hip::Card;
use atlas_kernels::hip::predict::HOST_GIGABYTES_PER_SECOND;

pub use hip::card_bytes;

/// Devices in the order of a step, and how many layers each takes at most.
pub type Devices = Vec<(Box<dyn Backend>, usize)>;

pub use hip::{any as any_card, host_bytes};

/// Refuses what this build or this machine cannot do, before anything is fetched; the answer is the card, with `hip`.
///
/// # Errors
/// The backend is not in this build, or the card cannot be used.
pub fn check(arguments: &Serve) -> Result<Option<Card>, Fatal> {
    match arguments.backend {
        Choice::Hip => hip::find(arguments).map(Some),
        Choice::Cpu => {
            for (flag, given) in [
                ("--expect-gfx-target", arguments.expect_gfx_target.is_some()),
                ("--expect-vram-bytes", arguments.expect_vram_bytes.is_some()),
            ] {
                if given {
                    tracing::warn!(
                        flag,
                        "the cpu backend has no card to compare with; the flag is not checked"
                    );
                }
            }
            Ok(None)
        }
    }
}

/// Layers that the processor takes from a card: the head stays there, and one layer with it.
pub fn offloaded_layers(arguments: &Serve, config: &ModelConfig) -> usize {
    arguments.cpu_layers.min(config.layers.saturating_sub(1))
}

/// The devices that were asked for, with room for a model of these numbers, and how many layers each takes.
///
/// # Errors
/// One cannot be used, or the model does not fit it.
pub fn select(
    arguments: &Serve,
    tensors: &Tensors,
    config: &ModelConfig,
    shape: &ModelShape,
) -> Result<Devices, Fatal> {
    let cpu =
        || -> Result<Box<dyn Backend>, Fatal> { Ok(Box::new(CpuBackend::new(arguments.thread_count())?)) };
    match arguments.backend {
        Choice::Cpu => Ok(vec![(cpu()?, usize::MAX)]),
        Choice::Hip => {
            let offloaded = offloaded_layers(arguments, config);
            if offloaded > 0 {
                tracing::warn!(
                    layers = offloaded,
                    of = config.layers,
                    expected_tokens_per_second = hip::expected_speed(arguments, tensors, config, offloaded),
                    if_memory_gives_gigabytes_per_second = HOST_GIGABYTES_PER_SECOND,
                    "experimental: the processor takes layers, and every token waits for the machine's memory"
                );
            }
            let card = hip::open(hip::options(arguments), tensors, config, offloaded, shape)?;
            if offloaded == 0 {
                return Ok(vec![(card, usize::MAX)]);
            }
            Ok(vec![(cpu()?, offloaded), (card, usize::MAX)])
        }
    }
}

/// The one device of a benchmark or a comparison, with room for a model of these numbers.
///
/// # Errors
/// It cannot be used, or the model does not fit it.
pub fn alone(
    compute: &Compute,
    tensors: &Tensors,
    config: &ModelConfig,
    shape: &ModelShape,
) -> Result<Box<dyn Backend>, Fatal> {
    match compute.backend {
        Choice::Cpu => Ok(Box::new(CpuBackend::new(compute.thread_count())?)),
        Choice::Hip => hip::open(any_card(&compute.hip), tensors, config, 0, shape),
    }
}
