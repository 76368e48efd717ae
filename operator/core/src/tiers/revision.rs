//! Whether a tier's revision proved good, is still on its way, or has to be taken back.
//!
//! A revision is a pod template, known by its hash. What is good stays until something newer is good: there is always
//! a way back, and it is gone back once, never to and fro.

use std::time::Duration;

use crate::engine_contract::EngineExit;

/// Ends of an engine after which a change is taken back, where another try might have helped.
pub const MAX_RESTARTS: i32 = 3;
/// How long a container may fail to start: an image that is being pushed this very minute is waited for.
pub const NOT_STARTED_PATIENCE: Duration = Duration::from_secs(120);

/// What is wrong with one pod of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodTrouble {
    /// Its engine ended.
    Ended {
        /// What the exit code means.
        exit: EngineExit,
        /// The last line of its error.
        message: String,
        /// How often it was started again.
        restarts: i32,
    },
    /// Its container does not start.
    NotStarted {
        /// Why, for example `ImagePullBackOff: ...`.
        reason: String,
        /// Since the pod was made.
        age: Duration,
    },
}

/// How a revision stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevisionState {
    /// Every pod of it is ready.
    Good,
    /// It may still become ready, or nobody asks it to.
    Underway,
    /// It does not become ready: why.
    Failed(String),
}

/// Judges a revision by its pods.
///
/// `complete` says that every wanted pod is of this revision and ready, `overdue` that the Deployment gave it up.
#[must_use]
pub fn judge_revision(complete: bool, overdue: bool, troubles: &[PodTrouble]) -> RevisionState {
    if complete {
        return RevisionState::Good;
    }
    if let Some(why) = troubles.iter().find_map(fatal) {
        return RevisionState::Failed(why);
    }
    if overdue {
        return RevisionState::Failed("it was not ready within rollout.readyTimeout".to_owned());
    }
    RevisionState::Underway
}

fn fatal(trouble: &PodTrouble) -> Option<String> {
    match trouble {
        PodTrouble::Ended { exit, message, restarts } => {
            let hopeless = match exit {
                EngineExit::Usage
                | EngineExit::ModelInvalid
                | EngineExit::ChecksumMismatch
                | EngineExit::DoesNotFit
                | EngineExit::NoRuntime => true,
                // The card and the node are at fault, not the change.
                EngineExit::WrongCard | EngineExit::Lost => false,
                EngineExit::Internal
                | EngineExit::ModelUnavailable
                | EngineExit::PortInUse
                | EngineExit::NoPermission
                | EngineExit::Hang
                | EngineExit::OutOfMemory => *restarts >= MAX_RESTARTS,
            };
            let said = if message.is_empty() { "the engine left no message" } else { message };
            hopeless.then(|| format!("{said} (exit code {}, {})", exit.code(), exit.reason()))
        }
        PodTrouble::NotStarted { reason, age } => (*age >= NOT_STARTED_PATIENCE).then(|| reason.clone()),
    }
}

/// A revision that was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Hash of its template.
    pub hash: String,
    /// Generation of the model that asked for it.
    pub generation: i64,
    /// Why it was taken back.
    pub reason: String,
}

/// Which template a tier gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevisionChoice {
    /// The wanted one.
    Wanted,
    /// The last good one, since the wanted one failed.
    LastGood(Failure),
}

/// What is known of a tier's revisions; hashes of templates.
#[derive(Debug, Clone, Copy)]
pub struct Revisions<'a> {
    /// What the specification asks for.
    pub wanted: &'a str,
    /// What the Deployment has.
    pub live: &'a str,
    /// What was good last.
    pub good: Option<&'a str>,
    /// What was taken back last.
    pub failed: Option<&'a Failure>,
    /// How the live one stands.
    pub state: &'a RevisionState,
    /// Generation of the model.
    pub generation: i64,
}

/// Chooses a tier's template. A failed one is not tried again until something else is asked for.
#[must_use]
pub fn choose_revision(revisions: &Revisions<'_>) -> RevisionChoice {
    let Revisions { wanted, live, good, failed, state, generation } = *revisions;
    let Some(good) = good else { return RevisionChoice::Wanted };
    if good == wanted {
        return RevisionChoice::Wanted;
    }
    if let Some(failure) = failed.filter(|failure| failure.hash == wanted) {
        return RevisionChoice::LastGood(failure.clone());
    }
    match state {
        RevisionState::Failed(reason) if live == wanted => {
            RevisionChoice::LastGood(Failure { hash: wanted.to_owned(), generation, reason: reason.clone() })
        }
        _ => RevisionChoice::Wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_fails_by_what_another_try_does_not_mend() {
        let ended = |exit, restarts| PodTrouble::Ended { exit, message: "m".into(), restarts };
        let waits = |seconds| PodTrouble::NotStarted {
            reason: "ImagePullBackOff: no such tag".into(),
            age: Duration::from_secs(seconds),
        };
        let check = |complete, overdue, troubles: &[PodTrouble], expected: Option<&str>| {
            let state = judge_revision(complete, overdue, troubles);
            let expected = match expected {
                None => RevisionState::Underway,
                Some("good") => RevisionState::Good,
                Some(reason) => RevisionState::Failed(reason.to_owned()),
            };
            assert_eq!(state, expected, "{troubles:?}");
        };
        check(true, false, &[], Some("good"));
        check(false, false, &[], None);
        check(false, true, &[], Some("it was not ready within rollout.readyTimeout"));
        check(
            false,
            false,
            &[ended(EngineExit::ChecksumMismatch, 0)],
            Some("m (exit code 12, ChecksumMismatch)"),
        );
        check(false, false, &[ended(EngineExit::Internal, 2)], None);
        check(false, false, &[ended(EngineExit::Internal, 3)], Some("m (exit code 1, EngineFailed)"));
        check(false, false, &[ended(EngineExit::WrongCard, 9)], None);
        check(false, false, &[waits(5)], None);
        check(false, false, &[waits(5), waits(120)], Some("ImagePullBackOff: no such tag"));
        for exit in EngineExit::ALL {
            check(true, true, &[ended(exit, 9)], Some("good"));
        }
    }

    #[test]
    fn a_failed_change_is_taken_back_once_and_stays_back_until_another_is_asked_for() {
        let failed = |hash: &str| Failure { hash: hash.into(), generation: 7, reason: "why".into() };
        let check =
            |wanted, live, good, before: Option<&str>, state: &RevisionState, expected: Option<&str>| {
                let before = before.map(failed);
                let choice = choose_revision(&Revisions {
                    wanted,
                    live,
                    good,
                    failed: before.as_ref(),
                    state,
                    generation: 9,
                });
                let back = match &choice {
                    RevisionChoice::Wanted => None,
                    RevisionChoice::LastGood(failure) => Some(failure.hash.as_str()),
                };
                assert_eq!(back, expected, "{wanted} {live} {good:?} {before:?} {state:?}");
            };
        let (on, ok, bad) =
            (RevisionState::Underway, RevisionState::Good, RevisionState::Failed("why".into()));
        // A first start has nothing to go back to.
        check("b", "b", None, None, &bad, None);
        check("b", "a", Some("a"), None, &ok, None);
        check("b", "b", Some("a"), None, &on, None);
        check("b", "b", Some("a"), None, &bad, Some("b"));
        // It stays back, whatever the good one does meanwhile.
        for state in [&on, &ok, &bad] {
            check("b", "a", Some("a"), Some("b"), state, Some("b"));
        }
        // Another change is tried, and so is the way back by hand.
        check("c", "a", Some("a"), Some("b"), &ok, None);
        check("a", "a", Some("a"), Some("b"), &ok, None);
        check("c", "b", Some("a"), None, &bad, None);
        // What was good once and fails now is no change.
        check("a", "a", Some("a"), None, &bad, None);
    }
}
