//! Which endpoints a request tries, in order: one pure function over tiers, health, mode, memory and time.
//!
//! The better tier serves. It is left at once when it is lost and taken back after it was healthy without a break
//! for `failbackAfter`, which doubles with every loss in quick succession, up to [`MAX_FACTOR`] times.
//! Two cases need no patience: no other tier is healthy, or this observer never saw the tier lost (after a restart
//! the preference must not depend on which probe came in first).
//! What the other observers do is known by a hint, the tier that the controller last recorded: an observer that starts
//! anew begins there (else with the best), with the patience for better tiers still to be had, and it follows a failback
//! that others made.
//! Without a hint everything works as well, only agreement takes longer.
//! Load among equals is not balanced here: endpoints of one tier come in the order in which they were given.

use std::collections::BTreeMap;

use super::{Health, Millis};

/// Longest lengthening of `failbackAfter`.
pub const MAX_FACTOR: Millis = 10;
/// How long an observer that starts anew waits for the first word of the tiers that it would rather have before another
/// one is active. Requests are served meanwhile.
const RESTORE_MS: Millis = 1_000;

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
    fn is_not_heard_of(&self) -> bool {
        !self.is_healthy() && self.endpoints.iter().any(|endpoint| endpoint.health == Health::Unknown)
    }

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
    /// Whether the hint named another tier since the loss: only then it is news when it names this one.
    others_left: bool,
}

impl TierMemory {
    fn observe(mut self, healthy: bool, now: Millis, failback_after: Millis) -> Self {
        match (healthy, self.healthy_since) {
            (true, None) => self.healthy_since = Some(now),
            (false, Some(_)) => {
                self.healthy_since = None;
                self.others_left = false;
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

    fn take_hint(mut self, names_this: Option<bool>) -> (Self, bool) {
        self.others_left |= names_this == Some(false);
        (self, self.others_left && names_this == Some(true))
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
    /// Until then no tier becomes active while a preferred one was not heard of.
    restoring_until: Option<Millis>,
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
    /// The tier that the others serve from, as far as somebody recorded it.
    pub hint: Option<&'a str>,
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
    let RouteInput { tiers, mode, failback_after_ms, hint, state, now } = input;
    let hinted = tiers.iter().position(|tier| Some(tier.name) == *hint);
    let starts_anew = state.tiers.is_empty();
    let (memories, others_returned): (Vec<TierMemory>, Vec<bool>) = tiers
        .iter()
        .enumerate()
        .map(|(index, tier)| {
            let mut memory = state.tiers.get(tier.name).copied().unwrap_or_default();
            if starts_anew && hinted.is_some_and(|hinted| index < hinted) {
                memory.last_lost = Some(*now);
            }
            memory
                .observe(tier.is_healthy(), *now, *failback_after_ms)
                .take_hint(hinted.map(|hinted| hinted == index))
        })
        .unzip();
    let allowed = |index: usize| match mode {
        Mode::Auto => true,
        Mode::Pinned(name) => tiers[index].name == *name,
    };
    let healthy: Vec<usize> = (0..tiers.len()).filter(|i| allowed(*i) && tiers[*i].is_healthy()).collect();
    let restoring_until = if starts_anew {
        Some(now.saturating_add(RESTORE_MS))
    } else {
        state.restoring_until.filter(|until| now < until && state.last_active.is_none())
    };
    let may_come = |tier: usize| allowed(tier) && tiers[tier].is_not_heard_of();
    let best = healthy.first().copied().unwrap_or(tiers.len());
    let awaits_better =
        restoring_until.is_some() && (hinted.is_some_and(may_come) || (0..best).any(may_come));
    let current = healthy.iter().copied().find(|i| Some(tiers[*i].name) == state.last_active.as_deref());
    let may_take_over =
        |tier: usize| others_returned[tier] || memories[tier].may_take_over(*now, *failback_after_ms);
    // An observer that starts anew stands where the others stand.
    let current = current.or(hinted.filter(|tier| restoring_until.is_some() && healthy.contains(tier)));
    let active = match current {
        None if awaits_better => None,
        None => healthy.first().copied(),
        Some(current) => healthy
            .iter()
            .copied()
            .find(|better| *better < current && may_take_over(*better))
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
        restoring_until: restoring_until.filter(|_| to.is_none()),
    };
    Decision { active, order, switch, state }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
