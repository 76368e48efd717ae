//! How the repacked bits of 32 columns by 16 rows lie in memory.
//!
//! The unit is what one dot-product instruction takes: for 4 columns (a *quad*) the 64 bytes `[16 rows][4 columns]`.
//! Narrow types share those bytes: the low halves of 64 bytes are an even quad and the high halves the odd quad after
//! it, further bits lie in planes of their own. So a row is one lane, and unpacking is a mask or a shift of a whole
//! register. Weights are unsigned; what has to be taken off them is [`super::format::Format::ZERO`].

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Rows that are interleaved: lanes of a 512-bit register.
pub(super) const LANES: usize = 16;
/// Columns that share a scale of the activations.
pub(super) const GROUP: usize = 32;
/// Quads a group.
pub(super) const QUADS: usize = 8;

/// A layout of 32 columns by 16 rows.
pub(super) trait Quants {
    /// Bytes of the layout.
    const BYTES: usize;
    /// Whether bytes are signed as stored; then [`Quants::wide`] has 128 added and [`Quants::narrow`] has not.
    const SIGNED: bool;

    /// Lays 16 rows of 32 values out.
    fn pack(rows: &[[u8; GROUP]; LANES], out: &mut [u8]);

    /// The value of one row and column, as [`Quants::wide`] gives it.
    fn value(group: &[u8], row: usize, column: usize) -> u8;

    /// Quad `Q` of 16 rows.
    ///
    /// # Safety
    /// AVX-512 BW; `BYTES` readable bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn wide<const Q: usize>(group: *const u8) -> __m512i;

    /// Quad `Q` of 8 rows: of the upper 8 where `group` is 32 bytes further on.
    ///
    /// # Safety
    /// AVX2; `BYTES` readable bytes from the group's first byte.
    #[cfg(target_arch = "x86_64")]
    unsafe fn narrow<const Q: usize>(group: *const u8) -> __m256i;

    /// Quad `Q` of 4 rows: of further ones where `group` is a multiple of 16 bytes further on. Values that are not
    /// [`Quants::SIGNED`] are below 64, so that both kinds are signed bytes.
    ///
    /// # Safety
    /// NEON; `BYTES` readable bytes from the group's first byte.
    #[cfg(target_arch = "aarch64")]
    unsafe fn quarter<const Q: usize>(group: *const u8) -> int8x16_t;
}

/// Bytes of a quad.
const QUAD: usize = 64;

#[inline(always)]
fn quad(row: &[u8; GROUP], quad: usize) -> u32 {
    u32::from_le_bytes([row[quad * 4], row[quad * 4 + 1], row[quad * 4 + 2], row[quad * 4 + 3]])
}

/// Low four bits of each value, two quads in 64 bytes.
#[inline(always)]
fn pack_nibbles(rows: &[[u8; GROUP]; LANES], out: &mut [u8]) {
    let (words, _) = out.as_chunks_mut::<4>();
    for pair in 0..QUADS / 2 {
        for (lane, row) in rows.iter().enumerate() {
            let (low, high) = (quad(row, 2 * pair) & 0x0f0f_0f0f, quad(row, 2 * pair + 1) & 0x0f0f_0f0f);
            words[pair * LANES + lane] = (low | high << 4).to_le_bytes();
        }
    }
}

#[inline(always)]
fn nibble(group: &[u8], row: usize, column: usize) -> u8 {
    let byte = group[column / 8 * QUAD + row * 4 + column % 4];
    if column % 8 < 4 { byte & 15 } else { byte >> 4 }
}

/// # Safety
/// AVX-512 F; 256 readable bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn nibbles_shifted<const Q: usize>(group: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let both = _mm512_loadu_si512(group.add(Q / 2 * QUAD).cast());
        if Q.is_multiple_of(2) { both } else { _mm512_srli_epi16::<4>(both) }
    }
}

/// # Safety
/// AVX2; 256 readable bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn nibbles_narrow<const Q: usize>(group: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let both = _mm256_loadu_si256(group.add(Q / 2 * QUAD).cast());
        let shifted = if Q.is_multiple_of(2) { both } else { _mm256_srli_epi16::<4>(both) };
        _mm256_and_si256(shifted, _mm256_set1_epi8(15))
    }
}

/// # Safety
/// NEON; 256 readable bytes.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn nibbles_quarter<const Q: usize>(group: *const u8) -> uint8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        let both = vld1q_u8(group.add(Q / 2 * QUAD));
        if Q.is_multiple_of(2) { vandq_u8(both, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(both) }
    }
}

/// Nibbles with the bits of `mask` taken from `bits`, which are moved up by `up`, or down where that is negative.
///
/// # Safety
/// NEON.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn join_quarter(low: uint8x16_t, bits: uint8x16_t, up: i8, mask: u8) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        let high = vandq_u8(vshlq_u8(bits, vdupq_n_s8(up)), vdupq_n_u8(mask));
        vreinterpretq_s8_u8(vorrq_u8(low, high))
    }
}

/// `(low & 15) | (high & mask)`.
///
/// # Safety
/// AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn join(low: __m512i, high: __m512i, mask: i8) -> __m512i {
    // SAFETY: the caller's promise. 0xea is `(a & b) | c`.
    unsafe {
        let high = _mm512_and_si512(high, _mm512_set1_epi8(mask));
        _mm512_ternarylogic_epi32::<0xea>(low, _mm512_set1_epi8(15), high)
    }
}

/// Four bits a value.
pub(super) struct Four;

impl Quants for Four {
    const BYTES: usize = 4 * QUAD;
    const SIGNED: bool = false;

    #[inline(always)]
    fn pack(rows: &[[u8; GROUP]; LANES], out: &mut [u8]) {
        pack_nibbles(rows, out);
    }

    #[inline(always)]
    fn value(group: &[u8], row: usize, column: usize) -> u8 {
        nibble(group, row, column)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide<const Q: usize>(group: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_and_si512(nibbles_shifted::<Q>(group), _mm512_set1_epi8(15)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn narrow<const Q: usize>(group: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { nibbles_narrow::<Q>(group) }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn quarter<const Q: usize>(group: *const u8) -> int8x16_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_s8_u8(nibbles_quarter::<Q>(group)) }
    }
}

/// Five bits a value: nibbles, then 64 bytes whose bit `q` is the fifth bit of quad `q`.
pub(super) struct Five;

impl Quants for Five {
    const BYTES: usize = 5 * QUAD;
    const SIGNED: bool = false;

    #[inline(always)]
    fn pack(rows: &[[u8; GROUP]; LANES], out: &mut [u8]) {
        pack_nibbles(rows, out);
        let (words, _) = out[4 * QUAD..].as_chunks_mut::<4>();
        for (word, row) in words.iter_mut().zip(rows) {
            let bits = (0..QUADS).fold(0, |bits, q| bits | (quad(row, q) >> 4 & 0x0101_0101) << q);
            *word = bits.to_le_bytes();
        }
    }

    #[inline(always)]
    fn value(group: &[u8], row: usize, column: usize) -> u8 {
        let bits = group[4 * QUAD + row * 4 + column % 4];
        nibble(group, row, column) | (bits >> (column / 4) & 1) << 4
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide<const Q: usize>(group: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_loadu_si512(group.add(4 * QUAD).cast());
            let high = match Q {
                0 => _mm512_slli_epi16::<4>(bits),
                1 => _mm512_slli_epi16::<3>(bits),
                2 => _mm512_slli_epi16::<2>(bits),
                3 => _mm512_slli_epi16::<1>(bits),
                4 => bits,
                5 => _mm512_srli_epi16::<1>(bits),
                6 => _mm512_srli_epi16::<2>(bits),
                _ => _mm512_srli_epi16::<3>(bits),
            };
            join(nibbles_shifted::<Q>(group), high, 0x10)
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn narrow<const Q: usize>(group: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_loadu_si256(group.add(4 * QUAD).cast());
            let high = match Q {
                0 => _mm256_slli_epi16::<4>(bits),
                1 => _mm256_slli_epi16::<3>(bits),
                2 => _mm256_slli_epi16::<2>(bits),
                3 => _mm256_slli_epi16::<1>(bits),
                4 => bits,
                5 => _mm256_srli_epi16::<1>(bits),
                6 => _mm256_srli_epi16::<2>(bits),
                _ => _mm256_srli_epi16::<3>(bits),
            };
            _mm256_or_si256(nibbles_narrow::<Q>(group), _mm256_and_si256(high, _mm256_set1_epi8(0x10)))
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn quarter<const Q: usize>(group: *const u8) -> int8x16_t {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = vld1q_u8(group.add(4 * QUAD));
            join_quarter(nibbles_quarter::<Q>(group), bits, 4 - Q as i8, 0x10)
        }
    }
}

/// Six bits a value: nibbles, then two times 64 bytes of which bits `2q` and `2q + 1` belong to quads `q` and `4 + q`.
pub(super) struct Six;

impl Quants for Six {
    const BYTES: usize = 6 * QUAD;
    const SIGNED: bool = false;

    #[inline(always)]
    fn pack(rows: &[[u8; GROUP]; LANES], out: &mut [u8]) {
        pack_nibbles(rows, out);
        let (words, _) = out[4 * QUAD..].as_chunks_mut::<4>();
        for plane in 0..2 {
            for (lane, row) in rows.iter().enumerate() {
                let two = |q: usize| (quad(row, plane * 4 + q) >> 4 & 0x0303_0303) << (2 * q);
                words[plane * LANES + lane] = (two(0) | two(1) | two(2) | two(3)).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn value(group: &[u8], row: usize, column: usize) -> u8 {
        let bits = group[4 * QUAD + column / 16 * QUAD + row * 4 + column % 4];
        nibble(group, row, column) | (bits >> (column % 16 / 4 * 2) & 3) << 4
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide<const Q: usize>(group: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_loadu_si512(group.add(4 * QUAD + Q / 4 * QUAD).cast());
            let high = match Q % 4 {
                0 => _mm512_slli_epi16::<4>(bits),
                1 => _mm512_slli_epi16::<2>(bits),
                2 => bits,
                _ => _mm512_srli_epi16::<2>(bits),
            };
            join(nibbles_shifted::<Q>(group), high, 0x30)
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn narrow<const Q: usize>(group: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_loadu_si256(group.add(4 * QUAD + Q / 4 * QUAD).cast());
            let high = match Q % 4 {
                0 => _mm256_slli_epi16::<4>(bits),
                1 => _mm256_slli_epi16::<2>(bits),
                2 => bits,
                _ => _mm256_srli_epi16::<2>(bits),
            };
            _mm256_or_si256(nibbles_narrow::<Q>(group), _mm256_and_si256(high, _mm256_set1_epi8(0x30)))
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn quarter<const Q: usize>(group: *const u8) -> int8x16_t {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = vld1q_u8(group.add(4 * QUAD + Q / 4 * QUAD));
            join_quarter(nibbles_quarter::<Q>(group), bits, 4 - 2 * (Q % 4) as i8, 0x30)
        }
    }
}

/// Eight bits a value, signed as stored.
pub(super) struct Eight;

impl Quants for Eight {
    const BYTES: usize = 8 * QUAD;
    const SIGNED: bool = true;

    #[inline(always)]
    fn pack(rows: &[[u8; GROUP]; LANES], out: &mut [u8]) {
        let (words, _) = out.as_chunks_mut::<4>();
        for q in 0..QUADS {
            for (lane, row) in rows.iter().enumerate() {
                words[q * LANES + lane] = quad(row, q).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn value(group: &[u8], row: usize, column: usize) -> u8 {
        group[column / 4 * QUAD + row * 4 + column % 4] ^ 0x80
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide<const Q: usize>(group: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let signed = _mm512_loadu_si512(group.add(Q * QUAD).cast());
            _mm512_xor_si512(signed, _mm512_set1_epi8(-128))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn narrow<const Q: usize>(group: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(group.add(Q * QUAD).cast()) }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn quarter<const Q: usize>(group: *const u8) -> int8x16_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_s8_u8(vld1q_u8(group.add(Q * QUAD))) }
    }
}
