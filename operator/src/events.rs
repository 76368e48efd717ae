//! Kubernetes Events: one for each change of a condition, and one for each move between tiers.

use atlas_crds::{ModelCondition, status::AtlasModelStatus};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client,
    runtime::events::{Event, EventType},
};

use crate::{
    apply::HandEdit,
    error::{is_of_ending_namespace, tell},
    recorder::Recorder,
    status::{Move, MoveKind},
};

/// The name that Events are written under.
const CONTROLLER: &str = "atlas.gillsystems.com/operator";

/// Writes Events without keeping a reconcile waiting.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// A recorder under the pod's name.
    #[must_use]
    pub fn new(client: Client, pod_name: String) -> Self {
        Self { recorder: Recorder::new(client, CONTROLLER, pod_name) }
    }

    /// Publishes in the background: an Event that is lost changes nothing.
    pub fn publish_all(&self, reference: ObjectReference, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let recorder = self.recorder.clone();
        tokio::spawn(async move { publish(&recorder, &reference, events).await });
    }
}

async fn publish(recorder: &Recorder, reference: &ObjectReference, events: Vec<Event>) {
    for event in events {
        match recorder.publish(&event, reference).await {
            Ok(()) => {}
            // Nobody reads them there any more.
            Err(error) if is_of_ending_namespace(&error) => return,
            Err(error) => tracing::warn!(reason = event.reason, error = %tell(&error), "an Event was lost"),
        }
    }
}

/// The Events that tell what changed about a profile's nodes.
#[must_use]
pub fn build_profile_events(previous: &[Condition], now: &[Condition]) -> Vec<Event> {
    now.iter()
        .filter(|condition| {
            let before = previous.iter().find(|c| c.type_ == condition.type_);
            // A default profile whose card this cluster does not have is no news when it is created.
            let news = ["Ambiguous", "Inconsistent", "NotValidated", "NodesRefused", "CardFault"]
                .contains(&condition.reason.as_str());
            // Which nodes refuse, or whose cards fail, and why, is the news of these.
            let told_anew =
                ["NodesRefused", "CardFault", "FailedLately"].contains(&condition.reason.as_str());
            before.map_or(news, |before| {
                before.status != condition.status || (told_anew && before.message != condition.message)
            })
        })
        .map(|condition| {
            let bad = condition.status == "False";
            condition_event(condition, if bad { EventType::Warning } else { EventType::Normal })
        })
        .collect()
}

fn condition_event(condition: &Condition, type_: EventType) -> Event {
    Event {
        type_,
        reason: condition.reason.clone(),
        note: Some(clip(&format!("{}={}: {}", condition.type_, condition.status, condition.message))),
        action: format!("{}Changed", condition.type_),
        secondary: None,
    }
}

/// The Events that tell the difference between two statuses.
#[must_use]
pub fn build_events(previous: &AtlasModelStatus, now: &AtlasModelStatus, moves: &[Move]) -> Vec<Event> {
    let mut events: Vec<Event> = now
        .conditions
        .iter()
        // Available says what Ready says.
        .filter(|c| c.type_ != ModelCondition::Available.as_str())
        .filter_map(|condition| {
            let before = previous.conditions.iter().find(|c| c.type_ == condition.type_);
            let bad = is_bad(&condition.type_, &condition.status, &condition.reason);
            let changed = match before {
                Some(before) => before.status != condition.status || before.reason != condition.reason,
                // A new object tells what is wrong with it, not what is not known yet.
                None => bad && condition.reason != "NoTierServes",
            };
            changed
                .then(|| condition_event(condition, if bad { EventType::Warning } else { EventType::Normal }))
        })
        .collect();
    events.extend(moves.iter().map(|m| Event {
        type_: match m.kind {
            MoveKind::FailedOver => EventType::Warning,
            MoveKind::FailedBack | MoveKind::Pinned => EventType::Normal,
        },
        reason: match m.kind {
            MoveKind::FailedOver => "FailedOver".into(),
            MoveKind::FailedBack => "FailedBack".into(),
            MoveKind::Pinned => "Pinned".into(),
        },
        note: Some(match m.kind {
            MoveKind::FailedOver => {
                format!("from tier {} to {} after {} ms: {}", m.from, m.to, m.millis, m.cause)
            }
            MoveKind::FailedBack => format!(
                "from tier {} to {}, which was healthy for {} s without a break",
                m.from,
                m.to,
                m.millis / 1_000
            ),
            MoveKind::Pinned => {
                format!("from tier {} to {}: failover.pinnedTier names it", m.from, m.to)
            }
        }),
        action: "Switch".into(),
        secondary: None,
    }));
    events
}

/// The Event that tells of a generated file which was changed by hand and put back.
#[must_use]
pub fn build_edit_event(edit: &HandEdit) -> Event {
    let note = format!(
        "ConfigMap {}: {} changed by hand and put back: the file is generated, change spec of the AtlasModel instead (spec.tiers[].maxBatch for max_batch_size)",
        edit.name,
        edit.fields.join(", "),
    );
    Event {
        type_: EventType::Warning,
        reason: "HandEditReverted".into(),
        note: Some(clip(&note)),
        action: "PutBack".into(),
        secondary: None,
    }
}

/// The Event that tells of a status which somebody else changed.
#[must_use]
pub fn build_status_event() -> Event {
    Event {
        type_: EventType::Warning,
        reason: "HandEditReverted".into(),
        note: Some(
            "the status was changed by somebody else and put back: it tells what is, change spec instead"
                .into(),
        ),
        action: "PutBack".into(),
        secondary: None,
    }
}

/// The Event that tells what keeps a deleted model, where that is not Kubernetes itself.
#[must_use]
pub fn build_deletion_event(finalizers: &[String]) -> Option<Event> {
    let foreign: Vec<&str> = finalizers
        .iter()
        .map(String::as_str)
        .filter(|name| !["foregroundDeletion", "orphan"].contains(name))
        .collect();
    (!foreign.is_empty()).then(|| Event {
        type_: EventType::Warning,
        reason: "DeletionWaits".into(),
        note: Some(clip(&format!(
            "it is deleted, and stays with its engines and their cards until its finalizers are gone: {}: ask whoever set them, or take them out of metadata.finalizers",
            foreign.join(", ")
        ))),
        action: "Delete".into(),
        secondary: None,
    })
}

fn is_bad(type_: &str, status: &str, reason: &str) -> bool {
    let type_is = |condition: ModelCondition| type_ == condition.as_str();
    if type_is(ModelCondition::Degraded) {
        return status == "True";
    }
    let harmless = ["Settled", "Downloading", "Suspended"];
    status == "False" && !harmless.contains(&reason)
}

/// The API server refuses notes of more than 1024 bytes.
fn clip(note: &str) -> String {
    let mut end = note.len().min(1000);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_that_others_keep_up_is_told_by_their_finalizers() {
        let note = |finalizers: &[&str]| {
            let finalizers: Vec<String> = finalizers.iter().map(ToString::to_string).collect();
            build_deletion_event(&finalizers)?.note
        };
        assert_eq!(note(&[]), None);
        assert_eq!(note(&["foregroundDeletion"]), None);
        let told = note(&["foregroundDeletion", "example.com/backup"]).unwrap();
        assert!(told.contains("are gone: example.com/backup: ask"), "{told}");
    }
}
