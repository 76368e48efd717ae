//! Which endpoints a request tries, in order: one pure function over tiers, health, mode, memory and time.
//!
//! The better tier serves. It is left at once when it is lost and taken back after it was healthy without a break
//! for `failbackAfter`, which doubles with every loss in quick succession, up to [`MAX_FACTOR`] times.
//! Two cases need no patience: no other tier is healthy, or this observer never saw the tier lost (after a restart
//! the preference must not depend on which probe came in first).
//! Load among equals is not balanced here: endpoints of one tier come in the order in which they were given.

use std::collections::BTreeMap;

use super::{Health, Millis};

/// Longest lengthening of `failbackAfter`.
pub const MAX_FACTOR: Millis = 10;

/// One endpoint as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointView {
    /// The caller's own number for it.
    pub id: usize,
    /// What is known of it.
    pub health: Health,
}

/// One tier with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierView<'a> {
    /// Its name, by which it is remembered when the list of tiers changes.
    pub name: &'a str,
    /// Its endpoints.
    pub endpoints: Vec<EndpointView>,
}

impl TierView<'_> {
    fn is_healthy(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.health == Health::Healthy)
    }
}

/// Whether traffic may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode<'a> {
    /// To the best healthy tier.
    Auto,
    /// Only the named tier serves.
    Pinned(&'a str),
}

/// What is remembered of a tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct TierMemory {
    healthy_since: Option<Millis>,
    last_lost: Option<Millis>,
    /// How often it was lost in quick succession.
    flaps: u32,
}

impl TierMemory {
    fn observe(mut self, healthy: bool, now: Millis, failback_after: Millis) -> Self {
        match (healthy, self.healthy_since) {
            (true, None) => self.healthy_since = Some(now),
            (false, Some(_)) => {
                self.healthy_since = None;
                let window = failback_after.saturating_mul(MAX_FACTOR);
                if let Some(lost) = self.last_lost {
                    // One flap is forgotten for every quiet window; a loss inside one is another flap.
                    let quiet = now.saturating_sub(lost).checked_div(window).unwrap_or(Millis::MAX);
                    let forgotten = u32::try_from(quiet).unwrap_or(u32::MAX);
                    self.flaps = self.flaps.saturating_sub(forgotten);
                    self.flaps = if quiet == 0 { (self.flaps + 1).min(8) } else { self.flaps };
                }
                self.last_lost = Some(now);
            }
            (true, Some(_)) | (false, None) => {}
        }
        self
    }

    fn may_take_over(self, now: Millis, failback_after: Millis) -> bool {
        let factor = 1u64.checked_shl(self.flaps).unwrap_or(MAX_FACTOR).min(MAX_FACTOR);
        let needed = if self.last_lost.is_none() { 0 } else { failback_after.saturating_mul(factor) };
        self.healthy_since.is_some_and(|since| now.saturating_sub(since) >= needed)
    }
}

/// What the policy remembers between two calls; starts empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailbackState {
    tiers: BTreeMap<String, TierMemory>,
    /// The tier that served last, also while nothing serves.
    last_active: Option<String>,
}

impl FailbackState {
    /// Since when the tier is healthy without a break.
    #[must_use]
    pub fn healthy_since(&self, tier: &str) -> Option<Millis> {
        self.tiers.get(tier)?.healthy_since
    }
}

/// Everything that the policy looks at.
#[derive(Debug, Clone)]
pub struct RouteInput<'a> {
    /// The tiers, best first.
    pub tiers: &'a [TierView<'a>],
    /// Whether traffic may move.
    pub mode: Mode<'a>,
    /// `failover.failbackAfter`.
    pub failback_after_ms: Millis,
    /// What the last call returned.
    pub state: &'a FailbackState,
    /// The time.
    pub now: Millis,
}

/// One endpoint to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutedEndpoint {
    /// Index of its tier.
    pub tier: usize,
    /// The caller's number for it.
    pub id: usize,
    /// Whether it is known to be healthy; otherwise it is only not known to be unhealthy.
    pub healthy: bool,
}

/// A move of the traffic from one tier to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// The tier that served.
    pub from: String,
    /// The tier that serves now.
    pub to: String,
    /// Whether the tier that was left was healthy: then it is a failback (or a change of the specification), not
    /// a failover.
    pub voluntary: bool,
}

/// What the policy decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Index of the tier that serves; `None` while nothing is known to be healthy.
    pub active: Option<usize>,
    /// What to try, in order. Never holds an endpoint that is known to be unhealthy.
    pub order: Vec<RoutedEndpoint>,
    /// The move, where this call made one.
    pub switch: Option<Switch>,
    /// To be given to the next call.
    pub state: FailbackState,
}

/// Decides where requests go.
#[must_use]
pub fn route(input: &RouteInput<'_>) -> Decision {
    let RouteInput { tiers, mode, failback_after_ms, state, now } = input;
    let memories: Vec<TierMemory> = tiers
        .iter()
        .map(|tier| {
            let memory = state.tiers.get(tier.name).copied().unwrap_or_default();
            memory.observe(tier.is_healthy(), *now, *failback_after_ms)
        })
        .collect();
    let allowed = |index: usize| match mode {
        Mode::Auto => true,
        Mode::Pinned(name) => tiers[index].name == *name,
    };
    let healthy: Vec<usize> = (0..tiers.len()).filter(|i| allowed(*i) && tiers[*i].is_healthy()).collect();
    let current = healthy.iter().copied().find(|i| Some(tiers[*i].name) == state.last_active.as_deref());
    let active = match current {
        None => healthy.first().copied(),
        Some(current) => healthy
            .iter()
            .copied()
            .find(|better| *better < current && memories[*better].may_take_over(*now, *failback_after_ms))
            .or(Some(current)),
    };

    let mut by_preference: Vec<usize> = active.into_iter().collect();
    by_preference.extend((0..tiers.len()).filter(|i| allowed(*i) && Some(*i) != active));
    let pick = |wanted: Health| {
        by_preference.iter().flat_map(move |tier| {
            let endpoints = tiers[*tier].endpoints.iter().filter(move |endpoint| endpoint.health == wanted);
            endpoints.map(move |endpoint| RoutedEndpoint {
                tier: *tier,
                id: endpoint.id,
                healthy: wanted == Health::Healthy,
            })
        })
    };
    let order = pick(Health::Healthy).chain(pick(Health::Unknown)).collect();

    let to = active.map(|index| tiers[index].name);
    let switch = match (state.last_active.as_deref(), to) {
        (Some(from), Some(to)) if from != to => {
            let voluntary = tiers.iter().any(|tier| tier.name == from && tier.is_healthy());
            Some(Switch { from: from.to_owned(), to: to.to_owned(), voluntary })
        }
        _ => None,
    };
    let state = FailbackState {
        tiers: tiers.iter().map(|tier| tier.name.to_owned()).zip(memories).collect(),
        last_active: to.map(str::to_owned).or_else(|| state.last_active.clone()),
    };
    Decision { active, order, switch, state }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::routing::Cause;

    const FAILBACK: Millis = 1_000;
    const DOWN: Health = Health::Unhealthy(Cause::Silent);

    /// A run of the policy over one endpoint a tier.
    struct Run {
        state: FailbackState,
        mode: Mode<'static>,
    }

    const NAMES: [&str; 4] = ["best", "second", "third", "fourth"];

    impl Run {
        fn new() -> Self {
            Self { state: FailbackState::default(), mode: Mode::Auto }
        }

        fn step(&mut self, now: Millis, health: &[Health]) -> Decision {
            let tiers: Vec<TierView<'_>> = NAMES
                .into_iter()
                .zip(health)
                .enumerate()
                .map(|(id, (name, health))| TierView {
                    name,
                    endpoints: vec![EndpointView { id: id + 10, health: *health }],
                })
                .collect();
            let decision = route(&RouteInput {
                tiers: &tiers,
                mode: self.mode,
                failback_after_ms: FAILBACK,
                state: &self.state,
                now,
            });
            self.state = decision.state.clone();
            decision
        }
    }

    use Health::{Healthy, Unknown};

    #[test]
    fn the_better_tier_is_left_at_once_and_taken_back_after_unbroken_health() {
        let mut run = Run::new();
        assert_eq!(run.step(0, &[Healthy, Healthy]).active, Some(0));
        let lost = run.step(100, &[DOWN, Healthy]);
        let switch = Switch { from: "best".into(), to: "second".into(), voluntary: false };
        assert_eq!((lost.active, lost.switch), (Some(1), Some(switch)));
        assert_eq!(run.step(200, &[Healthy, Healthy]).active, Some(1));
        assert_eq!(run.step(1_199, &[Healthy, Healthy]).active, Some(1));
        let back = run.step(1_200, &[Healthy, Healthy]);
        assert_eq!(back.active, Some(0));
        assert!(back.switch.is_some_and(|switch| switch.voluntary));
    }

    #[test]
    fn a_tier_that_was_never_seen_lost_needs_no_patience() {
        let mut run = Run::new();
        assert_eq!(run.step(0, &[Unknown, Healthy]).active, Some(1));
        assert_eq!(run.step(5, &[Healthy, Healthy]).active, Some(0));
    }

    #[test]
    fn a_lost_tier_is_taken_at_once_when_no_other_serves() {
        let mut run = Run::new();
        run.step(0, &[Healthy, Healthy]);
        run.step(10, &[DOWN, Healthy]);
        assert_eq!(run.step(20, &[DOWN, DOWN]).active, None);
        assert_eq!(run.step(30, &[Healthy, DOWN]).active, Some(0));
    }

    #[test]
    fn flapping_lengthens_the_wait_and_quiet_shortens_it_again() {
        let mut run = Run::new();
        let mut waited = Vec::new();
        let mut now = 0;
        let mut lose_and_regain = |run: &mut Run, quiet: Millis| {
            now += quiet;
            run.step(now, &[DOWN, Healthy]);
            let since = now;
            while run.step(now, &[Healthy, Healthy]).active != Some(0) {
                now += 10;
            }
            now - since
        };
        run.step(0, &[Healthy, Healthy]);
        for _ in 0..6 {
            waited.push(lose_and_regain(&mut run, 10));
        }
        assert_eq!(waited, [1_000, 2_000, 4_000, 8_000, 10_000, 8_000]);
        for _ in 0..20 {
            lose_and_regain(&mut run, 20 * FAILBACK);
        }
        assert_eq!(lose_and_regain(&mut run, 20 * FAILBACK), 1_000);
    }

    #[test]
    fn a_pinned_tier_serves_alone() {
        let mut run = Run { mode: Mode::Pinned("second"), ..Run::new() };
        let decision = run.step(0, &[Healthy, Healthy, Healthy]);
        assert_eq!(decision.order, [RoutedEndpoint { tier: 1, id: 11, healthy: true }]);
        assert!(run.step(1, &[Healthy, DOWN, Healthy]).order.is_empty());
    }

    #[test]
    fn every_healthy_endpoint_is_tried_before_any_unknown_one_and_no_unhealthy_one() {
        let ids = |decision: Decision| decision.order.iter().map(|routed| routed.id).collect::<Vec<_>>();
        assert_eq!(ids(Run::new().step(0, &[Unknown, DOWN, Healthy, Healthy])), [12, 13, 10]);
        assert_eq!(ids(Run::new().step(0, &[DOWN, DOWN])), Vec::<usize>::new());
    }

    fn any_health() -> impl Strategy<Value = Health> {
        prop_oneof![3 => Just(Healthy), 1 => Just(Unknown), 2 => Just(DOWN)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Random histories of up to four tiers, with restarts of the observer in between.
        #[test]
        fn random_histories_keep_the_promises(
            tiers in 1usize..=4,
            steps in prop::collection::vec(
                (1u64..700, prop::collection::vec(any_health(), 4), prop::bool::weighted(0.03)), 1..50),
        ) {
            let mut run = Run::new();
            let mut now = 0;
            // When each tier was last taken back although the one before it was healthy.
            let mut regained: [Option<Millis>; 4] = [None; 4];
            for (pause, health, restart) in &steps {
                now += pause;
                let health = &health[..tiers];
                if *restart {
                    run.state = FailbackState::default();
                    regained = [None; 4];
                }
                let decision = run.step(now, health);
                let any_healthy = health.contains(&Healthy);

                // Never an unhealthy endpoint, and an unknown one only behind every healthy one.
                prop_assert!(decision.order.iter().all(|routed| health[routed.tier] != DOWN));
                prop_assert!(decision.order.is_sorted_by_key(|routed| !routed.healthy));
                prop_assert_eq!(decision.active.is_some(), any_healthy);
                if let Some(active) = decision.active {
                    prop_assert_eq!(decision.order.first().map(|routed| routed.tier), Some(active));
                }
                let mut ids: Vec<usize> = decision.order.iter().map(|routed| routed.id).collect();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), health.iter().filter(|health| **health != DOWN).count());

                // After a restart the best healthy tier serves at once: no preference is lost.
                if *restart {
                    prop_assert_eq!(decision.active, health.iter().position(|health| *health == Healthy));
                }
                // A tier is taken back voluntarily at most once in `failbackAfter`.
                if let (Some(switch), Some(active)) = (&decision.switch, decision.active)
                    && switch.voluntary
                {
                    prop_assert!(switch.from != switch.to);
                    if let Some(last) = regained[active] {
                        prop_assert!(now - last >= FAILBACK, "{} flipped again after {}", switch.to, now - last);
                    }
                    regained[active] = Some(now);
                }
                // Traffic leaves a healthy tier only for a better one.
                if let Some(switch) = &decision.switch && switch.voluntary {
                    let from = NAMES.iter().position(|name| *name == switch.from);
                    prop_assert!(decision.active < from);
                }
            }
            // The preferred tier is regained, whatever happened, after the longest wait of quiet.
            let quiet = vec![Healthy; tiers];
            run.step(now + 1, &quiet);
            let end = run.step(now + 1 + MAX_FACTOR * FAILBACK, &quiet);
            prop_assert_eq!(end.active, Some(0));
        }
    }
}
