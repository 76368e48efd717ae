//! When a changed tier may roll: one at a time, last first, and only while the next one takes its traffic.
//!
//! It needs no marks of its own: what it decides follows from the Deployments as they are.

use atlas_crds::model::RolloutStrategy;

/// One tier's Deployment as it is, in the order of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierRollout {
    /// Name of the tier.
    pub name: String,
    /// Whether its pod template differs from the wanted one.
    pub changed: bool,
    /// Whether an earlier change is still on its way.
    pub rolling: bool,
    /// Whether one of its pods serves.
    pub ready: bool,
}

/// What a changed tier waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Another tier rolls.
    Rolls(String),
    /// The tier that would take the traffic is not ready.
    NotReady(String),
    /// A later tier has to change first.
    ChangesFirst(String),
    /// The change does not fit the tier's card.
    DoesNotFit,
    /// The same edit's change of another tier was taken back.
    TakenBack(String),
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rolls(tier) => write!(f, "waits for tier {tier}, which rolls"),
            Self::NotReady(tier) => write!(f, "waits for tier {tier} to be ready to take the traffic"),
            Self::ChangesFirst(tier) => write!(f, "waits for tier {tier}, which changes first"),
            Self::TakenBack(tier) => {
                write!(f, "waits, since the same edit failed on tier {tier}: edit the model to try again")
            }
            Self::DoesNotFit => f.write_str("goes on as it was, since the change does not fit its card"),
        }
    }
}

/// What happens to a tier's pod template now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutStep {
    /// The wanted template is applied.
    Apply,
    /// The live template stays.
    Hold(Wait),
}

/// Decides for every tier at once.
#[must_use]
pub fn plan_rollout(strategy: RolloutStrategy, tiers: &[TierRollout]) -> Vec<RolloutStep> {
    let mut steps = vec![RolloutStep::Apply; tiers.len()];
    if strategy == RolloutStrategy::Recreate {
        return steps;
    }
    // A tier that begins to roll in this very decision holds the ones before it.
    let mut begun: Option<&TierRollout> = None;
    let mut held: Option<&TierRollout> = None;
    for (index, tier) in tiers.iter().enumerate().rev() {
        if !tier.changed {
            continue;
        }
        // What serves nothing loses nothing.
        if !tier.ready {
            begun = Some(tier);
            continue;
        }
        let rolling = tiers.iter().find(|other| other.name != tier.name && other.rolling).or(begun);
        let next = tiers.get(index + 1);
        let wait = match (rolling, held, next) {
            (Some(other), _, _) => Some(Wait::Rolls(other.name.clone())),
            (None, Some(later), _) => Some(Wait::ChangesFirst(later.name.clone())),
            (None, None, Some(next)) if !next.ready => Some(Wait::NotReady(next.name.clone())),
            _ => None,
        };
        match wait {
            Some(wait) => {
                held = Some(tier);
                steps[index] = RolloutStep::Hold(wait);
            }
            None => begun = Some(tier),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `c` changed, `r` rolling, `+` ready; one word a tier. The answer: `go`, or what it waits for.
    fn decide(tiers: &str) -> Vec<String> {
        let tiers: Vec<TierRollout> = tiers
            .split(' ')
            .enumerate()
            .map(|(i, word)| TierRollout {
                name: format!("t{}", i + 1),
                changed: word.contains('c'),
                rolling: word.contains('r'),
                ready: word.contains('+'),
            })
            .collect();
        plan_rollout(RolloutStrategy::ShiftThenRecreate, &tiers)
            .into_iter()
            .map(|step| match step {
                RolloutStep::Apply => "go".to_owned(),
                RolloutStep::Hold(wait) => format!("{wait:?}"),
            })
            .collect()
    }

    #[test]
    fn one_tier_rolls_at_a_time_last_first_and_never_the_last_that_serves() {
        let check = |tiers: &str, expected: &[&str]| assert_eq!(decide(tiers), expected, "{tiers}");
        check("+ +", &["go", "go"]);
        check("c+", &["go"]);
        check("c+ +", &["go", "go"]);
        check("c+ c+", &["Rolls(\"t2\")", "go"]);
        check("c+ r", &["Rolls(\"t2\")", "go"]);
        check("c+ -", &["NotReady(\"t2\")", "go"]);
        check("c -", &["go", "go"]);
        check("c+ c+ -", &["ChangesFirst(\"t2\")", "NotReady(\"t3\")", "go"]);
        check("c+ c+ r+", &["Rolls(\"t3\")", "Rolls(\"t3\")", "go"]);
        check("cr c+", &["go", "Rolls(\"t1\")"]);
    }

    #[test]
    fn recreate_changes_every_tier_at_once() {
        let tier = TierRollout { name: "a".into(), changed: true, rolling: true, ready: true };
        assert_eq!(
            plan_rollout(RolloutStrategy::Recreate, &[tier.clone(), tier]),
            [RolloutStep::Apply, RolloutStep::Apply]
        );
    }
}
