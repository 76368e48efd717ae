//! What this processor can do at best, measured: the roofline that benchmarks compare with.

use crate::int8::Isa;
use crate::pages::Pages;
use crate::pool::Pool;
use std::hint::black_box;
use std::time::Instant;

/// How often a figure is taken; the best one counts, because what disturbs a measurement only slows it.
const ROUNDS: usize = 24;
/// Bytes a thread takes at a time.
const PIECE: usize = 1 << 20;

/// Bytes a second that all threads together read from memory. `memory` should be many times the last cache, and has
/// been written before: untouched pages all lie in one place.
#[must_use]
pub fn read_bandwidth(pool: &Pool, memory: &Pages) -> f64 {
    let (words, _) = memory.as_chunks::<8>();
    let pieces = words.len().div_ceil(PIECE / 8);
    // A round reads an eighth, the next round the next one: short, and never what the last cache still holds.
    let share = pieces.div_ceil(8).max(1);
    let round = std::cell::Cell::new(0);
    best(|| {
        let first = round.replace((round.get() + share) % pieces.max(1));
        pool.run(share, &|piece| {
            let piece = (first + piece) % pieces.max(1);
            let words = &words[piece * (PIECE / 8)..((piece + 1) * (PIECE / 8)).min(words.len())];
            // Eight sums, so that additions do not wait for one another.
            let mut sums = [0_u64; 8];
            for words in words.chunks_exact(8) {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
            black_box(sums);
        });
        (share * PIECE).min(memory.len()) as f64
    })
}

/// Multiplications of bytes a second that all threads together reach from registers.
#[must_use]
pub fn int8_products(pool: &Pool) -> f64 {
    let isa = Isa::detect();
    // SAFETY: `isa` is what the processor has.
    measure(pool, &|| unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => x86::vnni(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::maddubs(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => arm::dots(),
            Isa::Portable => plain(),
        }
    })
}

/// Multiplications of f32 a second that all threads together reach from registers.
#[must_use]
pub fn float_products(pool: &Pool) -> f64 {
    let isa = Isa::detect();
    // SAFETY: `isa` is what the processor has.
    measure(pool, &|| unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => x86::fma512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::fma256(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => arm::fma(),
            Isa::Portable => plain(),
        }
    })
}

/// Turns of an inner loop.
const TURNS: usize = 200_000;

/// `work` answers how many multiplications it did.
fn measure(pool: &Pool, work: &(dyn Fn() -> usize + Sync)) -> f64 {
    let items = pool.threads() * 2;
    best(|| {
        let done = std::sync::atomic::AtomicUsize::new(0);
        pool.run(items, &|_| {
            done.fetch_add(work(), std::sync::atomic::Ordering::Relaxed);
        });
        done.into_inner() as f64
    })
}

/// The highest rate of what `work` says it did.
fn best(work: impl Fn() -> f64) -> f64 {
    let rate = || {
        let began = Instant::now();
        let done = work();
        done / began.elapsed().as_secs_f64().max(1e-9)
    };
    (0..ROUNDS).map(|_| rate()).fold(0.0, f64::max)
}

fn plain() -> usize {
    let mut sums = [0.0_f32; 16];
    let x = black_box([1.0_f32; 16]);
    for _ in 0..TURNS {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += x * x;
        }
    }
    black_box(sums);
    TURNS * 16
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::TURNS;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Sums that are in flight at once.
    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vnni() -> usize {
        let x = black_box(_mm512_set1_epi8(1));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
        TURNS * CHAINS * 64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn maddubs() -> usize {
        let (x, one) = (black_box(_mm256_set1_epi8(1)), black_box(_mm256_set1_epi16(1)));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                // Depends on the sum, so that the compiler cannot take it out of the loop.
                let pairs = _mm256_maddubs_epi16(x, *sum);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, one));
            }
        }
        black_box(sums);
        TURNS * CHAINS * 32
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma512() -> usize {
        let x = black_box(_mm512_set1_ps(1.0));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
        TURNS * CHAINS * 16
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma256() -> usize {
        let x = black_box(_mm256_set1_ps(1.0));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
        TURNS * CHAINS * 8
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::TURNS;
    use crate::int8::neon::dot;
    use std::arch::aarch64::*;
    use std::hint::black_box;

    /// Sums that are in flight at once.
    const CHAINS: usize = 12;

    #[target_feature(enable = "neon,dotprod")]
    pub(super) fn dots() -> usize {
        let x = black_box(vdupq_n_s8(1));
        let mut sums = [vdupq_n_s32(0); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                // SAFETY: this function has the same features.
                *sum = unsafe { dot(*sum, x, x) };
            }
        }
        black_box(sums);
        TURNS * CHAINS * 16
    }

    #[target_feature(enable = "neon")]
    pub(super) fn fma() -> usize {
        let x = black_box(vdupq_n_f32(1.0));
        let mut sums = [vdupq_n_f32(0.0); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = vfmaq_f32(*sum, x, x);
            }
        }
        black_box(sums);
        TURNS * CHAINS * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peak_is_a_positive_number() {
        let pool = Pool::new(2).unwrap();
        let memory = Pages::new(4 << 20).unwrap();
        for rate in [read_bandwidth(&pool, &memory), int8_products(&pool), float_products(&pool)] {
            assert!(rate.is_finite() && rate > 0.0, "{rate}");
        }
    }
}
