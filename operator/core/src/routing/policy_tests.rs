//! Runs of the routing policy, and random histories of it.

use proptest::prelude::*;

use super::*;
use crate::routing::Cause;

const FAILBACK: Millis = 1_000;
const DOWN: Health = Health::Unhealthy(Cause::Silent);

/// A run of the policy over one endpoint a tier.
struct Run {
    state: FailbackState,
    mode: Mode<'static>,
    hint: Option<&'static str>,
}

const NAMES: [&str; 4] = ["best", "second", "third", "fourth"];

impl Run {
    fn new() -> Self {
        Self { state: FailbackState::default(), mode: Mode::Auto, hint: None }
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
            hint: self.hint,
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
    assert_eq!(run.step(0, &[Unknown, Healthy]).active, None, "its first word is awaited");
    assert_eq!(run.step(1_000, &[Unknown, Healthy]).active, Some(1), "but not for ever");
    assert_eq!(run.step(1_005, &[Healthy, Healthy]).active, Some(0));
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
fn an_observer_that_starts_anew_stands_where_the_others_stand() {
    let mut run = Run { hint: Some("second"), ..Run::new() };
    assert_eq!(run.step(0, &[Unknown, Unknown]).active, None);
    // The better tier is heard of first: requests may go there, but nothing is decided yet.
    let first = run.step(5, &[Healthy, Unknown]);
    assert_eq!((first.active, first.order.len()), (None, 2));
    let restored = run.step(10, &[Healthy, Healthy]);
    assert_eq!((restored.active, restored.switch), (Some(1), None));
    assert_eq!(run.step(1_004, &[Healthy, Healthy]).active, Some(1));
    assert_eq!(run.step(1_005, &[Healthy, Healthy]).active, Some(0), "after failbackAfter it is taken back");
}

#[test]
fn a_hint_that_cannot_be_followed_holds_up_nobody() {
    let mut run = Run { hint: Some("second"), ..Run::new() };
    assert_eq!(run.step(0, &[Healthy, DOWN]).active, Some(0));
    let mut run = Run { hint: Some("second"), ..Run::new() };
    assert_eq!(run.step(0, &[Healthy, Unknown]).active, None);
    assert_eq!(run.step(1_000, &[Healthy, Unknown]).active, Some(0));
    let mut run = Run { hint: Some("nonsense"), ..Run::new() };
    assert_eq!(run.step(0, &[Healthy, Unknown]).active, Some(0));
    let mut run = Run { hint: Some("second"), ..Run::new() };
    assert_eq!(run.step(0, &[Unknown, DOWN, Healthy]).active, None, "the best is awaited then");
    assert_eq!(run.step(5, &[DOWN, DOWN, Healthy]).active, Some(2));
}

#[test]
fn a_failback_of_the_others_is_followed_and_an_old_record_is_not() {
    let mut run = Run { hint: Some("best"), ..Run::new() };
    run.step(0, &[Healthy, Healthy]);
    run.step(10, &[DOWN, Healthy]);
    assert_eq!(run.step(20, &[Healthy, Healthy]).active, Some(1), "the record is older than the loss");
    run.hint = Some("second");
    assert_eq!(run.step(30, &[Healthy, Healthy]).active, Some(1));
    run.hint = Some("best");
    assert_eq!(run.step(40, &[Healthy, Healthy]).active, Some(0));
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
        let mut started = steps[0].0;
        // When each tier was last taken back although the one before it was healthy.
        let mut regained: [Option<Millis>; 4] = [None; 4];
        for (pause, health, restart) in &steps {
            now += pause;
            let health = &health[..tiers];
            if *restart {
                run.state = FailbackState::default();
                started = now;
                regained = [None; 4];
            }
            let decision = run.step(now, health);
            let any_healthy = health.contains(&Healthy);

            // Never an unhealthy endpoint, and an unknown one only behind every healthy one.
            prop_assert!(decision.order.iter().all(|routed| health[routed.tier] != DOWN));
            prop_assert!(decision.order.is_sorted_by_key(|routed| !routed.healthy));
            // Only who starts anew waits for a better tier's first word.
            let awaits = now < started + 1_000 && health.contains(&Unknown);
            prop_assert!(decision.active.is_some() == any_healthy || (awaits && decision.active.is_none()));
            if let Some(active) = decision.active {
                prop_assert_eq!(decision.order.first().map(|routed| routed.tier), Some(active));
            }
            let mut ids: Vec<usize> = decision.order.iter().map(|routed| routed.id).collect();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), health.iter().filter(|health| **health != DOWN).count());

            // After a restart the best tier that may be healthy serves: no preference is lost.
            if *restart {
                let best = health.iter().position(|health| *health != DOWN);
                prop_assert_eq!(decision.active, best.filter(|best| health[*best] == Healthy));
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
