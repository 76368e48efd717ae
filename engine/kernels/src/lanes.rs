//! Sixteen f32 at a time, on what the processor has.
//!
//! Kernels are written once over [`Lanes`] and inlined into one entry function an instruction set. Every
//! implementation adds the same lanes in the same order; they differ only in that the portable one rounds products.

use crate::blocks::half;

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best one.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// All that this processor has.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        match Self::detect() {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => vec![Self::Portable, Self::Avx2, Self::Avx512],
            best => vec![Self::Portable, best],
        }
    }
}

/// A function whose plain loops the compiler vectorises for each instruction set; which one runs is decided when it is
/// called. Nothing is fused, so all of them give the same bits.
macro_rules! compiled_for_each_level {
    (fn $name:ident($($argument:ident: $type:ty),*) $body:block) => {
        fn $name($($argument: $type),*) {
            #[inline(always)]
            fn body($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($argument: $type),*) {
                body($($argument),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($argument: $type),*) {
                body($($argument),*);
            }

            match $crate::lanes::Level::detect() {
                $crate::lanes::Level::Portable => body($($argument),*),
                // SAFETY: `detect` answers with what this processor has.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::Level::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::Level::Avx512 => unsafe { avx512($($argument),*) },
            }
        }
    };
}
pub(crate) use compiled_for_each_level;

/// Floats a [`Lanes`].
pub(crate) const LANES: usize = 16;

/// Sixteen f32.
///
/// # Safety
/// Every function needs the instruction set of its type; loads sixteen readable numbers, `store` sixteen writable f32.
pub(crate) trait Lanes: Copy {
    /// Whether more than twenty of them fit in registers.
    const MANY: bool;

    unsafe fn zero() -> Self;
    unsafe fn load(at: *const f32) -> Self;
    /// Sixteen f16, given by their bits.
    unsafe fn load_half(at: *const u16) -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `self + x * y`.
    unsafe fn add_product(self, x: Self, y: Self) -> Self;
    unsafe fn to_array(self) -> [f32; LANES];

    /// The sum, halving until one lane is left.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller has the instruction set.
        let mut lanes = unsafe { self.to_array() };
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Lanes for Portable {
    const MANY: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller passes sixteen readable f32; an array has its element's alignment.
        Self(unsafe { at.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn load_half(at: *const u16) -> Self {
        // SAFETY: the caller passes sixteen readable u16.
        let bits = unsafe { at.cast::<[u16; LANES]>().read() };
        Self(bits.map(|bits| half(&bits.to_le_bytes(), 0)))
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller passes sixteen writable f32.
        unsafe { at.cast::<[f32; LANES]>().write(self.0) };
    }

    #[inline(always)]
    unsafe fn add_product(mut self, x: Self, y: Self) -> Self {
        for lane in 0..LANES {
            self.0[lane] += x.0[lane] * y.0[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes};
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    // SAFETY of all blocks below: the trait's contract gives the instruction set and readable memory; loads and
    // stores are the unaligned ones.
    impl Lanes for Avx2 {
        const MANY: bool = false;

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }

        #[inline(always)]
        unsafe fn load_half(at: *const u16) -> Self {
            unsafe {
                let load = |at: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
                Self(load(at), load(at.add(8)))
            }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            unsafe {
                _mm256_storeu_ps(at, self.0);
                _mm256_storeu_ps(at.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn add_product(self, x: Self, y: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(x.0, y.0, self.0), _mm256_fmadd_ps(x.1, y.1, self.1)) }
        }

        #[inline(always)]
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
            }
            out
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY: as above.
    impl Lanes for Avx512 {
        const MANY: bool = true;

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm512_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(at)) }
        }

        #[inline(always)]
        unsafe fn load_half(at: *const u16) -> Self {
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            unsafe { _mm512_storeu_ps(at, self.0) };
        }

        #[inline(always)]
        unsafe fn add_product(self, x: Self, y: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(x.0, y.0, self.0)) }
        }

        #[inline(always)]
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) };
            out
        }
    }
}
