//! A model's life: changes that fail are taken back, standby tiers start when they are needed, lost nodes hold nothing up.

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, tier},
    gateways::FakeGateway,
    inventory::replicas,
    perturb::CHILDREN,
    scenarios::{pod_status, settle},
};

const TEMPLATE: &str = "atlas.gillsystems.com/template";

/// A tier with this context.
pub fn with_context(name: &str, profile: &str, tokens: i32) -> Value {
    let mut tier = tier(name, profile);
    tier["contextTokens"] = tokens.into();
    tier
}

fn has_context(tokens: i32) -> impl Fn(&DynamicObject) -> Result<(), String> {
    move |object| {
        let args = object.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        if args.contains(&format!("\"--context-tokens\",\"{tokens}\"")) { Ok(()) } else { Err(args) }
    }
}

/// Puts a pod of the Deployment's newest template in the place of the one before, as Recreate does.
pub async fn recreate(
    bench: &Bench,
    at: (&str, &str),
    tier: &str,
    node: &str,
    status: Value,
) -> Result<String> {
    let name = format!("{}-t-{tier}-0", at.1);
    if bench.api("Pod", Some(at.0)).get_opt(&name).await?.is_some() {
        bench.remove_pod((at.0, &name)).await?;
    }
    let deployment = bench.api("Deployment", Some(at.0)).get(&format!("{}-t-{tier}", at.1)).await?;
    let hash = &deployment.data["spec"]["template"]["metadata"]["annotations"][TEMPLATE];
    ensure!(
        hash.is_string(),
        "the template does not carry its hash: {}",
        deployment.data["spec"]["template"]
    );
    let pod = bench.engine_pod(at, tier, Some(node)).await?;
    bench.patch("Pod", (at.0, &pod), json!({"metadata": {"annotations": {TEMPLATE: hash}}})).await?;
    bench.patch_status("Pod", (Some(at.0), &pod), status).await?;
    Ok(pod)
}

pub fn running() -> Value {
    pod_status(true, json!({"running": {}}))
}

fn ended(code: i32, message: &str, restarts: i32) -> Value {
    let mut status =
        pod_status(false, json!({"terminated": {"exitCode": code, "message": message, "reason": "Error"}}));
    status["containerStatuses"][0]["restartCount"] = restarts.into();
    status
}

/// Waits until the tier remembers its newest template as good.
pub async fn proven(bench: &Bench, at: (&str, &str), tier: &str) -> Result<()> {
    let name = format!("{}-t-{tier}", at.1);
    settle(bench, at.0, &name).await?;
    let deployment = bench.api("Deployment", Some(at.0)).get(&name).await?;
    let annotations = deployment.metadata.annotations.unwrap_or_default();
    let hash = format!("{{\"hash\":\"{}\"", annotations.get(TEMPLATE).cloned().unwrap_or_default());
    bench
        .wait_for("ConfigMap", (Some(at.0), &name), |map| {
            let good = map.data["data"]["last-good"].as_str().unwrap_or_default();
            if good.starts_with(&hash) { Ok(()) } else { Err(good.to_owned()) }
        })
        .await
        .map(|_| ())
}

pub async fn a_change_that_fails_is_taken_back_and_says_why(bench: &Bench) -> Result<()> {
    let at = ("revisions", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[with_context("primary", "big", 1024)], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), has_context(1024)).await?;
    recreate(bench, at, "primary", "xtx", running()).await?;
    proven(bench, at, "primary").await?;
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;

    let tiers = json!({"spec": {"tiers": [with_context("primary", "big", 2048)]}});
    bench.patch("AtlasModel", at, tiers).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), has_context(2048)).await?;
    // An end that another try may mend is waited for.
    recreate(bench, at, "primary", "xtx", ended(1, "a broken pipe", 1)).await?;
    bench.condition(at, "Progressing", "False", "EngineFailed", &["a broken pipe"]).await?;
    let live = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    has_context(2048)(&live).map_err(anyhow::Error::msg)?;
    // One that it does not mend is not.
    let pod = format!("{}-t-primary-0", at.1);
    bench.patch_status("Pod", (Some(at.0), &pod), ended(11, "no such tensor", 1)).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), has_context(1024)).await?;
    let says =
        ["tier primary is back at its last good revision", "no such tensor (exit code 11, ModelInvalid)"];
    bench.condition(at, "Progressing", "False", "RolledBack", &says).await?;
    ensure!(bench.event(at.0, at.1, "RolledBack").await?.contains("no such tensor"));
    recreate(bench, at, "primary", "xtx", running()).await?;
    settle(bench, at.0, "code-t-primary").await?;
    bench.condition(at, "Ready", "True", "Serving", &[]).await?;
    // It is not tried again by itself, also not by another operator process.
    drop(bench.replace_operator(None));
    let operator = bench.spawn_operator("operator-a").await?;
    bench.replace_operator(Some(operator));
    bench.condition(at, "Progressing", "False", "RolledBack", &says).await?;
    let live = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    has_context(1024)(&live).map_err(anyhow::Error::msg)?;

    // Another change is.
    let tiers = json!({"spec": {"tiers": [with_context("primary", "big", 3072)]}});
    bench.patch("AtlasModel", at, tiers).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), has_context(3072)).await?;
    recreate(bench, at, "primary", "xtx", running()).await?;
    proven(bench, at, "primary").await?;
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;
    // A change that is never ready in time, as the Deployment controller says it.
    let tiers = json!({"spec": {"tiers": [with_context("primary", "big", 4096)], "rollout": {"readyTimeout": "90s"}}});
    bench.patch("AtlasModel", at, tiers).await?;
    let live = bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), has_context(4096)).await?;
    ensure!(live.data["spec"]["progressDeadlineSeconds"] == 90, "{}", live.data["spec"]);
    let late = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": ""});
    let status = json!({"observedGeneration": live.metadata.generation, "replicas": 1, "updatedReplicas": 1,
        "readyReplicas": 0, "availableReplicas": 0, "conditions": [late]});
    bench.patch_status("Deployment", (Some(at.0), "code-t-primary"), status).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), has_context(3072)).await?;
    bench.condition(at, "Progressing", "False", "RolledBack", &["rollout.readyTimeout"]).await?;
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(at).await
}

pub async fn what_an_edit_broke_on_one_tier_it_does_not_break_on_the_next(bench: &Bench) -> Result<()> {
    let at = ("revisions", "both");
    let tiers = |primary, fallback| {
        [with_context("primary", "big", primary), with_context("fallback", "small", fallback)]
    };
    bench.model(at, &tiers(1024, 1024), json!({})).await?;
    for (tier, node) in [("primary", "xtx"), ("fallback", "rx")] {
        bench.wait_for("Deployment", (Some(at.0), &format!("both-t-{tier}")), has_context(1024)).await?;
        recreate(bench, at, tier, node, running()).await?;
        proven(bench, at, tier).await?;
    }
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": tiers(2048, 2048)}})).await?;
    bench.wait_for("Deployment", (Some(at.0), "both-t-fallback"), has_context(2048)).await?;
    recreate(bench, at, "fallback", "rx", ended(2, "unknown flag", 0)).await?;
    bench.wait_for("Deployment", (Some(at.0), "both-t-fallback"), has_context(1024)).await?;
    recreate(bench, at, "fallback", "rx", running()).await?;
    settle(bench, at.0, "both-t-fallback").await?;
    let says = ["tier fallback is back", "tier primary has changed and waits, since the same edit failed"];
    bench.condition(at, "Progressing", "False", "RolledBack", &says).await?;
    let held = bench.api("Deployment", Some(at.0)).get("both-t-primary").await?;
    has_context(1024)(&held).map_err(anyhow::Error::msg)?;
    // The next edit counts as its own: the first tier goes on, the other one's change stays refused.
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": tiers(3072, 2048)}})).await?;
    bench.wait_for("Deployment", (Some(at.0), "both-t-primary"), has_context(3072)).await?;
    let back = bench.api("Deployment", Some(at.0)).get("both-t-fallback").await?;
    has_context(1024)(&back).map_err(anyhow::Error::msg)?;
    for tier in ["primary", "fallback"] {
        bench.remove_pod((at.0, &format!("both-t-{tier}-0"))).await?;
    }
    bench.remove_model(at).await
}

pub async fn a_cold_tier_starts_when_it_is_needed_and_goes_when_it_is_not(bench: &Bench) -> Result<()> {
    let at = ("standby", "code");
    bench.namespace(at.0).await?;
    let mut fallback = tier("fallback", "small");
    fallback["standby"] = "Cold".into();
    bench.model(at, &[with_context("primary", "big", 1024), fallback.clone()], json!({})).await?;
    let (first, second) = ((Some(at.0), "code-t-primary"), (Some(at.0), "code-t-fallback"));
    bench.wait_for("Deployment", first, replicas(1)).await?;
    // A first start is waited for.
    bench.wait_for("Deployment", second, replicas(0)).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &["tier fallback: it stands by (Cold)"]).await?;
    // A gateway that has not heard yet that the pod is ready, or has not asked its engine, does not call the tier lost.
    let gateway = FakeGateway::join(bench, at.0, "xtx", None).await?;
    let engine = |health: &str, cause: Value| json!({"tier": "primary", "health": health, "cause": cause});
    gateway.say_engines(None, &[engine("Unhealthy", "PodNotReady".into())]);
    let standing = bench.api("Deployment", second.0).get(second.1).await?.metadata.generation;
    let pod = recreate(bench, at, "primary", "xtx", running()).await?;
    proven(bench, at, "primary").await?;
    bench.condition(at, "ModelCached", "True", "Cached", &[]).await?;
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;
    gateway.say_engines(None, &[engine("Unknown", Value::Null)]);
    bench.settled_version(at).await?;
    gateway.say_engines(Some("primary"), &[engine("Healthy", Value::Null)]);
    bench.condition(at, "Degraded", "False", "FirstTierServes", &[]).await?;
    let live = bench.wait_for("Deployment", second, replicas(0)).await?;
    ensure!(live.metadata.generation == standing, "it was started and stopped: {:?}", live.data["spec"]);

    // The gateways lose the first tier long before Kubernetes does.
    gateway.say(None, &[]);
    bench.wait_for("Deployment", second, replicas(1)).await?;
    recreate(bench, at, "fallback", "rx", running()).await?;
    gateway.say(Some("fallback"), &[]);
    bench.condition(at, "Degraded", "True", "FallbackServing", &[]).await?;
    // The first tier's pod is ready, but the traffic is still here.
    bench.wait_for("Deployment", second, replicas(1)).await?;
    gateway.say(Some("primary"), &[]);
    bench.wait_for("Deployment", second, replicas(0)).await?;
    bench.remove_pod((at.0, "code-t-fallback-0")).await?;

    // A change of the first tier starts it too, waits for it, and lets it go afterwards.
    let tiers = json!({"spec": {"tiers": [with_context("primary", "big", 2048), fallback]}});
    bench.patch("AtlasModel", at, tiers).await?;
    bench.wait_for("Deployment", second, replicas(1)).await?;
    bench.condition(at, "Progressing", "True", "RollingOut", &["waits for tier fallback"]).await?;
    let held = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    has_context(1024)(&held).map_err(anyhow::Error::msg)?;
    recreate(bench, at, "fallback", "rx", running()).await?;
    settle(bench, at.0, "code-t-fallback").await?;
    bench.wait_for("Deployment", first, has_context(2048)).await?;
    bench.remove_pod((at.0, &pod)).await?;
    gateway.say(Some("fallback"), &[]);
    recreate(bench, at, "primary", "xtx", running()).await?;
    proven(bench, at, "primary").await?;
    bench.wait_for("Deployment", second, replicas(1)).await?;
    gateway.say(Some("primary"), &[]);
    bench.wait_for("Deployment", second, replicas(0)).await?;
    gateway.leave(bench, at.0).await?;
    for tier in ["primary", "fallback"] {
        bench.remove_pod((at.0, &format!("code-t-{tier}-0"))).await?;
    }
    bench.remove_model(at).await
}

pub async fn a_pod_on_a_lost_node_is_given_up_after_its_grace(bench: &Bench) -> Result<()> {
    let at = ("lost", "code");
    bench.namespace(at.0).await?;
    bench.card_node("gone", "24G", "96").await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), replicas(1)).await?;
    let pod = recreate(bench, at, "primary", "gone", running()).await?;
    bench.condition(at, "Ready", "True", "Serving", &["gone"]).await?;
    // A pod of a node that answers is left to it, however long it takes.
    let api = bench.api("Pod", Some(at.0));
    api.delete(&pod, &DeleteParams::default().grace_period(1)).await?;
    let past = |object: &DynamicObject| {
        let at = object.metadata.deletion_timestamp.as_ref().map(|at| at.0);
        if at.is_some_and(|at| at < jiff::Timestamp::now()) { Ok(()) } else { Err(format!("{at:?}")) }
    };
    bench.wait_for("Pod", (Some(at.0), &pod), past).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &[]).await?;
    ensure!(api.get_opt(&pod).await?.is_some(), "a pod of a living node was deleted");
    let lost = json!({"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": ""}]});
    bench.patch_status("Node", (None, "gone"), lost).await?;
    atlas_tests::support::wait_until("the pod to be given up", crate::bench::LONG, async || {
        match api.get_opt(&pod).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    bench.api("Node", None).delete("gone", &DeleteParams::default()).await?;
    bench.remove_model(at).await
}

/// What garbage collection needs: every object of a model names it as owner, and none waits for a finalizer.
pub async fn every_object_of_a_model_goes_with_it(bench: &Bench) -> Result<()> {
    let at = ("owned", "code");
    bench.namespace(at.0).await?;
    let uid = bench
        .model(at, &[tier("primary", "big"), tier("fallback", "small")], json!({}))
        .await?
        .metadata
        .uid
        .context("uid")?;
    bench.condition(at, "Accepted", "True", "Valid", &[]).await?;
    bench.wait_for("Deployment", (Some(at.0), "atlas-gateway"), |_| Ok(())).await?;
    let mut seen = 0;
    for kind in CHILDREN {
        for object in bench.api(kind, Some(at.0)).list(&ListParams::default()).await? {
            let name = object.metadata.name.clone().unwrap_or_default();
            let owners = object.metadata.owner_references.clone().unwrap_or_default();
            ensure!(owners.iter().any(|owner| owner.uid == uid), "{kind} {name} has no owner");
            ensure!(object.metadata.finalizers.unwrap_or_default().is_empty(), "{kind} {name} waits");
            seen += 1;
        }
    }
    ensure!(seen >= 13, "{seen} objects");
    bench.remove_model(at).await
}
