//! Which tier may change, and which model gets a card.

mod admission;
mod cards;
mod revision;
mod rollout;
mod standby;

pub use admission::{Admission, Fit, HEADER_PATIENCE, Standing, admit};
pub use cards::{CardClaim, allot_cards};
pub use revision::{
    Failure, MAX_RESTARTS, NOT_STARTED_PATIENCE, PodTrouble, RevisionChoice, RevisionState, Revisions,
    choose_revision, judge_revision,
};
pub use rollout::{RolloutStep, TierRollout, Wait, plan_rollout};
pub use standby::{Before, Traffic, wants_standby};
