//! Health of one endpoint: a state machine fed with probe results, request outcomes and readiness.
//!
//! It says whether an endpoint may be chosen, why not, and since when there was trouble.
//! It deliberately does not know tiers, nor how probes are made.

use std::fmt;

use super::Millis;

/// Server errors in a row after which an endpoint that still passes its probes is taken out for a while.
const SERVER_ERRORS_IN_A_ROW: u32 = 3;
/// How long such an endpoint stays out: its probes say nothing about what fails.
const QUARANTINE_MS: Millis = 5_000;

/// Why an endpoint is not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// Nothing listens on the port.
    ConnectionRefused,
    /// A connection was closed before the answer was whole.
    ConnectionReset,
    /// The host cannot be reached, says the network.
    Unreachable,
    /// No sign of life for `unhealthyAfter`.
    Silent,
    /// The engine says that it is not ready.
    EngineNotReady,
    /// Kubernetes says that the pod is not ready.
    PodNotReady,
    /// Several server errors in a row.
    ServerErrors,
    /// The pod is gone from the cluster's view.
    Gone,
}

impl Cause {
    /// The cause as it stands in metrics, events and the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "ConnectionRefused",
            Self::ConnectionReset => "ConnectionReset",
            Self::Unreachable => "Unreachable",
            Self::Silent => "Silent",
            Self::EngineNotReady => "EngineNotReady",
            Self::PodNotReady => "PodNotReady",
            Self::ServerErrors => "ServerErrors",
            Self::Gone => "Gone",
        }
    }

    /// Whether requests that wait on the endpoint can no longer get an answer.
    ///
    /// An engine that drains or answers errors still finishes what runs, and one broken connection says nothing
    /// about the others, so those do not count.
    #[must_use]
    pub const fn ends_running_requests(self) -> bool {
        match self {
            Self::ConnectionRefused | Self::Unreachable | Self::Silent | Self::Gone => true,
            Self::ConnectionReset | Self::EngineNotReady | Self::PodNotReady | Self::ServerErrors => false,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Ready as far as Kubernetes says, and not probed yet.
    Unknown,
    /// Answers and is ready.
    Healthy,
    /// Must not be chosen while another can.
    Unhealthy(Cause),
}

/// Limits of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthSettings {
    /// Time without a sign of life after which the endpoint counts as lost (`failover.unhealthyAfter`).
    pub unhealthy_after_ms: Millis,
    /// Longest distance of two ticks that is not the observer's own stall.
    pub tick_ms: Millis,
}

/// What happened to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthEvent {
    /// Time passed.
    Tick,
    /// `/readyz` answered 200 to a probe that was sent at this time.
    ProbeOk {
        /// When the probe was sent: what failed later is not mended by it.
        sent_at: Millis,
    },
    /// `/readyz` answered, and not with 200.
    ProbeNotReady,
    /// A probe got no answer in its time.
    ProbeLate,
    /// A connection to either port failed for this reason, or was cut before an answer was whole.
    ConnectionFailed(Cause),
    /// A request's connection was not accepted in time.
    ConnectTimedOut,
    /// Bytes of an answer arrived, last at this time.
    BytesSeen {
        /// Arrival of the last of them.
        at: Millis,
    },
    /// A request was answered with a status below 500.
    Answered,
    /// A request was answered 500, 502 or 504.
    ServerError,
    /// What the EndpointSlice says.
    PodReady(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    cause: Cause,
    since: Millis,
    not_before: Millis,
}

/// The state machine of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointHealth {
    pod_ready: bool,
    engine_ready: Option<bool>,
    fault: Option<Fault>,
    last_sign: Millis,
    last_tick: Millis,
    trouble_since: Option<Millis>,
    server_errors: u32,
}

impl EndpointHealth {
    /// Starts with an endpoint that was seen for the first time.
    #[must_use]
    pub fn new(pod_ready: bool, now: Millis) -> Self {
        Self {
            pod_ready,
            engine_ready: None,
            fault: None,
            last_sign: now,
            last_tick: now,
            trouble_since: None,
            server_errors: 0,
        }
    }

    /// What is known now.
    #[must_use]
    pub fn health(&self) -> Health {
        if let Some(fault) = self.fault {
            return Health::Unhealthy(fault.cause);
        }
        if !self.pod_ready {
            return Health::Unhealthy(Cause::PodNotReady);
        }
        match self.engine_ready {
            None => Health::Unknown,
            Some(true) => Health::Healthy,
            Some(false) => Health::Unhealthy(Cause::EngineNotReady),
        }
    }

    /// First sign of the trouble that is going on: from there to the move to another endpoint is what a client
    /// may notice.
    #[must_use]
    pub fn trouble_since(&self) -> Option<Millis> {
        self.trouble_since
    }

    /// Applies one event.
    pub fn apply(&mut self, event: HealthEvent, now: Millis, settings: HealthSettings) {
        // An observer that was held up itself has not listened meanwhile: that time does not count as silence.
        let stall = now.saturating_sub(self.last_tick).saturating_sub(settings.tick_ms);
        self.last_sign = self.last_sign.saturating_add(stall).min(now);
        self.last_tick = self.last_tick.max(now);
        match event {
            HealthEvent::Tick => {}
            HealthEvent::ProbeOk { sent_at } => {
                self.signs_of_life(now);
                self.engine_ready = Some(true);
                if self.fault.is_some_and(|fault| sent_at >= fault.since && now >= fault.not_before) {
                    self.fault = None;
                }
            }
            HealthEvent::ProbeNotReady => {
                self.signs_of_life(now);
                self.engine_ready = Some(false);
                // It answers: whatever was wrong with reaching it is over, its own word counts now.
                if self.fault.is_some_and(|fault| now >= fault.not_before) {
                    self.fault = None;
                }
                self.note_trouble(now);
            }
            HealthEvent::ProbeLate => self.note_trouble(now),
            HealthEvent::ConnectionFailed(cause) => self.fail(cause, now, now),
            HealthEvent::ConnectTimedOut => {
                self.note_trouble(now);
                // One lost SYN is no proof, but together with silent probes it is.
                if now.saturating_sub(self.last_sign) >= settings.unhealthy_after_ms / 2 {
                    self.fail(Cause::Silent, now, now);
                }
            }
            HealthEvent::BytesSeen { at } => {
                if at > self.last_sign {
                    self.signs_of_life(at.min(now));
                }
            }
            HealthEvent::Answered => {
                self.server_errors = 0;
                self.signs_of_life(now);
            }
            HealthEvent::ServerError => {
                self.signs_of_life(now);
                self.server_errors = self.server_errors.saturating_add(1);
                if self.server_errors >= SERVER_ERRORS_IN_A_ROW {
                    self.server_errors = 0;
                    self.fail(Cause::ServerErrors, now, now.saturating_add(QUARANTINE_MS));
                }
            }
            HealthEvent::PodReady(ready) => {
                self.pod_ready = ready;
                if !ready {
                    self.note_trouble(now);
                }
            }
        }
        if self.fault.is_none() && now.saturating_sub(self.last_sign) >= settings.unhealthy_after_ms {
            self.fail(Cause::Silent, now, now);
        }
        if self.health() == Health::Healthy && self.last_sign == now {
            self.trouble_since = None;
        }
    }

    fn signs_of_life(&mut self, at: Millis) {
        self.last_sign = self.last_sign.max(at);
    }

    fn note_trouble(&mut self, now: Millis) {
        self.trouble_since.get_or_insert(now);
    }

    fn fail(&mut self, cause: Cause, now: Millis, not_before: Millis) {
        // Silence began when the last sign of life was over, not when its limit was reached.
        self.note_trouble(if cause == Cause::Silent { self.last_sign } else { now });
        let not_before = self.fault.map_or(not_before, |fault| fault.not_before.max(not_before));
        self.fault = Some(Fault { cause, since: now, not_before });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthEvent::*;

    const SETTINGS: HealthSettings = HealthSettings { unhealthy_after_ms: 1_000, tick_ms: 100 };

    /// Plays (time, event) pairs with a tick every 50 ms in between, and returns the health at the end.
    fn play(events: &[(Millis, HealthEvent)]) -> Health {
        let mut endpoint = EndpointHealth::new(true, 0);
        let mut now = 0;
        for (at, event) in events {
            while now + 50 < *at {
                now += 50;
                endpoint.apply(Tick, now, SETTINGS);
            }
            now = *at;
            endpoint.apply(*event, now, SETTINGS);
        }
        endpoint.health()
    }

    #[test]
    fn histories_end_in_the_health_that_they_should() {
        let check = |name: &str, events: &[(Millis, HealthEvent)], expected: Health| {
            assert_eq!(play(events), expected, "{name}");
        };
        let ok = ProbeOk { sent_at: 10 };
        let refused = ConnectionFailed(Cause::ConnectionRefused);
        check("new", &[], Health::Unknown);
        check("probed", &[(12, ok)], Health::Healthy);
        check("refused at once", &[(12, ok), (13, refused)], Health::Unhealthy(Cause::ConnectionRefused));
        check(
            "an answer to a probe from before the fault mends nothing",
            &[(12, ok), (13, refused), (14, ok)],
            Health::Unhealthy(Cause::ConnectionRefused),
        );
        check("mended", &[(12, ok), (13, refused), (30, ProbeOk { sent_at: 20 })], Health::Healthy);
        check("quiet for less than the limit", &[(12, ok), (1_000, Tick)], Health::Healthy);
        check("silent", &[(12, ok), (1_012, Tick)], Health::Unhealthy(Cause::Silent));
        check(
            "late probes do not count while bytes arrive",
            &[(12, ok), (400, ProbeLate), (900, BytesSeen { at: 890 }), (1_800, Tick)],
            Health::Healthy,
        );
        check(
            "silent after the last byte",
            &[(12, ok), (900, BytesSeen { at: 890 }), (1_900, Tick)],
            Health::Unhealthy(Cause::Silent),
        );
        check("never answered", &[(1_100, ProbeLate)], Health::Unhealthy(Cause::Silent));
        check("loading", &[(12, ProbeNotReady)], Health::Unhealthy(Cause::EngineNotReady));
        check("withdrawn", &[(12, ok), (20, PodReady(false))], Health::Unhealthy(Cause::PodNotReady));
        check("readiness is back", &[(12, ok), (20, PodReady(false)), (30, PodReady(true))], Health::Healthy);
        check(
            "one refused connect after another is quiet for half the limit",
            &[(12, ok), (400, ConnectTimedOut)],
            Health::Healthy,
        );
        check(
            "no connect and no sign of life",
            &[(12, ok), (600, ConnectTimedOut)],
            Health::Unhealthy(Cause::Silent),
        );
        check("two server errors", &[(12, ok), (13, ServerError), (14, ServerError)], Health::Healthy);
        let errors = [(12, ok), (13, ServerError), (14, ServerError), (15, ServerError)];
        check("three server errors", &errors, Health::Unhealthy(Cause::ServerErrors));
        let mut after = errors.to_vec();
        after.push((900, ProbeOk { sent_at: 890 }));
        check("probes do not end a quarantine", &after, Health::Unhealthy(Cause::ServerErrors));
    }

    #[test]
    fn an_observer_that_was_held_up_blames_nobody() {
        let mut endpoint = EndpointHealth::new(true, 0);
        endpoint.apply(ProbeOk { sent_at: 1 }, 2, SETTINGS);
        endpoint.apply(Tick, 60_000, SETTINGS);
        assert_eq!(endpoint.health(), Health::Healthy);
    }

    #[test]
    fn trouble_begins_with_its_first_sign_and_ends_with_health() {
        let mut endpoint = EndpointHealth::new(true, 0);
        endpoint.apply(ProbeOk { sent_at: 0 }, 0, SETTINGS);
        for now in (50..=1_000).step_by(50) {
            endpoint.apply(if now == 500 { ProbeLate } else { Tick }, now, SETTINGS);
        }
        assert_eq!(endpoint.health(), Health::Unhealthy(Cause::Silent));
        assert_eq!(endpoint.trouble_since(), Some(500));
        endpoint.apply(ProbeOk { sent_at: 1_010 }, 1_020, SETTINGS);
        assert_eq!((endpoint.health(), endpoint.trouble_since()), (Health::Healthy, None));
    }
}
