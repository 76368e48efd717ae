//! Names of objects by the model that they belong to, so that a reconcile looks at its own and no others.
//!
//! It follows its watch event by event: making it anew after each change would cost every reconcile all objects.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{PoisonError, RwLock},
};

use atlas_crds::names;
use kube::{Resource, ResourceExt, runtime::watcher::Event};

use super::label;

/// Names by namespace and model.
type Names = HashMap<String, HashMap<String, BTreeSet<String>>>;

/// The names of the objects of one watch.
#[derive(Debug, Default)]
pub struct ByModel(RwLock<Names>);

impl ByModel {
    /// The names of a model's objects, in order.
    #[must_use]
    pub fn names(&self, namespace: &str, model: &str) -> Vec<String> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let names = all.get(namespace).and_then(|models| models.get(model));
        names.into_iter().flatten().cloned().collect()
    }

    /// Takes an event over; `listed` holds a list that is not complete yet.
    ///
    /// An object whose label changes stays under the old one too: whoever reads looks at the label again.
    pub fn follow<K: Resource>(&self, event: &Event<K>, listed: &mut Listed) {
        let change = |change: &dyn Fn(&mut Names)| {
            change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
        };
        match event {
            Event::Init => listed.0.clear(),
            Event::InitApply(object) => put(&mut listed.0, object),
            Event::InitDone => {
                let complete = std::mem::take(&mut listed.0);
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = complete;
            }
            Event::Apply(object) => change(&|names| put(names, object)),
            Event::Delete(object) => change(&|names| remove(names, object)),
        }
    }
}

/// A list that is not complete yet.
#[derive(Debug, Default)]
pub struct Listed(Names);

fn put(names: &mut Names, object: &impl ResourceExt) {
    let (Some(model), Some(namespace)) =
        (label(object, names::LABEL_MODEL), object.meta().namespace.as_deref())
    else {
        return;
    };
    let of_model = names.entry(namespace.to_owned()).or_default().entry(model.to_owned()).or_default();
    of_model.insert(object.name_any());
}

fn remove(names: &mut Names, object: &impl ResourceExt) {
    let Some(models) = object.meta().namespace.as_ref().and_then(|namespace| names.get_mut(namespace)) else {
        return;
    };
    let name = object.name_any();
    // Whatever its label says now: it may have been another one before.
    models.retain(|_, of_model| {
        of_model.remove(&name);
        !of_model.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn names_follow_the_events_of_their_watch() {
        let pod = |namespace: &str, name: &str, model: Option<&str>| -> Pod {
            let labels = model.map(|model| json!({names::LABEL_MODEL: model}));
            let metadata = json!({"namespace": namespace, "name": name, "labels": labels});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let (index, mut listed) = (ByModel::default(), Listed::default());
        let check = |namespace: &str, model: &str, expected: &[&str]| {
            assert_eq!(index.names(namespace, model), expected, "{namespace}/{model}");
        };
        let mut follow = |event: Event<Pod>| index.follow(&event, &mut listed);
        for event in [
            Event::Init,
            Event::InitApply(pod("a", "2", Some("m"))),
            Event::InitApply(pod("a", "1", Some("m"))),
            Event::InitApply(pod("b", "3", Some("m"))),
            Event::InitApply(pod("a", "4", None)),
        ] {
            follow(event);
            check("a", "m", &[]);
        }
        follow(Event::InitDone);
        check("a", "m", &["1", "2"]);
        check("b", "m", &["3"]);
        check("c", "m", &[]);
        follow(Event::Apply(pod("a", "5", Some("n"))));
        follow(Event::Delete(pod("a", "1", Some("m"))));
        follow(Event::Delete(pod("a", "2", None)));
        check("a", "m", &[]);
        check("a", "n", &["5"]);
        // Another list replaces everything once it is complete.
        follow(Event::Init);
        check("a", "n", &["5"]);
        follow(Event::InitDone);
        check("a", "n", &[]);
    }
}
