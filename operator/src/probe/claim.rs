//! One silent gateway of a namespace at a time is given up, by one controller: it says so first, on the gateways' Deployment.
//!
//! Two controllers that a cut keeps apart may each hear another gateway, and each would take away the one that the other
//! hears. Of two writes to one version the API server lets the first one through, and who comes later sees whom it gave up.

use std::time::Duration;

use atlas_crds::names;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

/// Uid of the gateway that was given up last, and when.
const ANNOTATION: &str = "atlas.gillsystems.com/gave-up";
/// A deletion has happened by then, or it failed; clocks of two nodes may differ by less.
const HOLDS: Duration = Duration::from_secs(5);

/// The Deployment of a namespace's gateways, as far as it tells who is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    version: String,
    said: Option<String>,
    gave_up: Option<String>,
}

impl Claim {
    /// Reads it; none where there is no Deployment, and pods are somebody else's.
    ///
    /// # Errors
    ///
    /// The API server did not say.
    pub async fn read(client: &Client, namespace: &str) -> Result<Option<Self>, kube::Error> {
        let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let found = api.get_metadata_opt(names::GATEWAY_NAME).await?;
        Ok(found.and_then(|object| Self::of(&object, Timestamp::now())))
    }

    fn of(object: &impl ResourceExt, now: Timestamp) -> Option<Self> {
        let said = object.annotations().get(ANNOTATION).cloned();
        let gave_up = said.as_ref().and_then(|said| {
            let (uid, at) = said.split_once(' ')?;
            let passed = now.duration_since(at.parse().ok()?);
            (passed.unsigned_abs() < HOLDS).then(|| uid.to_owned())
        });
        Some(Self { version: object.resource_version()?, said, gave_up })
    }

    /// Whether a gateway stays while another one is deleted.
    #[must_use]
    pub fn leaves(&self, uid: &str) -> bool {
        self.gave_up.as_deref() != Some(uid)
    }

    /// Gives a gateway up; whether nobody gave one up since this was read.
    ///
    /// What others write to the Deployment meanwhile, as Kubernetes does whenever a gateway comes or goes, is no answer, and
    /// is asked again with the version that it left.
    ///
    /// # Errors
    ///
    /// The API server refused or did not answer.
    pub async fn take(&self, client: &Client, namespace: &str, uid: &str) -> Result<bool, kube::Error> {
        let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let mut latest = self.clone();
        loop {
            let patch = Patch::Merge(latest.written(uid, Timestamp::now()));
            match api.patch_metadata(names::GATEWAY_NAME, &PatchParams::default(), &patch).await {
                Ok(_) => return Ok(true),
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error),
            }
            match Self::read(client, namespace).await? {
                Some(read) if read.said == self.said => latest = read,
                _ => return Ok(false),
            }
        }
    }

    fn written(&self, uid: &str, now: Timestamp) -> Value {
        json!({"metadata": {"resourceVersion": self.version, "annotations": {ANNOTATION: format!("{uid} {now}")}}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_given_up_just_now_does_not_stay() {
        let now: Timestamp = "2026-11-26T08:00:10Z".parse().unwrap();
        let claim = |said: Option<&str>| {
            let mut object = Deployment::default();
            object.metadata.resource_version = Some("7".into());
            object.annotations_mut().extend(said.map(|said| (ANNOTATION.to_owned(), said.to_owned())));
            Claim::of(&object, now).unwrap()
        };
        for (said, leaves) in [
            (None, true),
            (Some("u 2026-11-26T08:00:06Z"), false),
            (Some("u 2026-11-26T08:00:14Z"), false),
            (Some("u 2026-11-26T08:00:05Z"), true),
            (Some("u 2026-11-26T08:01:00Z"), true),
            (Some("v 2026-11-26T08:00:09Z"), true),
            (Some("u yesterday"), true),
            (Some("u"), true),
        ] {
            assert_eq!(claim(said).leaves("u"), leaves, "{said:?}");
        }
        // What is written is read.
        let written = claim(None).written("u", now);
        assert_eq!(written["metadata"]["resourceVersion"], "7");
        assert!(!claim(written["metadata"]["annotations"][ANNOTATION].as_str()).leaves("u"));
        assert_eq!(Claim::of(&Deployment::default(), now), None);
    }
}
