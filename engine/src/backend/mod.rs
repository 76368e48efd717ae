//! Which device computes.

use crate::config::{Backend as Choice, Serve};
use crate::error::Fatal;
use atlas_engine_core::backend::Backend;
use atlas_kernels::CpuBackend;

/// Refuses what this build cannot do, before anything is fetched.
///
/// # Errors
/// The backend is not in this build.
pub fn check(arguments: &Serve) -> Result<(), Fatal> {
    match arguments.backend {
        Choice::Hip => Err(Fatal::NoHip),
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
            Ok(())
        }
    }
}

/// The device that was asked for.
///
/// # Errors
/// It is not in this build or cannot be used.
pub fn select(arguments: &Serve) -> Result<Box<dyn Backend>, Fatal> {
    match arguments.backend {
        Choice::Cpu => Ok(Box::new(CpuBackend::new(arguments.thread_count())?)),
        Choice::Hip => Err(Fatal::NoHip),
    }
}
