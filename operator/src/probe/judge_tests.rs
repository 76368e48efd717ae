//! Random histories: gateways die, stand still and come back, links are cut and healed, the API server's news come late, and
//! the controller itself does not run for a while.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const LIMIT: Duration = Duration::from_millis(750);
const PULSE_MS: u64 = 25;
const PERIOD_MS: u64 = 250;
const KNOCK_MS: u64 = 250;
const LOOK_LIMIT_MS: u64 = 500;
const GATEWAYS: usize = 3;

/// What happens at one moment.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The gateway answers from now on, or does not.
    Lives(usize, bool),
    /// Kubernetes calls it ready, or does not.
    Ready(usize, bool),
    /// The controller's way to it is there, or not.
    Reaches(usize, bool),
    /// The controller's way to the API server is there, or not.
    Sees(bool),
    /// News of the API server take so long to the controller's copies.
    NewsTake(u64),
    /// An answer of a gateway takes so long.
    AnswersTake(u64),
    /// The controller does not run for so long.
    Stands(u64),
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let which = 0..GATEWAYS;
    let event = prop_oneof![
        3 => (which.clone(), any::<bool>()).prop_map(|(at, on)| Event::Lives(at, on)),
        2 => (which.clone(), any::<bool>()).prop_map(|(at, on)| Event::Ready(at, on)),
        2 => (which, any::<bool>()).prop_map(|(at, on)| Event::Reaches(at, on)),
        2 => any::<bool>().prop_map(Event::Sees),
        1 => (0_u64..2_000).prop_map(Event::NewsTake),
        1 => (1_u64..200).prop_map(Event::AnswersTake),
        1 => (50_u64..3_000).prop_map(Event::Stands),
    ];
    // Much of what matters happens between a look and its conclusion.
    let after = prop_oneof![0_u64..150, 0_u64..1_500];
    prop::collection::vec((after, event), 1..60)
}

/// One gateway as it is.
#[derive(Debug, Clone)]
struct Real {
    gateway: Gateway,
    version: u64,
    lives: bool,
    reached: bool,
}

/// A look that is under way.
#[derive(Debug)]
struct Look {
    suspect: Gateway,
    began: u64,
    /// When the API server answered, and what.
    shown: Option<(u64, Vec<Shown>)>,
}

/// A sentence, and what was so when the API server was asked for the last time before it.
#[derive(Debug)]
struct Passed {
    uid: String,
    /// The suspect was ready, and others were.
    was_ready: bool,
    others_ready: usize,
    /// For how long the last view was old.
    view_age: u64,
    /// Other gateways that answered within the limit, by the controller's own count.
    others_heard: usize,
    /// Whether the suspect had answered every question since it was there, as far as it was reached.
    always_answered: bool,
}

/// Everything, at one moment.
struct World {
    now: u64,
    start: Instant,
    real: Vec<Real>,
    judge: Judge,
    sees: bool,
    news_take: u64,
    answers_take: u64,
    stands_until: u64,
    /// What the controller's copies will say, and when.
    news: VecDeque<(u64, Vec<Gateway>)>,
    copy: Vec<Gateway>,
    next_round: Duration,
    /// Answers under way: when they arrive, and whose.
    answers: Vec<(u64, usize)>,
    looks: Vec<Look>,
    heard: [Option<Duration>; GATEWAYS],
    ever_mute: [bool; GATEWAYS],
    passed: Vec<Passed>,
}

impl World {
    fn new() -> Self {
        let gateway = |at: usize| Gateway {
            namespace: "a".into(),
            name: format!("gateway-{at}"),
            uid: at.to_string(),
            address: Some("127.0.0.1".into()),
            ready: true,
        };
        let real: Vec<Real> = (0..GATEWAYS)
            .map(|at| Real { gateway: gateway(at), version: 1, lives: true, reached: true })
            .collect();
        let copy = real.iter().map(|real| real.gateway.clone()).collect();
        let start = Instant::now();
        Self {
            now: 0,
            start,
            real,
            judge: Judge::begin(start, LIMIT, Duration::from_millis(2 * PULSE_MS)),
            sees: true,
            news_take: 10,
            answers_take: 10,
            stands_until: 0,
            news: VecDeque::new(),
            copy,
            next_round: Duration::ZERO,
            answers: Vec::new(),
            looks: Vec::new(),
            heard: [None; GATEWAYS],
            ever_mute: [false; GATEWAYS],
            passed: Vec::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Lives(at, lives) => self.real[at].lives = lives,
            Event::Reaches(at, reached) => self.real[at].reached = reached,
            Event::Ready(at, ready) => {
                self.real[at].gateway.ready = ready;
                self.real[at].version += 1;
                let all = self.real.iter().map(|real| real.gateway.clone()).collect();
                self.news.push_back((self.now + self.news_take, all));
            }
            Event::Sees(sees) => self.sees = sees,
            Event::NewsTake(millis) => self.news_take = millis,
            Event::AnswersTake(millis) => self.answers_take = millis,
            Event::Stands(millis) => self.stands_until = self.now + millis,
        }
    }

    fn pass(&mut self, millis: u64) {
        for _ in 0..millis.div_ceil(PULSE_MS) {
            self.now += PULSE_MS;
            self.api_server();
            if self.now >= self.stands_until {
                self.controller();
            }
        }
    }

    /// Answers looks that have reached it, and sends its news, where the way to the controller is there.
    fn api_server(&mut self) {
        if !self.sees {
            return;
        }
        for look in self.looks.iter_mut().filter(|look| look.shown.is_none() && look.began < self.now) {
            let shown = self
                .real
                .iter()
                .map(|real| Shown { gateway: real.gateway.clone(), version: real.version.to_string() });
            look.shown = Some((self.now, shown.collect()));
        }
        while self.news.front().is_some_and(|(at, _)| *at <= self.now) {
            self.copy = self.news.pop_front().unwrap().1;
        }
    }

    /// As the prober does: first what ended, then the pulse.
    fn controller(&mut self) {
        let at = self.start + Duration::from_millis(self.now);
        self.judge.pulse(at);
        let awake = self.judge.awake();
        let (arrived, later) =
            std::mem::take(&mut self.answers).into_iter().partition(|(at, _)| *at <= self.now);
        self.answers = later;
        let arrived: Vec<(u64, usize)> = arrived;
        for (_, gateway) in arrived {
            self.judge.hear(&gateway.to_string());
            self.heard[gateway] = Some(awake);
        }
        for look in std::mem::take(&mut self.looks) {
            match &look.shown {
                Some((shown_at, _)) if self.now < shown_at + KNOCK_MS => self.looks.push(look),
                None if self.now < look.began + LOOK_LIMIT_MS => self.looks.push(look),
                _ => self.conclude(look),
            }
        }
        if self.judge.awake() >= self.next_round {
            self.next_round = self.judge.awake() + Duration::from_millis(PERIOD_MS);
            self.judge.observe(self.copy.clone());
            for (at, real) in self.real.iter().enumerate() {
                let answers = real.lives && real.reached;
                self.ever_mute[at] |= !answers;
                if answers {
                    self.answers.push((self.now + self.answers_take, at));
                }
            }
        }
        for suspect in self.judge.suspect(Duration::from_millis(KNOCK_MS)) {
            self.looks.push(Look { suspect, began: self.now, shown: None });
        }
    }

    fn conclude(&mut self, look: Look) {
        let Look { suspect, shown, .. } = look;
        self.judge.observe(self.copy.clone());
        let at: usize = suspect.uid.parse().unwrap();
        let answers = self.real[at].lives && self.real[at].reached;
        let (seen_at, found) = match shown {
            None => (None, Found::Nothing),
            Some(_) if answers => (None, Found::Alive),
            Some((seen_at, shown)) => (Some((seen_at, shown.clone())), Found::Silent(shown)),
        };
        if found == Found::Alive {
            self.heard[at] = Some(self.judge.awake());
        }
        let Some(Sentence { version, silent }) = self.judge.conclude(&suspect, found) else { return };
        let (seen_at, shown) = seen_at.expect("nobody is judged without a view of the API server");
        let awake = self.judge.awake();
        let is_ready = |uid: &str| shown.iter().any(|shown| shown.gateway.uid == uid && shown.gateway.ready);
        let others = || (0..GATEWAYS).filter(|other| *other != at && is_ready(&other.to_string()));
        assert!(silent >= LIMIT, "{silent:?}");
        assert!(shown.iter().any(|shown| shown.gateway.uid == suspect.uid && shown.version == version));
        self.passed.push(Passed {
            was_ready: is_ready(&suspect.uid),
            others_ready: others().count(),
            view_age: self.now - seen_at,
            others_heard: others()
                .filter(|other| {
                    self.heard[*other].is_some_and(|heard| awake.saturating_sub(heard) < LIMIT / 2)
                })
                .count(),
            always_answered: !self.ever_mute[at],
            uid: suspect.uid.clone(),
        });
        // It is gone, and nobody comes in its place.
        self.judge.close(&suspect.uid);
        self.real[at].gateway.ready = false;
        self.real[at].lives = false;
        self.happen(Event::Ready(at, false));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_judged_by_a_controller_that_does_not_see_the_api_server(history in events()) {
        let mut world = World::new();
        for (after, event) in history {
            world.pass(after);
            world.happen(event);
        }
        world.pass(3_000);
        for passed in &world.passed {
            // The API server itself showed, no longer ago than the knock took and a standstill of the controller, that it was
            // ready and not the last one; and another one that is ready there had answered just now.
            prop_assert!(passed.was_ready && passed.others_ready > 0, "the last ready one: {passed:?}");
            prop_assert!(passed.others_heard > 0, "nobody else was heard: {passed:?}");
            prop_assert!(!passed.always_answered, "it answered every question: {passed:?}");
        }
    }

    #[test]
    fn a_controller_that_is_cut_off_from_the_api_server_deletes_nobody_until_it_is_not(history in events()) {
        let mut world = World::new();
        world.pass(500);
        world.happen(Event::Sees(false));
        for (after, event) in history {
            world.pass(after);
            if !matches!(event, Event::Sees(_)) {
                world.happen(event);
            }
        }
        world.pass(3_000);
        prop_assert!(world.passed.is_empty(), "{:?}", world.passed);
    }

    #[test]
    fn a_controller_that_hears_nobody_deletes_nobody(history in events()) {
        let mut world = World::new();
        world.pass(500);
        (0..GATEWAYS).for_each(|at| world.happen(Event::Reaches(at, false)));
        for (after, event) in history {
            world.pass(after);
            if !matches!(event, Event::Reaches(..)) {
                world.happen(event);
            }
        }
        world.pass(3_000);
        prop_assert!(world.passed.is_empty(), "{:?}", world.passed);
    }

    #[test]
    fn one_that_is_lost_is_deleted_beside_others_that_live(which in 0..GATEWAYS, takes in 1_u64..200, after in 0_u64..1_000) {
        let mut world = World::new();
        world.happen(Event::AnswersTake(takes));
        world.pass(after);
        world.happen(Event::Lives(which, false));
        world.pass(1_500);
        prop_assert_eq!(world.passed.len(), 1);
        prop_assert_eq!(&world.passed[0].uid, &which.to_string());
        prop_assert!(world.passed[0].view_age <= KNOCK_MS + PULSE_MS, "{:?}", world.passed);
        // One of two goes, and the last one stays whatever becomes of it.
        (0..GATEWAYS).filter(|at| *at != which).for_each(|at| world.happen(Event::Lives(at, false)));
        world.pass(5_000);
        prop_assert_eq!(world.passed.len(), 1);
    }
}
