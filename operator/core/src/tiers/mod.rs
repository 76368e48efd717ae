//! Which tier may change, and which model gets a card.

mod admission;
mod cards;
mod rollout;

pub use admission::{Admission, Fit, HEADER_PATIENCE, Standing, admit};
pub use cards::{CardClaim, allot_cards};
pub use rollout::{RolloutStep, TierRollout, Wait, plan_rollout};
