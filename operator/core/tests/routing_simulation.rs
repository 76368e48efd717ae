//! Plays thousands of random histories of engines, faults and restarts against the health machine and the routing
//! policy together, as a gateway runs them, and checks what clients are promised.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use atlas_operator_core::routing::{
    Cause, Decision, EndpointHealth, EndpointView, EngineReport, FailbackState, Health, HealthEvent,
    HealthSettings, Millis, Mode, Patience, RouteInput, TierView, route,
};

const NAMES: [&str; 3] = ["best", "second", "third"];
const TICK: Millis = 50;
const PROBE: Millis = 200;
const FAILBACK: Millis = 5_000;
const SETTINGS: HealthSettings = HealthSettings {
    unhealthy_after_ms: 1_000,
    tick_ms: 150,
    patience: Patience { hang_after_ms: 3_000, first_byte_after_ms: 30_000 },
};
/// Time in which every fault is noticed; a hang takes twice its limit where slow steps were seen before.
const NOTICED: Millis = 7_000;
/// Longest time until a mended endpoint counts as healthy again: its quarantine and a probe.
const MENDED: Millis = 6_000;

/// A small generator of our own: a history is its seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.next(one_in) == 0
    }
}

/// What is really the matter with an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Good,
    Killed,
    Frozen,
    Hung,
    Loading,
}

struct Engine {
    tier: usize,
    truth: Truth,
    since: Millis,
    steps: u64,
    next_probe: Millis,
    was_late: bool,
    health: EndpointHealth,
}

impl Engine {
    fn set(&mut self, truth: Truth, now: Millis) {
        if self.truth != truth {
            (self.truth, self.since) = (truth, now);
        }
    }

    /// What a gateway hears of it in one tick.
    fn listen(&mut self, now: Millis, rng: &mut Rng) {
        let mut hear = |event| self.health.apply(event, now, SETTINGS);
        hear(HealthEvent::Tick { waiting: rng.chance(2) });
        if rng.chance(40) {
            // A request's outcome.
            hear(match self.truth {
                Truth::Good => HealthEvent::Answered,
                Truth::Killed => HealthEvent::ConnectionFailed(Cause::ConnectionRefused),
                Truth::Frozen => HealthEvent::ConnectTimedOut,
                Truth::Hung | Truth::Loading => return,
            });
        }
        if now < self.next_probe {
            return;
        }
        self.next_probe = now + PROBE * 4 / 5 + rng.next(PROBE * 2 / 5);
        if self.truth == Truth::Good {
            self.steps += 1;
        }
        let report = EngineReport { busy: true, steps: Some(self.steps), tokens: 0 };
        // A busy engine's probe comes late now and then, which must not matter.
        self.was_late = self.truth == Truth::Good && !self.was_late && rng.chance(10);
        match self.truth {
            Truth::Good if self.was_late => hear(HealthEvent::ProbeLate),
            Truth::Good | Truth::Hung => {
                hear(HealthEvent::Report(report));
                hear(HealthEvent::ProbeOk { sent_at: now - 1 });
            }
            Truth::Killed => hear(HealthEvent::ConnectionFailed(Cause::ConnectionRefused)),
            Truth::Frozen => hear(HealthEvent::ProbeLate),
            Truth::Loading => {
                hear(HealthEvent::Report(EngineReport { busy: false, ..report }));
                hear(HealthEvent::ProbeNotReady);
            }
        }
    }
}

struct World {
    rng: Rng,
    now: Millis,
    tiers: usize,
    engines: Vec<Engine>,
    state: FailbackState,
    hint: Option<&'static str>,
    /// Every change of the tier that serves: when, and to which.
    flips: Vec<(Millis, usize)>,
    restarts: Vec<Millis>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let tiers = 2 + rng.next(2) as usize;
        let mut engines = Vec::new();
        for tier in 0..tiers {
            for _ in 0..=rng.next(3) {
                engines.push(Engine {
                    tier,
                    truth: Truth::Good,
                    since: 0,
                    steps: 0,
                    next_probe: rng.next(PROBE),
                    was_late: false,
                    health: EndpointHealth::new(true, 0),
                });
            }
        }
        Self {
            rng,
            now: 1,
            tiers,
            engines,
            state: FailbackState::default(),
            hint: None,
            flips: Vec::new(),
            restarts: Vec::new(),
        }
    }

    fn restart(&mut self, with_hint: bool) {
        let active = self.flips.last().map(|(_, tier)| NAMES[*tier]);
        self.hint = active.filter(|_| with_hint);
        self.state = FailbackState::default();
        for engine in &mut self.engines {
            engine.health = EndpointHealth::new(true, self.now);
        }
        self.restarts.push(self.now);
    }

    fn step(&mut self) -> Decision {
        self.now += TICK;
        for engine in &mut self.engines {
            engine.listen(self.now, &mut self.rng);
        }
        let tiers: Vec<TierView<'_>> = (0..self.tiers)
            .map(|tier| TierView {
                name: NAMES[tier],
                endpoints: (0..self.engines.len())
                    .filter(|id| self.engines[*id].tier == tier)
                    .map(|id| EndpointView { id, health: self.engines[id].health.health() })
                    .collect(),
            })
            .collect();
        let decision = route(&RouteInput {
            tiers: &tiers,
            mode: Mode::Auto,
            failback_after_ms: FAILBACK,
            hint: self.hint,
            state: &self.state,
            now: self.now,
        });
        self.state = decision.state.clone();
        if let Some(active) = decision.active
            && self.flips.last().is_none_or(|(_, last)| *last != active)
        {
            self.flips.push((self.now, active));
        }
        self.check(&decision);
        decision
    }

    fn check(&self, decision: &Decision) {
        let health = |id: usize| self.engines[id].health.health();
        let any_healthy = (0..self.engines.len()).any(|id| health(id) == Health::Healthy);
        for (at, routed) in decision.order.iter().enumerate() {
            assert!(!matches!(health(routed.id), Health::Unhealthy(_)), "{} ms: an unhealthy one", self.now);
            assert!(at > 0 || !any_healthy || routed.healthy, "{} ms: not a healthy one first", self.now);
        }
        assert!(!any_healthy || !decision.order.is_empty(), "{} ms: nothing to try", self.now);
        // The same by the truth, once there was time to see it.
        let lasts = |engine: &Engine, time| {
            let since = engine.since.max(self.restarts.last().copied().unwrap_or(0));
            self.now.saturating_sub(since) > time
        };
        let is_good = |engine: &Engine| engine.truth == Truth::Good && lasts(engine, MENDED);
        if self.engines.iter().any(is_good) {
            let first = &self.engines[decision.order[0].id];
            assert!(
                first.truth == Truth::Good || !lasts(first, NOTICED),
                "{} ms: requests go to an engine that is {:?} since {}",
                self.now,
                first.truth,
                first.since
            );
        }
    }

    /// Lets every engine be well for so long that nothing is left of the past.
    fn end_well(&mut self, seed: u64) {
        for engine in &mut self.engines {
            engine.set(Truth::Good, self.now);
        }
        let end = self.now + MENDED + 11 * FAILBACK;
        while self.now < end {
            self.step();
        }
        assert_eq!(self.flips.last().map(|(_, tier)| *tier), Some(0), "seed {seed}: not regained");
    }

    /// The most changes of the serving tier in any window, those apart that a restart may have made.
    fn most_flips_in(&self, window: Millis) -> usize {
        let within = |from: Millis, at: Millis| from <= at && at < from + window;
        let windows = self.flips.iter().map(|(from, _)| {
            let flips = self.flips.iter().filter(|(at, _)| within(*from, *at)).count();
            let restarts = self.restarts.iter().filter(|at| within(*from, **at)).count();
            flips.saturating_sub(2 * restarts)
        });
        windows.max().unwrap_or(0)
    }
}

#[test]
fn no_request_goes_to_a_bad_engine_and_the_best_tier_is_regained() {
    const FAULTS: [Truth; 6] =
        [Truth::Good, Truth::Good, Truth::Killed, Truth::Frozen, Truth::Hung, Truth::Loading];
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        while world.now < 40_000 {
            if world.rng.chance(40) {
                let engine = world.rng.next(world.engines.len() as u64) as usize;
                let truth = FAULTS[world.rng.next(6) as usize];
                world.engines[engine].set(truth, world.now);
            }
            if world.rng.chance(300) {
                let with_hint = world.rng.chance(2);
                world.restart(with_hint);
            }
            world.step();
        }
        world.end_well(seed);
    }
}

#[test]
fn a_tier_that_flaps_moves_traffic_a_bounded_number_of_times() {
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        let flap = 200 + world.rng.next(8_000);
        let mut next = 1_000;
        while world.now < 120_000 {
            if world.now >= next {
                next = world.now + 1 + world.rng.next(flap);
                let (now, bad) = (world.now, world.rng.chance(2));
                for engine in world.engines.iter_mut().filter(|engine| engine.tier == 0) {
                    engine.set(if bad { Truth::Killed } else { Truth::Good }, now);
                }
            }
            if world.rng.chance(1_000) {
                world.restart(true);
            }
            world.step();
        }
        // Away, back and away again is the most that one `failbackAfter` can see.
        let most = world.most_flips_in(FAILBACK);
        assert!(most <= 3, "seed {seed}: {most} moves in one failbackAfter: {:?}", world.flips);
        // Each return takes twice as long as the one before, until it takes ten times as long.
        let most = world.most_flips_in(10 * FAILBACK);
        assert!(most <= 9, "seed {seed}: {most} moves in ten times failbackAfter: {:?}", world.flips);
        world.end_well(seed);
    }
}

#[test]
fn after_a_restart_the_tier_serves_that_served_before() {
    for seed in 0..500 {
        let mut world = World::new(seed);
        for _ in 0..40 {
            world.step();
        }
        for engine in world.engines.iter_mut().filter(|engine| engine.tier == 0) {
            engine.set(Truth::Killed, 2_000);
        }
        for _ in 0..40 {
            world.step();
        }
        for engine in &mut world.engines {
            engine.set(Truth::Good, 4_000);
        }
        for _ in 0..10 {
            world.step();
        }
        let before = world.flips.clone();
        assert_eq!(before.last().map(|(_, tier)| *tier), Some(1), "seed {seed}");
        world.restart(true);
        for _ in 0..40 {
            world.step();
        }
        assert_eq!(world.flips, before, "seed {seed}: the restart moved traffic");
        world.end_well(seed);
    }
}
