//! Whether a tier that is not kept hot runs now.
//!
//! It runs while nothing before it serves, and while a tier before it is being changed, since its traffic needs a
//! place. The gateways' word counts most: a node's loss shows in Kubernetes most of a minute late.

/// What is known about the tiers before a standby tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Before {
    /// A pod of one of them is ready.
    pub ready: bool,
    /// One of them that has served is being changed, or is about to be.
    pub changes: bool,
    /// One of them has never served, and nothing speaks against its first start.
    pub starts: bool,
}

/// Where the gateways send requests, seen from a standby tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// No gateway says.
    Untold,
    /// Nowhere: nothing serves.
    Nowhere,
    /// To a tier before this one.
    Before,
    /// To this tier or a later one.
    Here,
}

/// Decides whether a standby tier runs; `runs` says that it does already.
#[must_use]
pub fn wants_standby(before: Before, traffic: Traffic, runs: bool) -> bool {
    if before.changes {
        return true;
    }
    match traffic {
        Traffic::Before => false,
        Traffic::Here => true,
        Traffic::Nowhere => runs || !before.starts,
        // Without the gateways' word nothing that runs is taken away.
        Traffic::Untold => runs || !(before.ready || before.starts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_tier_runs_while_nothing_before_it_serves() {
        let check = |ready: bool, changes: bool, starts: bool, traffic, runs, expected| {
            let before = Before { ready, changes, starts };
            assert_eq!(wants_standby(before, traffic, runs), expected, "{before:?} {traffic:?} {runs}");
        };
        let (no, yes) = (false, true);
        // A first start is waited for.
        check(no, no, yes, Traffic::Untold, no, no);
        check(no, no, yes, Traffic::Nowhere, no, no);
        check(yes, no, no, Traffic::Before, no, no);
        // The tier before it is lost: first the gateways say so, or its pod is not ready.
        check(yes, no, no, Traffic::Nowhere, no, yes);
        check(no, no, no, Traffic::Untold, no, yes);
        check(no, no, no, Traffic::Here, yes, yes);
        // It is back: traffic first, then the pod goes.
        check(yes, no, no, Traffic::Here, yes, yes);
        check(yes, no, no, Traffic::Before, yes, no);
        check(yes, no, no, Traffic::Untold, yes, yes);
        // A change of a tier before it needs a place for the traffic, from before the change until after it.
        check(yes, yes, no, Traffic::Before, no, yes);
        check(no, yes, no, Traffic::Here, yes, yes);
    }
}
