//! Whether an endpoint gets on with its work: the clock of hangs.
//!
//! An engine whose card hangs still answers probes and accepts requests, so neither silence nor a refused connection
//! tells. What tells is work without progress: the engine says that it has sequences and its step counter stands
//! still, or requests wait there and nothing comes back.
//! How long a step may take is learnt: a limit that proved too short doubles, and shrinks again with shorter steps.

use super::Millis;

/// A step may take this many times the longest one seen lately.
const TIMES_LONGEST: Millis = 2;
/// Share of the distance to a shorter step by which the longest one is forgotten.
const FORGET: Millis = 64;
/// No limit grows past this.
const LONGEST_LIMIT_MS: Millis = 60_000;

/// What an engine says about its work in its internal status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineReport {
    /// Whether it computes or queues anything.
    pub busy: bool,
    /// Steps of the model so far; absent where the engine does not count them.
    pub steps: Option<u64>,
    /// Tokens generated so far.
    pub tokens: u64,
}

/// How long work may stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Where the engine counts its steps.
    pub hang_after_ms: Millis,
    /// Where only an answer can tell: a long prompt is computed before its first token.
    pub first_byte_after_ms: Millis,
}

/// Work and progress of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    report: EngineReport,
    waiting: bool,
    /// The last progress, or the last moment without work.
    since: Millis,
    longest_gap: Millis,
}

impl Progress {
    /// Without work.
    #[must_use]
    pub fn new(now: Millis) -> Self {
        Self { report: EngineReport::default(), waiting: false, since: now, longest_gap: 0 }
    }

    /// The last progress, or the last moment without work.
    #[must_use]
    pub fn since(&self) -> Millis {
        self.since
    }

    /// Takes in what the engine says.
    pub fn report(&mut self, report: EngineReport, now: Millis, patience: Patience) {
        let old = std::mem::replace(&mut self.report, report);
        // A counter that went back belongs to a new process, which is progress too.
        if (old.steps, old.tokens) != (report.steps, report.tokens) {
            if old.busy && report.busy && report.steps > old.steps {
                self.learn(now.saturating_sub(self.since), patience);
            }
            self.progressed(now);
        }
    }

    /// Whether the observer itself waits for an answer.
    pub fn waiting(&mut self, waiting: bool) {
        self.waiting = waiting;
    }

    /// Something of an answer arrived at this time.
    pub fn progressed(&mut self, at: Millis) {
        self.since = self.since.max(at);
    }

    /// Time in which the observer itself stood still does not count.
    pub fn forgive(&mut self, stall: Millis, now: Millis) {
        let idle = !self.report.busy && !self.waiting;
        self.since = if idle { now } else { self.since.saturating_add(stall).min(now) };
    }

    /// Whether the engine itself says that it has work, and counts its steps.
    #[must_use]
    pub fn counts_steps(&self) -> bool {
        self.report.busy && self.report.steps.is_some()
    }

    /// Whether there is work that stood still for too long.
    #[must_use]
    pub fn is_stalled(&self, now: Millis, patience: Patience) -> bool {
        (self.report.busy || self.waiting) && now.saturating_sub(self.since) >= self.limit(patience)
    }

    fn limit(&self, patience: Patience) -> Millis {
        if !self.counts_steps() {
            return patience.first_byte_after_ms;
        }
        let learnt = self.longest_gap.saturating_mul(TIMES_LONGEST).min(LONGEST_LIMIT_MS);
        patience.hang_after_ms.max(learnt)
    }

    fn learn(&mut self, gap: Millis, patience: Patience) {
        // A gap far past the limit was a hang, not a step: the limit doubles once and no more.
        let gap = gap.min(self.limit(patience));
        self.longest_gap = if gap >= self.longest_gap {
            gap
        } else {
            self.longest_gap - (self.longest_gap - gap).div_ceil(FORGET)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { hang_after_ms: 3_000, first_byte_after_ms: 30_000 };

    fn busy(steps: u64) -> EngineReport {
        EngineReport { busy: true, steps: Some(steps), tokens: 0 }
    }

    #[test]
    fn work_that_stands_still_is_a_hang_and_idleness_is_not() {
        let check = |name: &str, report: EngineReport, waiting: bool, after: Millis, expected: bool| {
            let mut progress = Progress::new(0);
            progress.report(report, 100, PATIENCE);
            progress.waiting(waiting);
            progress.forgive(0, 100);
            assert_eq!(progress.is_stalled(100 + after, PATIENCE), expected, "{name}");
        };
        let idle = EngineReport { busy: false, ..busy(7) };
        let uncounted = EngineReport { steps: None, ..busy(7) };
        check("idle", idle, false, 1_000_000, false);
        check("busy for less than the limit", busy(7), false, 2_999, false);
        check("busy", busy(7), false, 3_000, true);
        check("an engine that does not count its steps", uncounted, false, 29_000, false);
        check("and stands still for ever", uncounted, true, 30_000, true);
        check("we wait and it knows of nothing", idle, true, 29_000, false);
        check("for too long", idle, true, 30_000, true);
    }

    #[test]
    fn a_limit_that_proved_too_short_doubles_and_shrinks_again() {
        let mut progress = Progress::new(0);
        progress.report(busy(1), 0, PATIENCE);
        assert!(progress.is_stalled(5_000, PATIENCE));
        progress.report(busy(2), 5_000, PATIENCE);
        assert!(!progress.is_stalled(5_000 + 5_999, PATIENCE));
        assert!(progress.is_stalled(5_000 + 6_000, PATIENCE));
        let mut now = 5_000;
        for step in 3..400 {
            now += 200;
            progress.report(busy(step), now, PATIENCE);
        }
        assert!(progress.is_stalled(now + 3_000, PATIENCE));
    }

    #[test]
    fn a_new_process_and_a_byte_are_progress() {
        let mut progress = Progress::new(0);
        progress.report(busy(90), 0, PATIENCE);
        progress.report(busy(1), 2_900, PATIENCE);
        assert!(!progress.is_stalled(5_800, PATIENCE));
        progress.progressed(5_800);
        assert!(!progress.is_stalled(8_700, PATIENCE));
    }
}
