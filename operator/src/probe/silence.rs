//! Which gateways were silent for too long, in time in which this process listened. Pure.
//!
//! A process that does not run hears nobody, so its own standstill is nobody's silence: silence is counted by a clock that
//! stands still with the process. What is lost of a starved process's time is lost to the watch as well, and a gateway is
//! given up later rather than wrongly.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// A clock that stands still while this process does.
#[derive(Debug)]
pub struct Attention {
    last: Instant,
    longest: Duration,
    awake: Duration,
}

impl Attention {
    /// Begins at zero; two pulses are at most this far apart where nothing stalls.
    #[must_use]
    pub fn begin(now: Instant, longest: Duration) -> Self {
        Self { last: now, longest, awake: Duration::ZERO }
    }

    /// Takes in that this process runs, and says for how long it did not.
    pub fn pulse(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        let listened = passed.min(self.longest);
        self.awake += listened;
        passed - listened
    }

    /// Time in which this process listened.
    #[must_use]
    pub fn awake(&self) -> Duration {
        self.awake
    }
}

/// One gateway pod as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its namespace.
    pub namespace: String,
    /// Its pod's name.
    pub name: String,
    /// Its pod's uid: a pod of the same name is another gateway.
    pub uid: String,
    /// Where it answers; none before it has an address.
    pub address: Option<String>,
    /// Whether the Service leads to it.
    pub ready: bool,
}

/// When each gateway gave its last sign of life, in time in which this process listened.
#[derive(Debug)]
pub struct Silences {
    limit: Duration,
    signs: HashMap<String, Signs>,
}

#[derive(Debug, Clone, Copy)]
struct Signs {
    /// Since when it is silent: from its last answer, or from when it became ready.
    since: Duration,
    /// Its last answer. That it has just become ready is no proof that this process can hear it.
    heard: Option<Duration>,
}

impl Silences {
    /// Silence is too long from this limit on.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit, signs: HashMap::new() }
    }

    /// Takes in which gateways there are.
    ///
    /// One that is new here or not ready begins anew: what it did not answer before clients were sent to it is no silence.
    pub fn observe(&mut self, gateways: &[Gateway], awake: Duration) {
        self.signs.retain(|uid, _| gateways.iter().any(|gateway| gateway.uid == *uid));
        for gateway in gateways {
            let new = Signs { since: awake, heard: None };
            let signs = self.signs.entry(gateway.uid.clone()).or_insert(new);
            if !gateway.ready {
                signs.since = awake;
            }
        }
    }

    /// Takes in an answer, however old its question is.
    pub fn hear(&mut self, uid: &str, awake: Duration) {
        if let Some(signs) = self.signs.get_mut(uid) {
            *signs = Signs { since: awake, heard: Some(awake) };
        }
    }

    /// Whether it is still there.
    #[must_use]
    pub fn knows(&self, uid: &str) -> bool {
        self.signs.contains_key(uid)
    }

    /// For how long it has been silent.
    #[must_use]
    pub fn of(&self, gateway: &Gateway, awake: Duration) -> Duration {
        self.signs.get(&gateway.uid).map_or(Duration::ZERO, |signs| awake.saturating_sub(signs.since))
    }

    /// Whether it has been silent for too long.
    #[must_use]
    pub fn is_silent(&self, gateway: &Gateway, awake: Duration) -> bool {
        self.of(gateway, awake) >= self.limit
    }

    /// Ready gateways that will have been silent for too long before `lead` has passed, where another ready one of the
    /// namespace was heard just now.
    ///
    /// Where none was, it is this process that is cut off, or nothing is left to gain.
    #[must_use]
    pub fn choose<'a>(&self, gateways: &'a [Gateway], awake: Duration, lead: Duration) -> Vec<&'a Gateway> {
        let heard = |other: &Gateway| self.signs.get(&other.uid).and_then(|signs| signs.heard);
        let is_heard = |other: &Gateway| {
            other.ready && heard(other).is_some_and(|heard| awake.saturating_sub(heard) < self.limit / 2)
        };
        let others = |gateway: &Gateway| {
            gateways.iter().any(|other| {
                other.namespace == gateway.namespace && other.uid != gateway.uid && is_heard(other)
            })
        };
        gateways
            .iter()
            .filter(|gateway| gateway.ready && self.is_silent(gateway, awake + lead) && others(gateway))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(750);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn gateway(number: usize, namespace: &str, ready: bool) -> Gateway {
        Gateway {
            namespace: namespace.into(),
            name: format!("gateway-{number}"),
            uid: number.to_string(),
            address: Some("127.0.0.1".into()),
            ready,
        }
    }

    #[test]
    fn only_a_ready_gateway_beside_one_that_is_heard_is_deleted() {
        let check = |gateways: &[(&str, bool, u64)], expected: &[&str]| {
            let now = millis(10_000);
            let mut silences = Silences::new(LIMIT);
            let pods: Vec<Gateway> = gateways
                .iter()
                .enumerate()
                .map(|(i, (namespace, ready, _))| gateway(i, namespace, *ready))
                .collect();
            silences.observe(&pods, Duration::ZERO);
            for (pod, (_, _, silent)) in pods.iter().zip(gateways) {
                silences.hear(&pod.uid, now - millis(*silent));
            }
            let chosen: Vec<&str> =
                silences.choose(&pods, now, Duration::ZERO).iter().map(|g| g.uid.as_str()).collect();
            assert_eq!(chosen, expected, "{gateways:?}");
        };
        check(&[("a", true, 800), ("a", true, 10)], &["0"]);
        check(&[("a", true, 750), ("a", true, 374)], &["0"]);
        check(&[("a", true, 749), ("a", true, 10)], &[]);
        check(&[("a", true, 800), ("a", true, 800)], &[]);
        // Both are slow to answer: it is the machine, or this process, and nothing is known of either.
        check(&[("a", true, 800), ("a", true, 600)], &[]);
        check(&[("a", true, 800), ("a", false, 10)], &[]);
        check(&[("a", true, 800), ("b", true, 10)], &[]);
        check(&[("a", false, 800), ("a", true, 10)], &[]);
        check(&[("a", true, 800)], &[]);
        check(&[("a", true, 800), ("a", true, 900), ("a", true, 10)], &["0", "1"]);
    }

    #[test]
    fn what_a_gateway_did_not_answer_before_it_was_ready_is_no_silence() {
        let mut silences = Silences::new(LIMIT);
        let (starts, other) = (gateway(0, "a", false), gateway(1, "a", true));
        silences.observe(&[starts.clone(), other.clone()], millis(0));
        let later = millis(5_000);
        silences.hear(&other.uid, later);
        silences.observe(&[starts.clone(), other.clone()], later);
        let pods = [Gateway { ready: true, ..starts }, other];
        silences.observe(&pods, later);
        assert!(silences.choose(&pods, later, Duration::ZERO).is_empty(), "it became ready this moment");
        silences.hear(&pods[1].uid, millis(5_700));
        assert!(silences.choose(&pods, millis(5_749), Duration::ZERO).is_empty());
        assert_eq!(
            silences.choose(&pods, millis(5_750), Duration::ZERO).len(),
            1,
            "from then on its silence counts"
        );
        assert_eq!(silences.choose(&pods, millis(5_700), millis(50)).len(), 1, "and is seen coming");
    }

    #[test]
    fn one_that_has_just_become_ready_was_not_heard_by_that() {
        let mut silences = Silences::new(LIMIT);
        let (silent, new) = (gateway(0, "a", true), gateway(1, "a", false));
        silences.observe(&[silent.clone(), new.clone()], millis(0));
        let pods = [silent, Gateway { ready: true, ..new }];
        silences.observe(&pods, millis(800));
        assert!(silences.choose(&pods, millis(800), Duration::ZERO).is_empty());
        silences.hear(&pods[1].uid, millis(810));
        assert_eq!(silences.choose(&pods, millis(810), Duration::ZERO).len(), 1);
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_gateway() {
        let mut silences = Silences::new(LIMIT);
        let (old, other) = (gateway(0, "a", true), gateway(1, "a", true));
        silences.observe(&[old.clone(), other.clone()], millis(0));
        let pods = [Gateway { uid: "new".into(), ..old }, other];
        silences.observe(&pods, millis(740));
        silences.hear(&pods[1].uid, millis(800));
        assert!(silences.choose(&pods, millis(800), Duration::ZERO).is_empty());
    }

    #[test]
    fn time_in_which_this_process_stands_still_is_nobodys_silence() {
        let begin = Instant::now();
        let mut attention = Attention::begin(begin, millis(50));
        let mut at = 0;
        let mut pass = |by: u64| {
            at += by;
            attention.pulse(begin + millis(at));
            attention.awake()
        };
        assert_eq!(pass(25), millis(25));
        assert_eq!(pass(10_000), millis(75), "a start-up or an election that took ten seconds");
        // Starved for a while: of every 300 ms it ran once.
        let awake = (0..10).fold(Duration::ZERO, |_, _| pass(300));
        assert_eq!(awake, millis(575));
        assert!(awake < LIMIT, "three seconds of starvation are less than the limit");
    }
}
