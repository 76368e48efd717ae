//! What Kubernetes refuses, ends or leaves behind: objects, pods, gateways, whole namespaces, and names that come again.

use anyhow::{Result, ensure};
use atlas_tests::support::wait_until;
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Preconditions, PropagationPolicy},
};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, LONG, holds, tier},
    inventory::replicas,
    lifecycle::{proven, recreate, running, with_context},
    perturb::CHILDREN,
    scenarios::pod_status,
};

const FORBIDDEN: &str =
    r#"pods "x-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=3, limited: pods=3"#;

/// A Deployment's status where the API server takes none of its pods, since an hour.
fn refused(live: &DynamicObject) -> Value {
    let condition = json!({
        "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": FORBIDDEN,
        "lastTransitionTime": "2026-01-01T00:00:00Z", "lastUpdateTime": "2026-01-01T00:00:00Z",
    });
    json!({
        "observedGeneration": live.metadata.generation, "unavailableReplicas": 1, "conditions": [condition],
        "replicas": 0, "updatedReplicas": 0, "readyReplicas": 0, "availableReplicas": 0,
    })
}

/// What the policy asks of a Service.
const LABELLED: &str = "'team' in object.metadata.?labels.orValue({})";

pub async fn an_object_that_a_policy_refuses_is_told_and_asked_for_again(bench: &Bench) -> Result<()> {
    let at = ("policy", "code");
    bench.namespace(at.0).await?;
    let policy = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: labelled-services}
spec:
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: policy}}
    resourceRules: [{apiGroups: [""], apiVersions: ["v1"], operations: ["CREATE", "UPDATE"], resources: ["services"]}]
  validations: [{expression: "'team' in object.metadata.?labels.orValue({})", message: "every Service needs a label team"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: labelled-services}
spec: {policyName: labelled-services, validationActions: [Deny]}
"#;
    let file = bench.write("policy.yaml", policy)?;
    bench.kubectl(&["apply", "-f", &file]).await?;
    wait_until("the policy to act", LONG, async || {
        let service = ["create", "service", "clusterip", "probe", "-n", at.0, "--tcp=80", "--dry-run=server"];
        match bench.try_kubectl(&service).await {
            Ok(output) if !output.success => Ok(()),
            other => Err(format!("{:?}", other.map(|output| output.stdout))),
        }
    })
    .await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    let says =
        ["Service/code: ", "Service/code-t-primary: ", "every Service needs a label team", "meet the policy"];
    bench.condition(at, "Accepted", "False", "ObjectRefused", &says).await?;
    ensure!(bench.event(at.0, at.1, "ObjectRefused").await?.contains("label team"));
    // What is not refused is there, and no URL is promised.
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), replicas(1)).await?;
    let model = bench.api("AtlasModel", Some(at.0)).get(at.1).await?;
    ensure!(model.data["status"].get("url").is_none(), "{}", model.data["status"]);
    bench.kubectl(&["delete", "-f", &file]).await?;
    bench.condition(at, "Accepted", "True", "Valid", &[]).await?;
    bench.wait_for("Service", (Some(at.0), "code"), |_| Ok(())).await?;
    // A leftover that may not be deleted keeps nobody from the rest, and is told.
    let file = bench.write(
        "policy.yaml",
        &policy.replace(r#""CREATE", "UPDATE""#, r#""DELETE""#).replace(LABELLED, "false"),
    )?;
    bench.kubectl(&["apply", "-f", &file]).await?;
    wait_until("the policy to act", LONG, async || {
        match bench.try_kubectl(&["delete", "service", "code", "-n", at.0, "--dry-run=server"]).await {
            Ok(output) if !output.success => Ok(()),
            other => Err(format!("{:?}", other.map(|output| output.stdout))),
        }
    })
    .await?;
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [tier("second", "big")]}})).await?;
    let says = ["Service/code-t-primary: ", "every Service needs a label team", "meet the policy"];
    bench.condition(at, "Accepted", "False", "ObjectRefused", &says).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-second"), replicas(1)).await?;
    bench.kubectl(&["delete", "-f", &file]).await?;
    bench.condition(at, "Accepted", "True", "Valid", &[]).await?;
    bench.remove_model(at).await
}

pub async fn pods_that_are_refused_are_told_and_take_a_change_back(bench: &Bench) -> Result<()> {
    let at = ("refused", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[with_context("primary", "big", 1024)], json!({})).await?;
    let deployment = (Some(at.0), "code-t-primary");
    let live = bench.wait_for("Deployment", deployment, replicas(1)).await?;
    bench.patch_status("Deployment", deployment, refused(&live)).await?;
    let says = ["tier primary", FORBIDDEN, "raise the ResourceQuota"];
    bench.condition(at, "Scheduled", "False", "PodsRefused", &says).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &says).await?;
    ensure!(bench.event(at.0, at.1, "PodsRefused").await?.contains("exceeded quota"));

    // The quota is raised; then a change asks for more than it allows.
    let pod = recreate(bench, at, "primary", "xtx", running()).await?;
    proven(bench, at, "primary").await?;
    bench.condition(at, "Scheduled", "True", "AllScheduled", &[]).await?;
    let tiers = json!({"spec": {"tiers": [with_context("primary", "big", 2048)]}});
    bench.patch("AtlasModel", at, tiers).await?;
    let changed = |object: &DynamicObject| {
        let args = object.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        if args.contains("\"2048\"") { Ok(()) } else { Err(args) }
    };
    let live = bench.wait_for("Deployment", deployment, changed).await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench.patch_status("Deployment", deployment, refused(&live)).await?;
    let says =
        ["tier primary is back at its last good revision", "the API server refuses its pods", FORBIDDEN];
    bench.condition(at, "Progressing", "False", "RolledBack", &says).await?;
    bench
        .wait_for("Deployment", deployment, |object| match changed(object) {
            Ok(()) => Err("it still has the change".to_owned()),
            Err(_) => Ok(()),
        })
        .await?;
    bench.remove_model(at).await
}

pub async fn a_model_without_a_gateway_is_not_ready(bench: &Bench) -> Result<()> {
    let at = ("no-gateway", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), replicas(1)).await?;
    let pod = recreate(bench, at, "primary", "xtx", running()).await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    let gateway = (Some(at.0), "atlas-gateway");
    let live = bench.wait_for("Deployment", gateway, |_| Ok(())).await?;
    bench.patch_status("Deployment", gateway, refused(&live)).await?;
    let says = ["no client is let in", FORBIDDEN, "raise the ResourceQuota"];
    bench.condition(at, "Ready", "False", "NoGateway", &says).await?;
    // One that cannot start is told by its own words.
    let status = json!({"observedGeneration": live.metadata.generation, "conditions": null});
    bench.patch_status("Deployment", gateway, status).await?;
    let labels =
        json!({"app.kubernetes.io/component": "gateway", "app.kubernetes.io/managed-by": "atlas-operator"});
    let spec = json!({"containers": [{"name": "gateway", "image": "i"}], "nodeName": "xtx"});
    bench
        .create("Pod", Some(at.0), json!({"metadata": {"name": "gw", "labels": labels}, "spec": spec}))
        .await?;
    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}});
    bench.patch_status("Pod", (Some(at.0), "gw"), pod_status(false, waiting)).await?;
    bench
        .condition(at, "Ready", "False", "NoGateway", &["gateway pod gw: ImagePullBackOff: no such tag"])
        .await?;
    bench.patch_status("Pod", (Some(at.0), "gw"), running()).await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    // A second one that does not come up is told beside what serves.
    let live = bench.wait_for("Deployment", gateway, |_| Ok(())).await?;
    bench.patch_status("Deployment", gateway, refused(&live)).await?;
    let says = ["tier primary serves", "1 of 2 gateways are ready", FORBIDDEN, "raise the ResourceQuota"];
    bench.condition(at, "Ready", "True", "Serving", &says).await?;
    for pod in [pod.as_str(), "gw"] {
        bench.remove_pod((at.0, pod)).await?;
    }
    bench.remove_model(at).await
}

pub async fn what_a_node_ended_is_told_until_another_pod_serves(bench: &Bench) -> Result<()> {
    let at = ("ended", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), replicas(1)).await?;
    let pod = bench.engine_pod(at, "primary", Some("xtx")).await?;
    let oom = pod_status(false, json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}));
    bench.patch_status("Pod", (Some(at.0), &pod), oom.clone()).await?;
    let says = ["tier primary", "exit code 137", "limits.memory in engine.resources"];
    bench.condition(at, "Progressing", "False", "OomKilled", &says).await?;
    let mut evicted = oom;
    evicted["phase"] = "Failed".into();
    evicted["reason"] = "Evicted".into();
    evicted["message"] = "The node was low on resource: memory.".into();
    bench.patch_status("Pod", (Some(at.0), &pod), evicted).await?;
    let says = [pod.as_str(), "Evicted: The node was low on resource: memory", "free memory or disk"];
    bench.condition(at, "Progressing", "True", "Starting", &says).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &says).await?;
    // It has no node any more, whatever its specification says.
    bench.condition(at, "Scheduled", "Unknown", "Scheduling", &["primary (0 of 1)"]).await?;
    // Its successor serves, and what is left of it is nobody's trouble.
    let labels = bench.api("Pod", Some(at.0)).get(&pod).await?.labels().clone();
    let spec = json!({"containers": [{"name": "engine", "image": "i"}], "nodeName": "xtx"});
    bench
        .create("Pod", Some(at.0), json!({"metadata": {"name": "next", "labels": labels}, "spec": spec}))
        .await?;
    bench.patch_status("Pod", (Some(at.0), "next"), running()).await?;
    bench.condition(at, "Ready", "True", "Serving", &["xtx"]).await?;
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;
    let model = bench.api("AtlasModel", Some(at.0)).get(at.1).await?;
    ensure!(model.data["status"]["replicas"] == 1, "{}", model.data["status"]);
    for pod in [pod.as_str(), "next"] {
        bench.remove_pod((at.0, pod)).await?;
    }
    bench.remove_model(at).await
}

pub async fn a_name_that_comes_again_takes_up_what_was_left(bench: &Bench) -> Result<()> {
    let at = ("again", "code");
    bench.namespace(at.0).await?;
    let tiers = [tier("primary", "big"), tier("fallback", "small")];
    let first = bench.model(at, &tiers, json!({})).await?;
    bench.condition(at, "Accepted", "True", "Valid", &[]).await?;
    let of = async |kind: &str| bench.api(kind, Some(at.0)).list(&ListParams::default()).await;
    // There is no garbage collector here: what the predecessor owned stays, and is waited for.
    let gone = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions { uid: first.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    bench.api("AtlasModel", Some(at.0)).delete(at.1, &gone).await?;
    let second = bench.model(at, &tiers[..1], json!({})).await?;
    let says = ["collected", "Deployment/code-t-primary"];
    bench.condition(at, "Accepted", "Unknown", "NamesLeaving", &says).await?;
    // As `kubectl delete --cascade=orphan` leaves them.
    let templates = of("Deployment").await?.items.into_iter().map(|d| d.data["spec"]["template"].clone());
    let templates: Vec<Value> = templates.collect();
    for kind in CHILDREN {
        for object in of(kind).await?.items.iter().filter(|o| o.name_any() != "atlas-gateway") {
            bench
                .patch(kind, (at.0, &object.name_any()), json!({"metadata": {"ownerReferences": null}}))
                .await?;
        }
    }
    bench.condition(at, "Accepted", "True", "Valid", &[]).await?;
    let uid = second.uid();
    for kind in CHILDREN {
        for object in of(kind).await?.items.iter().filter(|o| o.name_any() != "atlas-gateway") {
            let owners: Vec<_> = object.owner_references().iter().map(|o| Some(o.uid.clone())).collect();
            ensure!(owners == [uid.clone()], "{kind} {}: {owners:?}", object.name_any());
            // What the second does not have any more went with the tier.
            ensure!(!object.name_any().contains("fallback"), "{kind} {}", object.name_any());
        }
    }
    let adopted = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    ensure!(templates.contains(&adopted.data["spec"]["template"]), "pods were rolled by an adoption");
    bench.remove_model(at).await
}

pub async fn in_a_namespace_that_is_deleted_nothing_is_made_and_nobody_is_alarmed(
    bench: &Bench,
) -> Result<()> {
    let at = ("ending", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    bench.condition(at, "Accepted", "True", "Valid", &[]).await?;
    bench.wait_for("Deployment", (Some(at.0), "atlas-gateway"), |_| Ok(())).await?;
    let failed = async || {
        let apply =
            bench.metric("atlas_reconcile_errors_total{controller=\"atlasmodel\",error=\"apply\"}").await?;
        let gateway =
            bench.metric("atlas_reconcile_errors_total{controller=\"gateway\",error=\"apply\"}").await?;
        anyhow::Ok((apply, gateway))
    };
    // Its finalizer is the namespace controller's, which is not here: it stays as it is while it is being deleted.
    bench.api("Namespace", None).delete(at.0, &DeleteParams::default()).await?;
    bench
        .wait_for("Namespace", (None, at.0), |ns| {
            if ns.data["status"]["phase"] == "Terminating" { Ok(()) } else { Err(ns.data.to_string()) }
        })
        .await?;
    let before = failed().await?;
    for kind in ["Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"] {
        for object in bench.api(kind, Some(at.0)).list(&ListParams::default()).await? {
            bench.api(kind, Some(at.0)).delete(&object.name_any(), &DeleteParams::background()).await?;
        }
    }
    // A model elsewhere is looked after as ever, and by then this one was looked at too.
    let other = ("ending-not", "code");
    bench.namespace(other.0).await?;
    bench.model(other, &[tier("primary", "big")], json!({})).await?;
    bench.condition(other, "Accepted", "True", "Valid", &[]).await?;
    bench.settled_version(at).await?;
    ensure!(failed().await? == before, "{before:?}, then {:?}", failed().await?);
    let model = bench.api("AtlasModel", Some(at.0)).get(at.1).await?;
    holds(&model, "Accepted", "True", "Valid", &[]).map_err(anyhow::Error::msg)?;
    ensure!(!bench.log("operator-a").contains("reconcile failed for good"));
    bench.remove_model(at).await?;
    bench.remove_model(other).await
}
