//! Products of repacked weights with rows of activations.
//!
//! Quantized weights are multiplied with activations that are quantized too, to int8 in groups of 32 columns with an
//! f32 scale each; weights of floats with f32. Weights are repacked once into panels of 32 interleaved rows that keep the
//! file's bits a weight, so that a register holds 4 columns of 16 rows; until then panels are made for each use.
//!
//! # Row invariance
//! An element of a result is one lane: for each group of columns in ascending order, the exact integer dot product,
//! times the weight's factor, times the activation's scale, added by one fused multiply-add. Tiles, threads, blocking
//! and the instruction set change where and when that is computed, and not one bit of it.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod floats;
mod format;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod ops;
mod pack;
mod packed;
mod portable;
mod quants;
mod scales;
mod storage;

#[cfg(target_arch = "x86_64")]
use crate::lanes::Level;
pub use activations::{Activations, RowWriter};
pub use ops::PackError;
pub use packed::{Items, Output, Packed};

/// What products need of activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Operands {
    /// Quantized: there are quantized weights.
    pub int8: bool,
    /// As they are: there are weights of floats.
    pub floats: bool,
}

impl Operands {
    /// What both need.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { int8: self.int8 || other.int8, floats: self.floats || other.floats }
    }
}

/// The instruction sets that products are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// With dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The best that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        match Level::detect() {
            Level::Avx512 if is_x86_feature_detected!("avx512vnni") => return Self::Avx512Vnni,
            Level::Avx512 | Level::Avx2 => return Self::Avx2,
            Level::Portable => {}
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            return Self::Neon;
        }
        Self::Portable
    }

    /// All that this processor has.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        match Self::detect() {
            Self::Avx512Vnni => all.extend([Self::Avx2, Self::Avx512Vnni]),
            best => all.push(best),
        }
        #[cfg(target_arch = "aarch64")]
        if Self::detect() == Self::Neon {
            all.push(Self::Neon);
        }
        all
    }
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod counts;
#[cfg(test)]
mod tests;
