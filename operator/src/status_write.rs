//! Writes a status so that it is what was computed, whole: also where somebody else has changed or added something.
//!
//! Server-side apply takes back what it owns and leaves what others added, so that is removed by a patch of its own.

use std::fmt::Debug;

use atlas_crds::names;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Writes the status of one object of ours; answers with the object as it is then.
///
/// # Errors
///
/// The API server refused the write, or did not answer.
pub async fn write_status<K, S>(
    api: &Api<K>,
    object: &K,
    status: &S,
    shown: impl Fn(&K) -> Option<&S>,
) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize + PartialEq,
{
    let name = object.name_any();
    let body = json!({
        "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
        "kind": K::kind(&()),
        // One that was made anew under the name is another object.
        "metadata": {"name": name, "uid": object.uid()},
        "status": status,
    });
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    let written = api.patch_status(&name, &params, &Patch::Apply(body)).await?;
    if shown(&written) == Some(status) {
        return Ok(written);
    }
    // Statuses are plain data and always have a form; nothing is taken out of one without.
    let wanted = serde_json::to_value(status).unwrap_or_default();
    let found = shown(&written).and_then(|status| serde_json::to_value(status).ok()).unwrap_or_default();
    let mut extra = Vec::new();
    find_extra(&found, &wanted, "/status", &mut extra);
    if extra.is_empty() {
        return Ok(written);
    }
    tracing::warn!(name, extra = extra.join(" "), "somebody else added to the status: taking it out");
    // What is removed has to be what was seen.
    let mut steps =
        vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": written.resource_version()})];
    steps.extend(extra.iter().map(|path| json!({"op": "remove", "path": path})));
    // These steps are of JSON patch's form; if they were not, what was applied would stand all the same.
    let Ok(patch) = serde_json::from_value(Value::Array(steps)) else { return Ok(written) };
    match api.patch_status(&name, &PatchParams::default(), &Patch::<Value>::Json(patch)).await {
        Ok(mended) => Ok(mended),
        // Somebody was faster: the event of that asks for another look.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 409 | 422) => Ok(written),
        Err(error) => Err(error),
    }
}

/// Paths of what `found` has beyond `wanted`, the later elements of a list before the earlier ones.
fn find_extra(found: &Value, wanted: &Value, path: &str, extra: &mut Vec<String>) {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            for (key, value) in found {
                let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
                match wanted.get(key) {
                    Some(wanted) => find_extra(value, wanted, &path, extra),
                    None => extra.push(path),
                }
            }
        }
        (Value::Array(found), Value::Array(wanted)) => {
            // Lists of objects are maps by one of these; others are replaced as a whole and have nothing beyond.
            let key = |item: &Value| ["type", "name"].into_iter().find_map(|key| item.get(key).cloned());
            for (index, item) in found.iter().enumerate().rev() {
                let Some(of_item) = key(item) else { continue };
                let path = format!("{path}/{index}");
                match wanted.iter().find(|wanted| key(wanted).as_ref() == Some(&of_item)) {
                    Some(wanted) => find_extra(item, wanted, &path, extra),
                    None => extra.push(path),
                }
            }
        }
        _ => {}
    }
}

/// What this process made of an object's status last.
#[derive(Debug, Clone)]
pub struct Kept<S> {
    /// As it was computed.
    pub status: S,
    /// Version of the object with it; none while that is not known.
    version: Option<u64>,
    /// As the API server showed it in that version.
    shown: Option<S>,
}

/// What there is to do about a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: what was written last stands.
    Nothing,
    /// To keep it: the object shows it already.
    Keep,
    /// To write it; `edited` says that somebody else has changed it.
    Write {
        /// Somebody else has changed it.
        edited: bool,
    },
}

impl<S: Clone + PartialEq> Kept<S> {
    /// What an object shows now.
    pub fn of(status: S, object: &impl ResourceExt, shown: Option<&S>) -> Self {
        Self { status, version: version_of(object), shown: shown.cloned() }
    }

    /// What there is to do so that `object`, which shows the status `shown`, has `status`; `kept` is of the last time.
    #[must_use]
    pub fn need(kept: Option<&Self>, status: &S, object: &impl ResourceExt, shown: Option<&S>) -> Need {
        let stands = shown == Some(status);
        let Some(kept) = kept else {
            return if stands { Need::Keep } else { Need::Write { edited: false } };
        };
        // The answer to the last write was lost: it may have taken place, and the object may be seen from before it.
        let Some(then) = kept.version else { return Need::Write { edited: false } };
        let now = version_of(object);
        let same = kept.status == *status;
        // One that is seen late shows an earlier status.
        if now.is_some_and(|now| now < then) {
            return if same { Need::Nothing } else { Need::Write { edited: false } };
        }
        if stands {
            return Need::Keep;
        }
        let edited = now.is_some_and(|now| now > then) && shown != kept.shown.as_ref();
        if same && !edited { Need::Nothing } else { Need::Write { edited } }
    }

    /// Forgets which version it was: a write is under way, and its answer may be lost.
    pub fn forget_version(&mut self) {
        self.version = None;
    }
}

/// Versions are numbers that grow.
fn version_of(object: &impl ResourceExt) -> Option<u64> {
    object.meta().resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: Value, wanted: Value, expected: &[&str]) {
        let mut extra = Vec::new();
        find_extra(&found, &wanted, "/status", &mut extra);
        assert_eq!(extra, expected, "{found} {wanted}");
    }

    #[test]
    fn a_status_is_written_where_it_is_not_known_to_stand() {
        const WRITE: Need = Need::Write { edited: false };
        const EDITED: Need = Need::Write { edited: true };
        let object = |version: &str| {
            let text = format!(r#"{{"metadata": {{"name": "m", "resourceVersion": "{version}"}}}}"#);
            serde_json::from_str::<kube::api::PartialObjectMeta<atlas_crds::AtlasModel>>(&text).unwrap()
        };
        let kept = Kept::of("new", &object("10"), Some(&"new"));
        let mut lost = kept.clone();
        lost.forget_version();
        // What somebody added stays where it cannot be taken out.
        let more = Kept::of("new", &object("10"), Some(&"more"));
        let table = [
            // Nothing was written yet.
            (None, "new", "10", None, WRITE),
            (None, "new", "10", Some("old"), WRITE),
            (None, "new", "10", Some("new"), Need::Keep),
            // Seen late.
            (Some(&kept), "new", "9", Some("old"), Need::Nothing),
            (Some(&kept), "old", "9", Some("old"), WRITE),
            (Some(&kept), "newer", "9", None, WRITE),
            // As it was written.
            (Some(&kept), "new", "10", Some("new"), Need::Keep),
            (Some(&kept), "newer", "10", Some("new"), WRITE),
            // After a change of the specification alone.
            (Some(&kept), "new", "11", Some("new"), Need::Keep),
            (Some(&kept), "newer", "11", Some("new"), WRITE),
            // After a change of the status.
            (Some(&kept), "new", "11", Some("other"), EDITED),
            (Some(&kept), "new", "11", None, EDITED),
            (Some(&kept), "newer", "11", Some("other"), EDITED),
            (Some(&kept), "other", "11", Some("other"), Need::Keep),
            (Some(&more), "new", "10", Some("more"), Need::Nothing),
            (Some(&more), "new", "11", Some("more"), Need::Nothing),
            (Some(&more), "new", "11", Some("most"), EDITED),
            // Whatever the object shows may be from before the write whose answer was lost.
            (Some(&lost), "new", "10", Some("new"), WRITE),
            (Some(&lost), "new", "11", Some("other"), WRITE),
            (Some(&lost), "other", "11", Some("other"), WRITE),
        ];
        for (kept, status, version, shown, expected) in table {
            let need = Kept::need(kept, &status, &object(version), shown.as_ref());
            assert_eq!(need, expected, "{kept:?} {status} {version} {shown:?}");
        }
    }

    #[test]
    fn what_somebody_added_is_found_and_nothing_else() {
        let wanted =
            json!({"a": 1, "conditions": [{"type": "Ready", "message": "m"}], "tiers": [{"name": "x"}]});
        check(wanted.clone(), wanted.clone(), &[]);
        check(json!({"a": 2}), wanted.clone(), &[]);
        check(json!({"a/b": 2, "a": 1}), wanted.clone(), &["/status/a~1b"]);
        check(
            json!({"conditions": [{"type": "A"}, {"type": "Ready", "message": "m", "more": 1}, {"type": "B"}],
                "tiers": [{"name": "x", "node": "n"}, {"name": "y"}]}),
            wanted,
            &[
                "/status/conditions/2",
                "/status/conditions/1/more",
                "/status/conditions/0",
                "/status/tiers/1",
                "/status/tiers/0/node",
            ],
        );
        check(json!({"nodes": ["a", "b"]}), json!({"nodes": ["a"]}), &[]);
    }
}
