//! Whether a tier may have pods, as far as its card's memory is concerned.
//!
//! A plan keeps pods from being made that could not load; it never takes away what serves already, since an engine
//! that has loaded knows better than an estimate.

use std::time::Duration;

/// How long a tier that was not started yet waits for its header. A model that does not fit is not fetched by a node then;
/// where headers cannot be read at all, a first start is this much later.
pub const HEADER_PATIENCE: Duration = Duration::from_secs(5);

/// What the planner says of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It fits.
    Fits,
    /// It does not.
    DoesNotFit,
    /// By what an engine once read it does not; the file of that name may be another by now, so engines go on looking.
    Doubtful,
    /// Its header is being read, since this long.
    Reading(Duration),
    /// Its header cannot be read: the engine finds out.
    Unknown,
}

/// How a tier stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether its Deployment asks for pods already.
    pub started: bool,
    /// Whether its wanted pod template differs from the live one.
    pub changed: bool,
    /// Whether one of its pods serves.
    pub ready: bool,
}

/// What follows for a tier's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It has the pods that it wants.
    Run,
    /// It keeps the pods that it has, as they are.
    Keep,
    /// It has none.
    Stop,
}

/// Decides for one tier.
#[must_use]
pub fn admit(fit: Fit, standing: Standing) -> Admission {
    match fit {
        Fit::Fits | Fit::Unknown => Admission::Run,
        Fit::Reading(since) if !standing.started && since < HEADER_PATIENCE => Admission::Stop,
        Fit::Reading(_) => Admission::Run,
        Fit::DoesNotFit | Fit::Doubtful if standing.ready && standing.changed => Admission::Keep,
        Fit::DoesNotFit if standing.ready => Admission::Run,
        Fit::Doubtful => Admission::Run,
        Fit::DoesNotFit => Admission::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serves_is_kept_and_what_cannot_load_is_not_started() {
        let check = |fit, (started, changed, ready), expected| {
            assert_eq!(
                admit(fit, Standing { started, changed, ready }),
                expected,
                "{fit:?} {started} {changed} {ready}"
            );
        };
        let (new, live, edited) = ((false, false, false), (true, false, true), (true, true, true));
        let broken = (true, false, false);
        for state in [new, live, edited, broken] {
            check(Fit::Fits, state, Admission::Run);
            check(Fit::Unknown, state, Admission::Run);
        }
        check(Fit::DoesNotFit, new, Admission::Stop);
        check(Fit::DoesNotFit, broken, Admission::Stop);
        check(Fit::DoesNotFit, live, Admission::Run);
        check(Fit::DoesNotFit, edited, Admission::Keep);
        check(Fit::Doubtful, edited, Admission::Keep);
        for state in [new, live, broken] {
            check(Fit::Doubtful, state, Admission::Run);
        }
        check(Fit::Reading(Duration::ZERO), new, Admission::Stop);
        check(Fit::Reading(HEADER_PATIENCE), new, Admission::Run);
        check(Fit::Reading(Duration::ZERO), live, Admission::Run);
        check(Fit::Reading(Duration::ZERO), broken, Admission::Run);
    }
}
