//! The runtime's share of a card as engines measured it, in place of the built-in estimate.
//!
//! Kept by gfx target: cards of one target run the same code objects. A figure is for plans to come; what serves was
//! planned with another one and keeps it.

use std::{collections::BTreeMap, time::Duration};

use atlas_crds::{GpuProfile, profile::Backend, quantity::parse_bytes};

use super::RUNTIME_BYTES;

/// No runtime is planned with less: a measurement that says so was disturbed by somebody who gave memory back.
pub const MIN_RUNTIME_BYTES: u64 = 64 << 20;
/// No runtime is planned with more: beyond it, somebody else took memory of the card meanwhile.
pub const MAX_RUNTIME_BYTES: u64 = 1 << 30;
/// Figures are rounded up to this, so that small differences change no plan.
pub const RUNTIME_STEP_BYTES: u64 = 16 << 20;
/// A lower figure waits so long: engines come and go, and plans should not with each of them.
pub const LOWER_AFTER: Duration = Duration::from_secs(3600);

/// What an engine measured of its card, and what was planned beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Highest use of the card by the engine.
    pub own_peak: u64,
    /// Weights that it holds there.
    pub weights: u64,
    /// Its KV cache there.
    pub kv_cache: u64,
    /// Activations, as planned for the same context and batch.
    pub activations: u64,
}

impl Measured {
    /// The runtime's share, rounded up and bounded; `None` where the measurement cannot be this engine's, because the
    /// card shows less than the engine holds.
    #[must_use]
    pub fn runtime(&self) -> Option<u64> {
        let overhead = self.own_peak.checked_sub(self.weights.checked_add(self.kv_cache)?)?;
        let runtime = overhead.saturating_sub(self.activations).clamp(MIN_RUNTIME_BYTES, MAX_RUNTIME_BYTES);
        Some(runtime.next_multiple_of(RUNTIME_STEP_BYTES))
    }
}

/// The figure to keep: the highest of those that serve now, else what was kept before; `before` comes with the time
/// that it has held. A higher one counts at once, a lower one only after [`LOWER_AFTER`].
#[must_use]
pub fn calibrate(before: Option<(u64, Duration)>, measured: impl IntoIterator<Item = u64>) -> Option<u64> {
    match (before, measured.into_iter().max()) {
        (Some((kept, held)), Some(highest)) if highest < kept && held < LOWER_AFTER => Some(kept),
        (_, Some(highest)) => Some(highest),
        (before, None) => before.map(|(kept, _)| kept),
    }
}

/// What plans take as the runtime's share, by gfx target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calibrations(BTreeMap<String, u64>);

impl Calibrations {
    /// Reads what the profiles' status keeps; the highest where profiles share a target.
    #[must_use]
    pub fn of<'a>(profiles: impl IntoIterator<Item = &'a GpuProfile>) -> Self {
        let mut by_target = BTreeMap::new();
        let kept = profiles.into_iter().filter_map(|profile| {
            let kept = profile.status.as_ref()?.calibration.as_ref()?;
            let bytes = parse_bytes(&kept.runtime)?.clamp(MIN_RUNTIME_BYTES, MAX_RUNTIME_BYTES);
            // A figure of another target than the profile names now is of the profile as it was.
            let same = profile.spec.gfx_target.as_ref() == Some(&kept.gfx_target);
            same.then(|| (kept.gfx_target.clone(), bytes))
        });
        for (target, bytes) in kept {
            let highest = by_target.entry(target).or_insert(bytes);
            *highest = bytes.max(*highest);
        }
        Self(by_target)
    }

    /// The runtime's share of a card of this profile; a processor has none to measure.
    #[must_use]
    pub fn runtime(&self, profile: &GpuProfile) -> u64 {
        let target = profile.spec.gfx_target.as_ref().filter(|_| profile.spec.backend == Backend::Hip);
        target.and_then(|target| self.0.get(target)).copied().unwrap_or(RUNTIME_BYTES)
    }

    /// Every target with its figure.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(target, bytes)| (target.as_str(), *bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const MIB: u64 = 1 << 20;

    fn profile(name: &str, spec: &[(&str, &str)], calibration: Option<(&str, &str)>) -> GpuProfile {
        let mut object = json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile",
            "metadata": {"name": name}, "spec": {"product": "P", "vram": "8Gi"},
        });
        for (field, value) in spec {
            object["spec"][field] = (*value).into();
        }
        if let Some((target, runtime)) = calibration {
            object["status"] = json!({"calibration": {
                "gfxTarget": target, "runtime": runtime, "measuredOn": "a/b", "since": "2026-01-01T00:00:00Z",
            }});
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_runtime_is_what_neither_model_nor_activations_explain() {
        let check = |own_peak, expected: Option<u64>| {
            let measured = Measured {
                own_peak: own_peak * MIB,
                weights: 4000 * MIB,
                kv_cache: 1000 * MIB,
                activations: 50 * MIB,
            };
            assert_eq!(measured.runtime(), expected.map(|mib| mib * MIB), "{own_peak}");
        };
        check(5250, Some(208));
        check(5242, Some(192));
        // Others gave memory back, or took some.
        check(4999, None);
        check(5000, Some(64));
        check(9000, Some(1024));
    }

    #[test]
    fn the_highest_that_serves_counts_and_is_kept_when_none_does() {
        let hour = LOWER_AFTER;
        assert_eq!(calibrate(None, []), None);
        assert_eq!(calibrate(Some((7, hour)), []), Some(7));
        assert_eq!(calibrate(Some((7, hour)), [3, 5]), Some(5));
        assert_eq!(calibrate(Some((7, hour / 2)), [3, 5]), Some(7));
        assert_eq!(calibrate(Some((7, Duration::ZERO)), [3, 9]), Some(9));
    }

    #[test]
    fn cards_of_one_target_share_the_higher_figure_and_processors_have_none() {
        let (xtx, xt) = ([("gfxTarget", "gfx1100")], [("gfxTarget", "gfx1100")]);
        let profiles = [
            profile("xtx", &xtx, Some(("gfx1100", "208Mi"))),
            profile("xt", &xt, Some(("gfx1100", "240Mi"))),
            profile("rx", &[("gfxTarget", "gfx1102")], None),
            // Its target was another one when it was measured.
            profile("edited", &[("gfxTarget", "gfx1101")], Some(("gfx1100", "900Mi"))),
            profile("cpu", &[("backend", "Cpu"), ("gfxTarget", "gfx1100")], None),
            profile("absurd", &[("gfxTarget", "gfx1200")], Some(("gfx1200", "1Ti"))),
        ];
        let found = Calibrations::of(&profiles);
        let runtimes: Vec<u64> = profiles.iter().map(|profile| found.runtime(profile) / MIB).collect();
        assert_eq!(runtimes, [240, 240, 184, 184, 184, 1024]);
        assert_eq!(found.iter().map(|(target, _)| target).collect::<Vec<_>>(), ["gfx1100", "gfx1200"]);
    }

    proptest! {
        #[test]
        fn a_figure_is_bounded_and_never_less_than_what_was_measured_within_the_bounds(
            peak in 0_u64..1 << 36, weights in 0_u64..1 << 35, kv_cache in 0_u64..1 << 35, activations in 0_u64..1 << 30,
        ) {
            let measured = Measured { own_peak: peak, weights, kv_cache, activations };
            match measured.runtime() {
                None => prop_assert!(peak < weights + kv_cache),
                Some(runtime) => {
                    prop_assert!((MIN_RUNTIME_BYTES..=MAX_RUNTIME_BYTES).contains(&runtime));
                    prop_assert!(runtime.is_multiple_of(RUNTIME_STEP_BYTES));
                    let explained = weights + kv_cache + activations + runtime;
                    prop_assert!(explained >= peak || runtime == MAX_RUNTIME_BYTES);
                    // A higher peak never means less, and what is planned with the figure explains the same peak again.
                    let more = Measured { own_peak: peak + 1, ..measured };
                    prop_assert!(more.runtime() >= measured.runtime());
                    let again = Measured { own_peak: explained, ..measured };
                    prop_assert_eq!(again.runtime(), Some(runtime));
                }
            }
        }

        #[test]
        fn the_same_engines_measured_again_change_nothing(
            before in proptest::option::of((64_u64..1024, 0_u64..7200)), measured in proptest::collection::vec(64_u64..1024, 0..5),
        ) {
            let before = before.map(|(kept, seconds)| (kept, Duration::from_secs(seconds)));
            let once = calibrate(before, measured.clone());
            for held in [Duration::ZERO, before.map_or(LOWER_AFTER, |(_, held)| held)] {
                prop_assert_eq!(calibrate(once.map(|kept| (kept, held)), measured.clone()), once);
            }
            prop_assert!(once.is_none_or(|kept| measured.iter().all(|figure| kept >= *figure)));
        }
    }
}
