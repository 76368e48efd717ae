//! Writes Events so that each says what it says: what is told again word by word is counted, what has other words is an
//! Event of its own.
//!
//! The API server lets nobody change an Event's words, so one that stood for several would go on telling the first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event as Stored, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;

/// What is told again after this long is an Event of its own: the API server is about to forget the first.
const SAME_SERIES: SignedDuration = SignedDuration::from_mins(6);
/// Where Events of objects without a namespace go.
const CLUSTER_NAMESPACE: &str = "default";

/// What tells Events apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    warning: bool,
    reason: String,
    action: String,
    note: Option<String>,
    about: String,
}

/// An Event that was written.
#[derive(Debug, Clone)]
struct Told {
    name: String,
    count: i32,
    last: Timestamp,
}

/// What there is to write.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Create(Box<Stored>),
    Count { name: String, count: i32 },
}

/// A writer of Events; its clones count together.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    controller: &'static str,
    instance: String,
    told: Arc<Mutex<HashMap<Key, Told>>>,
}

impl Recorder {
    /// A recorder that writes under these names.
    #[must_use]
    pub fn new(client: Client, controller: &'static str, instance: String) -> Self {
        Self { client, controller, instance, told: Arc::default() }
    }

    /// Writes one Event about an object.
    ///
    /// # Errors
    ///
    /// The API server refused it, or did not answer.
    pub async fn publish(&self, event: &Event, about: &ObjectReference) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let namespace = about.namespace.as_deref().unwrap_or(CLUSTER_NAMESPACE);
        let api: Api<Stored> = Api::namespaced(self.client.clone(), namespace);
        let key = Key::of(event, about);
        let step = self.next(&key, event, about, now);
        if let Step::Count { name, count } = &step {
            let series = EventSeries { count: *count, last_observed_time: MicroTime(now) };
            let patch = Patch::Merge(json!({"series": series}));
            match api.patch(name, &PatchParams::default(), &patch).await {
                // Somebody has deleted it: it is told anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    self.keep(key, name.clone(), *count, now);
                    return Ok(());
                }
            }
        }
        let stored = match step {
            Step::Create(stored) => *stored,
            Step::Count { .. } => self.build(event, about, now),
        };
        let created = api.create(&PostParams::default(), &stored).await?;
        self.keep(key, created.name_any(), 1, now);
        Ok(())
    }

    fn next(&self, key: &Key, event: &Event, about: &ObjectReference, now: Timestamp) -> Step {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, told| now.duration_since(told.last) < SAME_SERIES);
        match told.get(key) {
            Some(told) => Step::Count { name: told.name.clone(), count: told.count.saturating_add(1) },
            None => Step::Create(Box::new(self.build(event, about, now))),
        }
    }

    /// Remembers what was written.
    fn keep(&self, key: Key, name: String, count: i32, last: Timestamp) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Told { name, count, last });
    }

    fn build(&self, event: &Event, about: &ObjectReference, now: Timestamp) -> Stored {
        Stored {
            metadata: ObjectMeta {
                namespace: Some(about.namespace.as_deref().unwrap_or(CLUSTER_NAMESPACE).to_owned()),
                name: Some(format!(
                    "{}.{:x}",
                    about.name.as_deref().unwrap_or(self.controller),
                    now.as_nanosecond()
                )),
                ..ObjectMeta::default()
            },
            action: Some(event.action.clone()),
            reason: Some(event.reason.clone()),
            note: event.note.clone(),
            type_: Some(if is_warning(event) { "Warning" } else { "Normal" }.to_owned()),
            event_time: Some(MicroTime(now)),
            regarding: Some(about.clone()),
            related: event.secondary.clone(),
            reporting_controller: Some(self.controller.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Stored::default()
        }
    }
}

impl Key {
    fn of(event: &Event, about: &ObjectReference) -> Self {
        // Objects of the cluster have no namespace.
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        Self {
            warning: is_warning(event),
            reason: event.reason.clone(),
            action: event.action.clone(),
            note: event.note.clone(),
            about: [&about.kind, &about.namespace, &about.name, &about.uid].map(part).join("/"),
        }
    }
}

const fn is_warning(event: &Event) -> bool {
    matches!(event.type_, EventType::Warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(note: &str) -> Event {
        Event {
            type_: EventType::Warning,
            reason: "FailedOver".into(),
            note: Some(note.into()),
            action: "Switch".into(),
            secondary: None,
        }
    }

    #[tokio::test]
    async fn the_same_words_are_counted_and_other_words_are_another_event() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let recorder = Recorder::new(Client::try_from(config).unwrap(), "c", "pod".into());
        let about = |name: &str| ObjectReference { name: Some(name.into()), ..ObjectReference::default() };
        let start = Timestamp::UNIX_EPOCH;
        let tell = |note: &str, name: &str, seconds: i64| {
            let now = start + SignedDuration::from_secs(seconds);
            let (event, about) = (event(note), about(name));
            let key = Key::of(&event, &about);
            let step = recorder.next(&key, &event, &about, now);
            let (name, count) = match &step {
                Step::Create(stored) => {
                    assert_eq!(stored.note.as_deref(), Some(note));
                    (stored.metadata.name.clone().unwrap(), 1)
                }
                Step::Count { name, count } => (name.clone(), *count),
            };
            recorder.keep(key, name.clone(), count, now);
            (name, count)
        };
        let (silent, count) = tell("from a to b: Silent", "m", 0);
        assert_eq!(count, 1);
        assert_eq!(tell("from a to b: Silent", "m", 10), (silent.clone(), 2));
        let (gone, count) = tell("from a to b: Gone", "m", 20);
        assert!(gone != silent && count == 1, "{gone} {count}");
        assert_eq!(tell("from a to b: Silent", "other", 30).1, 1);
        assert_eq!(tell("from a to b: Silent", "m", 40), (silent.clone(), 3));
        assert_ne!(tell("from a to b: Silent", "m", 40 + SAME_SERIES.as_secs()), (silent, 4));
        assert!(recorder.told.lock().unwrap().len() < 3, "what is past is forgotten");
    }
}
