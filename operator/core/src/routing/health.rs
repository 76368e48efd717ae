//! Health of one endpoint: a state machine fed with probe results, request outcomes, readiness and progress.
//!
//! It says whether an endpoint may be chosen, why not, and since when there was trouble.
//! It deliberately does not know tiers, nor how probes are made.

use std::fmt;

use super::{EngineReport, Millis, Patience, Progress};

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
    /// It has work and gets nowhere, although it answers probes.
    Hung,
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
            Self::Hung => "Hung",
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
            Self::ConnectionRefused | Self::Unreachable | Self::Silent | Self::Hung | Self::Gone => true,
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
    /// How long work may stand still.
    pub patience: Patience,
}

/// What happened to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthEvent {
    /// Time passed.
    Tick {
        /// Whether the observer has requests there without a byte of their answer.
        waiting: bool,
    },
    /// What the engine says about its work; comes before the result of the probe that brought it.
    Report(EngineReport),
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
    progress: Progress,
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
            progress: Progress::new(now),
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
        self.progress.forgive(stall, now);
        match event {
            HealthEvent::Tick { waiting } => self.progress.waiting(waiting),
            HealthEvent::Report(report) => self.progress.report(report, now, settings.patience),
            HealthEvent::ProbeOk { sent_at } => {
                self.signs_of_life(now);
                self.engine_ready = Some(true);
                let stalled = self.progress.is_stalled(now, settings.patience);
                let mended = |fault: Fault| {
                    // An answer to a probe says nothing about work that stands still.
                    let still_hung = fault.cause == Cause::Hung && stalled;
                    sent_at >= fault.since && now >= fault.not_before && !still_hung
                };
                if self.fault.is_some_and(mended) {
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
                self.progress.progressed(at.min(now));
                if at > self.last_sign {
                    self.signs_of_life(at.min(now));
                }
            }
            HealthEvent::Answered => {
                self.server_errors = 0;
                self.progress.progressed(now);
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
                // What the kubelet has heard since is newer than what the engine said here: the next probe tells.
                if ready && !self.pod_ready && self.engine_ready == Some(false) {
                    self.engine_ready = None;
                }
                self.pod_ready = ready;
                if !ready {
                    self.note_trouble(now);
                }
            }
        }
        if self.fault.is_none() && now.saturating_sub(self.last_sign) >= settings.unhealthy_after_ms {
            self.fail(Cause::Silent, now, now);
        }
        if self.fault.is_none() && self.progress.is_stalled(now, settings.patience) {
            // Where the engine counts its steps they tell when it is over; else only time can.
            let quarantine = if self.progress.counts_steps() { 0 } else { QUARANTINE_MS };
            self.fail(Cause::Hung, now, now.saturating_add(quarantine));
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
        // Silence began when the last sign of life was over, not when its limit was reached; a hang likewise.
        self.note_trouble(match cause {
            Cause::Silent => self.last_sign,
            Cause::Hung => self.progress.since(),
            _ => now,
        });
        let not_before = self.fault.map_or(not_before, |fault| fault.not_before.max(not_before));
        self.fault = Some(Fault { cause, since: now, not_before });
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
