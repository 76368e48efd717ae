//! Which tier may change, and which model gets a card.

mod cards;
mod rollout;

pub use cards::{CardClaim, allot_cards};
pub use rollout::{RolloutStep, TierRollout, Wait, plan_rollout};
