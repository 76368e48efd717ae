//! The kernels of a card, looked up once. `products`, `rows` and `attention` launch them.
//!
//! Each launching method checks that every operand is as large as the shapes say, fills the kernel's one struct and
//! launches it. The contents of index operands (ids, slots, tables) are the caller's to check.

use super::device::{Device, Kernel};
use super::error::HipError;
use super::format::Format;

/// Rows of activations that one launch of the matrix-vector kernels takes at most.
pub const MATVEC_ROWS: u32 = 8;
/// Rows whose products take the matrix-vector kernels, in several launches where one is not enough.
///
/// Two launches read the weights twice, and a tile of WMMA multiplies 64 rows however few there are, with a workgroup for
/// 128 rows of weights: 40 of them for a matrix of 5120 rows, on a card of 96 compute units. On an H100 16 rows of a 13B
/// took 20 ms this way and 145 ms by tiles, and the break-even lies beyond 64 rows; for AMD's WMMA, which needs no way
/// around as NVIDIA's does, it is taken to lie lower.
pub const FEW_ROWS: u32 = 2 * MATVEC_ROWS;
/// Head sizes that prefill attention is compiled for, with the cache types that take them.
pub const HEAD_SIZES: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// Tokens that each matrix-vector variant takes.
pub(super) const MATVEC_TOKENS: [u32; 4] = [1, 2, 4, MATVEC_ROWS];
/// Rows of weights that a wave of theirs has.
pub(super) const MATVEC_WAVE_ROWS: u32 = 2;
/// Query heads that share a workgroup of decode attention.
const ATTEND_GROUPS: [u32; 3] = [1, 4, 8];

/// How keys and values lie in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Cache {
    F16,
    Q8,
}

impl Cache {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// Whether kernels read heads of this size: whole vectors, and whole blocks of scales.
    #[must_use]
    pub fn takes(self, size: usize) -> bool {
        let step = match self {
            Self::F16 => 16,
            Self::Q8 => 32,
        };
        size > 0 && size.is_multiple_of(step) && size <= 256
    }

    /// Bytes of one head of 16 positions.
    #[must_use]
    pub fn head_bytes(self, size: usize) -> usize {
        match self {
            Self::F16 => size * 32,
            Self::Q8 => size / 32 * 34 * 16,
        }
    }
}

pub(super) struct OfFormat {
    pub matvec: [Kernel; 4],
    pub matmul: Kernel,
    pub embed: Kernel,
}

/// Every kernel of the card.
pub struct Kernels {
    formats: Vec<(Format, OfFormat)>,
    pub(super) quantize_q8: Kernel,
    pub(super) quantize_h16: Kernel,
    pub(super) norm: Kernel,
    pub(super) head_norm: Kernel,
    pub(super) swiglu: Kernel,
    pub(super) add: Kernel,
    pub(super) gather: Kernel,
    pub(super) copy_blocks: Kernel,
    rope_kv: [Kernel; 2],
    attend: [[Kernel; 3]; 2],
    prefill: [Vec<(usize, Kernel)>; 2],
    merge: Kernel,
    pub(super) top_k: Kernel,
    pub(super) copy: Kernel,
}

impl Kernels {
    /// Looks all of them up.
    ///
    /// # Errors
    /// One is missing.
    pub fn new(device: &Device) -> Result<Self, HipError> {
        let of = |module, name: &str, threads| device.kernel(module, name, threads);
        let per_cache = |module, name: &str| -> Result<[Kernel; 2], HipError> {
            let of = |cache: Cache| device.kernel(module, &format!("{name}_{}", cache.name()), 128);
            Ok([of(Cache::F16)?, of(Cache::Q8)?])
        };
        let mut formats = Vec::new();
        for format in Format::ALL {
            let name = format.name();
            let matvec = |tokens| of("matvec", &format!("matvec_{name}_{tokens}"), 128);
            let kernels = OfFormat {
                matvec: [matvec(1)?, matvec(2)?, matvec(4)?, matvec(8)?],
                matmul: of("matmul", &format!("matmul_{name}"), 128)?,
                embed: of("embed", &format!("embed_{name}"), 64)?,
            };
            formats.push((format, kernels));
        }
        let attend = |cache: Cache| -> Result<[Kernel; 3], HipError> {
            let of = |group| of("attend", &format!("attend_{}_{group}", cache.name()), 128);
            Ok([of(ATTEND_GROUPS[0])?, of(ATTEND_GROUPS[1])?, of(ATTEND_GROUPS[2])?])
        };
        let prefill = |cache: Cache| -> Result<Vec<(usize, Kernel)>, HipError> {
            let of = |size| {
                let kernel = of("prefill", &format!("prefill_{}_{size}", cache.name()), 128)?;
                Ok((size, kernel))
            };
            HEAD_SIZES.into_iter().filter(|size| cache.takes(*size)).map(of).collect()
        };
        Ok(Self {
            formats,
            quantize_q8: of("quantize", "quantize_q8", 256)?,
            quantize_h16: of("quantize", "quantize_h16", 256)?,
            norm: of("norm", "rms_norm", 512)?,
            head_norm: of("norm", "head_norm", 128)?,
            swiglu: of("elementwise", "swiglu", 256)?,
            add: of("elementwise", "add", 256)?,
            gather: of("elementwise", "gather", 256)?,
            copy_blocks: of("elementwise", "copy_blocks", 256)?,
            rope_kv: per_cache("rope_kv", "rope_kv")?,
            attend: [attend(Cache::F16)?, attend(Cache::Q8)?],
            prefill: [prefill(Cache::F16)?, prefill(Cache::Q8)?],
            merge: of("attend", "merge", 128)?,
            top_k: of("sample", "top_k", 256)?,
            copy: of("copy", "copy", 256)?,
        })
    }

    pub(super) fn of(&self, format: Format) -> &OfFormat {
        let found = self.formats.iter().find(|(of, _)| *of == format);
        &found.expect("every format was looked up").1
    }

    pub(super) fn attention(&self, cache: Cache) -> AttentionKernels<'_> {
        let index = cache as usize;
        AttentionKernels {
            rope_kv: self.rope_kv[index],
            attend: &self.attend[index],
            prefill: &self.prefill[index],
            merge: self.merge,
        }
    }
}

/// The kernels of one cache type; `attention.rs` launches them.
pub(super) struct AttentionKernels<'a> {
    pub rope_kv: Kernel,
    /// One for 1, 4 and 8 query heads.
    pub attend: &'a [Kernel; 3],
    /// One for each of [`HEAD_SIZES`] that the cache takes, beside its size.
    pub prefill: &'a [(usize, Kernel)],
    pub merge: Kernel,
}

impl AttentionKernels<'_> {
    /// The decode kernel for so many query heads a key head, and the workgroups that it takes for a key head.
    pub fn attend_for(&self, group: u32) -> (Kernel, u32) {
        let index = ATTEND_GROUPS.iter().position(|most| group <= *most).unwrap_or(ATTEND_GROUPS.len() - 1);
        (self.attend[index], group.div_ceil(ATTEND_GROUPS[index]))
    }
}
