//! How the scales of 16 rows lie before their quantized values, and what they become: f32 lanes.
//!
//! They stay as compact as in the file, so a repacked matrix has the file's bits a weight.

use super::quants::LANES;
use crate::blocks::{half, scale_and_min};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The scales of 16 rows by one superblock, ready to multiply with.
#[repr(align(64))]
pub(super) struct Scales {
    /// What values are multiplied with: one a group, or two a group of Q6_K.
    pub(super) factors: [[f32; LANES]; 16],
    /// What is added to a value after that, one a group.
    pub(super) offsets: [[f32; LANES]; 8],
}

impl Scales {
    /// Where the factors of a part begin.
    ///
    /// # Safety
    /// `scales` is valid.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) unsafe fn factors_at(scales: *mut Self, part: usize) -> *mut f32 {
        // SAFETY: the caller's promise; no reference is made to what may be uninitialised.
        unsafe { (&raw mut (*scales).factors).cast::<f32>().add(part * LANES) }
    }

    /// Where the offsets of a group begin.
    ///
    /// # Safety
    /// `scales` is valid.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) unsafe fn offsets_at(scales: *mut Self, group: usize) -> *mut f32 {
        // SAFETY: as above.
        unsafe { (&raw mut (*scales).offsets).cast::<f32>().add(group * LANES) }
    }

    pub(super) const ZERO: Self = Self { factors: [[0.0; LANES]; 16], offsets: [[0.0; LANES]; 8] };
}

/// A layout of scales.
pub(super) trait ScaleLayout {
    /// Bytes of 16 rows by one superblock.
    const BYTES: usize;

    /// Puts the scales of one row's block, as ggml stores it, into a lane. `header` is zero before.
    fn pack(block: &[u8], lane: usize, header: &mut [u8]);

    /// Unpacks them.
    fn unpack(header: &[u8], scales: &mut Scales);

    /// The same by AVX-512. What it does not write may be uninitialised before and after.
    ///
    /// # Safety
    /// AVX-512 F and BW; `BYTES` readable bytes, and `scales` valid for writes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn unpack_wide(header: *const u8, scales: *mut Scales);
}

/// # Safety
/// AVX-512 F; 32 readable bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

#[inline(always)]
fn put_half(block: &[u8], at: usize, header: &mut [u8], plane: usize, lane: usize) {
    header[plane * 32 + lane * 2..][..2].copy_from_slice(&block[at..at + 2]);
}

/// One f16 a row, at byte `AT` of ggml's block.
pub(super) struct Factor<const AT: usize>;

impl<const AT: usize> ScaleLayout for Factor<AT> {
    const BYTES: usize = 32;

    #[inline(always)]
    fn pack(block: &[u8], lane: usize, header: &mut [u8]) {
        put_half(block, AT, header, 0, lane);
    }

    #[inline(always)]
    fn unpack(header: &[u8], scales: &mut Scales) {
        for lane in 0..LANES {
            scales.factors[0][lane] = half(header, lane * 2);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn unpack_wide(header: *const u8, scales: *mut Scales) {
        // SAFETY: the caller's promise; the arrays hold 16 f32.
        unsafe { _mm512_storeu_ps(Scales::factors_at(scales, 0), halves(header)) };
    }
}

/// Two f16 a row: factor and offset.
pub(super) struct FactorAndOffset;

impl ScaleLayout for FactorAndOffset {
    const BYTES: usize = 64;

    #[inline(always)]
    fn pack(block: &[u8], lane: usize, header: &mut [u8]) {
        put_half(block, 0, header, 0, lane);
        put_half(block, 2, header, 1, lane);
    }

    #[inline(always)]
    fn unpack(header: &[u8], scales: &mut Scales) {
        for lane in 0..LANES {
            scales.factors[0][lane] = half(header, lane * 2);
            scales.offsets[0][lane] = half(header, 32 + lane * 2);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn unpack_wide(header: *const u8, scales: *mut Scales) {
        // SAFETY: the caller's promise; the arrays hold 16 f32.
        unsafe {
            _mm512_storeu_ps(Scales::factors_at(scales, 0), halves(header));
            _mm512_storeu_ps(Scales::offsets_at(scales, 0), halves(header.add(32)));
        }
    }
}

/// Q4_K and Q5_K: two f16 a row, then 16 six-bit numbers a row in three planes of 64 bytes.
///
/// The low six bits of the planes are the scales of groups 0 to 3, those of groups 4 to 7 and the minima of groups 0
/// to 3, each `[group][row]`; their top two bits together are the minima of groups 4 to 7.
pub(super) struct SixBits;

impl ScaleLayout for SixBits {
    const BYTES: usize = 64 + 3 * 64;

    #[inline(always)]
    fn pack(block: &[u8], lane: usize, header: &mut [u8]) {
        put_half(block, 0, header, 0, lane);
        put_half(block, 2, header, 1, lane);
        for group in 0..8 {
            let (scale, min) = scale_and_min(&block[4..16], group);
            let at = 64 + group % 4 * LANES + lane;
            header[at + group / 4 * 64] |= scale;
            if group < 4 {
                header[at + 128] |= min;
            } else {
                for plane in 0..3 {
                    header[at + plane * 64] |= (min >> (2 * plane) & 3) << 6;
                }
            }
        }
    }

    #[inline(always)]
    fn unpack(header: &[u8], scales: &mut Scales) {
        let planes = &header[64..];
        for lane in 0..LANES {
            let (factor, offset) = (half(header, lane * 2), half(header, 32 + lane * 2));
            for group in 0..4 {
                let at = group * LANES + lane;
                let [a, b, c] = [planes[at], planes[64 + at], planes[128 + at]];
                let last = a >> 6 | b >> 6 << 2 | c >> 6 << 4;
                scales.factors[group][lane] = factor * f32::from(a & 63);
                scales.factors[group + 4][lane] = factor * f32::from(b & 63);
                scales.offsets[group][lane] = -(offset * f32::from(c & 63));
                scales.offsets[group + 4][lane] = -(offset * f32::from(last));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn unpack_wide(header: *const u8, scales: *mut Scales) {
        // SAFETY: the caller's promise; the arrays hold 16 f32 each.
        unsafe {
            let load = |plane: usize| _mm512_loadu_si512(header.add(64 + plane * 64).cast());
            let (a, b, c) = (load(0), load(1), load(2));
            let (low, two) = (_mm512_set1_epi8(63), _mm512_set1_epi8(3));
            let top = |x| _mm512_and_si512(_mm512_srli_epi16::<6>(x), two);
            let last = _mm512_or_si512(
                top(a),
                _mm512_or_si512(_mm512_slli_epi16::<2>(top(b)), _mm512_slli_epi16::<4>(top(c))),
            );
            let planes = [_mm512_and_si512(a, low), _mm512_and_si512(b, low), _mm512_and_si512(c, low), last];
            let factor = halves(header);
            let offset = _mm512_xor_ps(halves(header.add(32)), _mm512_set1_ps(-0.0));
            for (plane, values) in planes.into_iter().enumerate() {
                let (scale, out) = if plane < 2 {
                    (factor, Scales::factors_at(scales, plane * 4))
                } else {
                    (offset, Scales::offsets_at(scales, plane * 4 - 8))
                };
                let groups = [
                    _mm512_extracti32x4_epi32::<0>(values),
                    _mm512_extracti32x4_epi32::<1>(values),
                    _mm512_extracti32x4_epi32::<2>(values),
                    _mm512_extracti32x4_epi32::<3>(values),
                ];
                for (index, group) in groups.into_iter().enumerate() {
                    let values = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(group));
                    _mm512_storeu_ps(out.add(index * LANES), _mm512_mul_ps(scale, values));
                }
            }
        }
    }
}

/// Q6_K: an f16 a row, then 16 signed bytes a row, `[half group][row]`.
pub(super) struct SignedBytes;

impl ScaleLayout for SignedBytes {
    const BYTES: usize = 32 + 256;

    #[inline(always)]
    fn pack(block: &[u8], lane: usize, header: &mut [u8]) {
        put_half(block, 208, header, 0, lane);
        for part in 0..16 {
            header[32 + part * LANES + lane] = block[192 + part];
        }
    }

    #[inline(always)]
    fn unpack(header: &[u8], scales: &mut Scales) {
        for lane in 0..LANES {
            let factor = half(header, lane * 2);
            for part in 0..16 {
                scales.factors[part][lane] = factor * f32::from(header[32 + part * LANES + lane] as i8);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn unpack_wide(header: *const u8, scales: *mut Scales) {
        // SAFETY: the caller's promise; the arrays hold 16 f32 each.
        unsafe {
            let factor = halves(header);
            for part in 0..16 {
                let bytes = _mm_loadu_si128(header.add(32 + part * LANES).cast());
                let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                _mm512_storeu_ps(Scales::factors_at(scales, part), _mm512_mul_ps(factor, values));
            }
        }
    }
}
