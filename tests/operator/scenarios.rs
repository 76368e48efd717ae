//! One function a behaviour; each has a namespace of its own, but for nodes and profiles, which are the cluster's.

use anyhow::{Context, Result, ensure};
use atlas_tests::support::wait_until;
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams},
};
use serde_json::{Value, json};

use crate::bench::{Bench, LONG, holds, tier};

pub async fn objects_appear_with_owners_and_drift_is_put_back(bench: &Bench) -> Result<()> {
    let at = ("own", "code");
    bench.namespace(at.0).await?;
    let model = bench
        .model(at, &[tier("primary", "big"), tier("fallback", "small")], json!({"aliases": ["gpt-patch"]}))
        .await?;
    let uid = model.uid().context("uid")?;
    for (kind, name) in [
        ("Deployment", "code-t-primary"),
        ("Deployment", "code-t-fallback"),
        ("Service", "code-t-primary"),
        ("Service", "code-t-fallback"),
        ("Service", "code"),
        ("ConfigMap", "code-llm-config"),
        ("PodDisruptionBudget", "code"),
        ("NetworkPolicy", "code-engines"),
    ] {
        let object = bench.wait_for(kind, (Some(at.0), name), |_| Ok(())).await?;
        let owner = object
            .owner_references()
            .first()
            .cloned()
            .with_context(|| format!("{kind} {name} has no owner"))?;
        ensure!(owner.uid == uid && owner.controller == Some(true), "{kind} {name}: {owner:?}");
    }
    for kind in ["Deployment", "ServiceAccount", "RoleBinding", "PodDisruptionBudget"] {
        let object = bench.wait_for(kind, (Some(at.0), "atlas-gateway"), |_| Ok(())).await?;
        let owner = object.owner_references().first().cloned().context("no owner")?;
        ensure!(owner.uid == uid && owner.controller != Some(true), "{kind}: {owner:?}");
    }
    let primary = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    let container = &primary.data["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["resources"]["limits"]["amd.com/gpu"] == "1", "{container}");
    ensure!(
        container["args"].to_string().contains("\"--served-model-name\",\"gpt-patch\",\"--backend\",\"hip\""),
        "{container}"
    );
    bench.wait_for("AtlasModel", (Some(at.0), at.1), |m| holds(m, "Accepted", "True", "Valid", &[])).await?;

    // Drift in every owned kind comes back; the model's own status is not touched by it.
    bench.condition(at, "Ready", "False", "NoTierServes", &["primary", "fallback"]).await?;
    let version = bench.settled_version(at).await?;
    let writes = bench.metric("atlas_writes_total{kind=\"ConfigMap\"}").await?;
    bench
        .patch("ConfigMap", (at.0, "code-llm-config"), json!({"data": {"llm_config.yaml": "edited by hand"}}))
        .await?;
    bench
        .wait_for("ConfigMap", (Some(at.0), "code-llm-config"), |o| {
            let text = o.data["data"]["llm_config.yaml"].as_str().unwrap_or_default();
            if text.starts_with("# generated: change spec.tiers[].maxBatch") {
                Ok(())
            } else {
                Err(text.to_owned())
            }
        })
        .await?;
    bench
        .patch("Service", (at.0, "code"), json!({"spec": {"selector": {"app.kubernetes.io/name": "other"}}}))
        .await?;
    bench
        .wait_for("Service", (Some(at.0), "code"), |o| {
            let name = &o.data["spec"]["selector"]["app.kubernetes.io/name"];
            if name == "atlas-gateway" { Ok(()) } else { Err(name.to_string()) }
        })
        .await?;
    bench.api("PodDisruptionBudget", Some(at.0)).delete("code", &DeleteParams::default()).await?;
    bench
        .wait_for("PodDisruptionBudget", (Some(at.0), "code"), |o| {
            if o.metadata.deletion_timestamp.is_none() { Ok(()) } else { Err("going".into()) }
        })
        .await?;
    ensure!(
        bench.metric("atlas_writes_total{kind=\"ConfigMap\"}").await? == writes + 1.0,
        "one edit costs one write"
    );
    ensure!(
        bench.api("AtlasModel", Some(at.0)).get(at.1).await?.resource_version() == version,
        "the status settled"
    );
    bench.remove_model(at).await
}

/// Name, tiers, further fields, and the reason and parts of the message that they are refused with.
type Mistake<'a> = (&'a str, Vec<Value>, Value, &'a str, &'a [&'a str]);

pub async fn mistakes_are_told_where_people_look(bench: &Bench) -> Result<()> {
    let namespace = "mistakes";
    bench.namespace(namespace).await?;
    let with = |key: &str, value: Value| {
        let mut tier = tier("primary", "big");
        tier[key] = value;
        vec![tier]
    };
    let cases: Vec<Mistake<'_>> = vec![
        (
            "profile",
            vec![tier("primary", "rx-9999")],
            json!({}),
            "ProfileNotFound",
            &["rx-9999", "big, small"],
        ),
        ("batch", with("maxBatch", 64.into()), json!({}), "BatchTooLarge", &["64", "4", "big"]),
        (
            "standby",
            vec![tier("primary", "big"), {
                let mut warm = tier("fallback", "small");
                warm["standby"] = "Warm".into();
                warm
            }],
            json!({}),
            "NoWarmCache",
            &["tier fallback", "modelCache.hostPath"],
        ),
        (
            "route",
            with("maxBatch", 1.into()),
            json!({"expose": {"type": "HTTPRoute"}}),
            "NotImplemented",
            &["expose.type", "HTTPRoute"],
        ),
    ];
    for (name, tiers, more, reason, says) in cases {
        bench.model((namespace, name), &tiers, more).await?;
        bench.condition((namespace, name), "Accepted", "False", reason, says).await?;
        bench.condition((namespace, name), "Ready", "False", "NoTierServes", &[]).await?;
        let deployments =
            bench.api("Deployment", Some(namespace)).get_opt(&format!("{name}-t-primary")).await?;
        ensure!(deployments.is_none(), "{name}: what is not accepted makes no pods");
    }
    bench.event(namespace, "profile", "ProfileNotFound").await?;
    // The profile that was missing appears: nobody has to touch the model.
    bench
        .create("GpuProfile", None, json!({"metadata": {"name": "rx-9999"}, "spec": {"product": "P", "gfxTarget": "gfx1100", "vram": "16Gi", "match": {"vramClass": "16G", "computeUnits": 60}}}))
        .await?;
    bench.condition((namespace, "profile"), "Accepted", "True", "Valid", &[]).await?;
    for model in bench.api("AtlasModel", Some(namespace)).list(&ListParams::default()).await? {
        bench.remove_model((namespace, &model.name_any())).await?;
    }
    Ok(())
}

pub async fn a_name_that_is_taken_is_never_forced(bench: &Bench) -> Result<()> {
    let at = ("taken", "code");
    bench.namespace(at.0).await?;
    let theirs = json!({"metadata": {"name": "code", "namespace": at.0}, "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}});
    bench.create("Service", Some(at.0), theirs).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    bench.condition(at, "Accepted", "False", "NameTaken", &["Service/code"]).await?;
    let service = bench.api("Service", Some(at.0)).get("code").await?;
    ensure!(
        service.data["spec"]["selector"] == json!({"app": "theirs"}) && service.owner_references().is_empty()
    );
    bench.remove_model(at).await
}

pub async fn engine_exits_become_conditions_and_readiness_becomes_ready(bench: &Bench) -> Result<()> {
    let at = ("exits", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    let pod = bench.engine_pod(at, "primary", Some("xtx")).await?;
    bench.condition(at, "Scheduled", "True", "AllScheduled", &[]).await?;
    for exit in atlas_operator_core::engine_contract::EngineExit::ALL {
        let message = format!("engine said {}", exit.code());
        let ended = json!({"terminated": {"exitCode": exit.code(), "message": message, "reason": "Error"}});
        // Just ended, or waiting for its next start: a pod is seen in both.
        let status = if exit.code() % 2 == 0 {
            pod_status(false, ended)
        } else {
            let mut status = pod_status(false, json!({"waiting": {"reason": "CrashLoopBackOff"}}));
            status["containerStatuses"][0]["lastState"] = ended;
            status
        };
        bench.patch_status("Pod", (Some(at.0), &pod), status).await?;
        bench
            .condition(at, exit.condition().as_str(), "False", exit.reason(), &[&message, exit.remedy()])
            .await?;
    }
    bench.patch_status("Pod", (Some(at.0), &pod), pod_status(true, json!({"running": {}}))).await?;
    bench.condition(at, "Ready", "True", "Serving", &["primary", "xtx"]).await?;
    bench.condition(at, "ModelCached", "True", "Cached", &[]).await?;
    bench.condition(at, "VramFits", "True", "EngineChecked", &[]).await?;
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;
    let model = bench.api("AtlasModel", Some(at.0)).get(at.1).await?;
    let status = &model.data["status"];
    ensure!(
        status["url"] == "http://code.exits.svc:8080/v1" && status["activeTier"] == "primary",
        "{status}"
    );
    ensure!(status["activeGpu"] == "Radeon RX 7900 XTX" && status["activeModel"] == "primary-7b", "{status}");
    bench.remove_pod((at.0, &pod)).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &[]).await?;
    bench.remove_model(at).await
}

/// What a kubelet writes about an engine's pod.
pub fn pod_status(ready: bool, state: Value) -> Value {
    json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        "containerStatuses": [{
            "name": "engine", "image": "i", "imageID": "i", "ready": ready, "restartCount": 1, "state": state,
        }],
    })
}

pub async fn changed_tiers_roll_last_first_while_the_next_is_ready(bench: &Bench) -> Result<()> {
    let at = ("roll", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big"), tier("fallback", "small")], json!({})).await?;
    for (tier, node) in [("primary", "xtx"), ("fallback", "rx")] {
        let pod = bench.engine_pod(at, tier, Some(node)).await?;
        bench.patch_status("Pod", (Some(at.0), &pod), pod_status(true, json!({"running": {}}))).await?;
        settle(bench, at.0, &format!("code-t-{tier}")).await?;
    }
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;
    let mut tiers = [tier("primary", "big"), tier("fallback", "small")];
    for tier in &mut tiers {
        tier["contextTokens"] = 8192.into();
    }
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": tiers}})).await?;
    let changed = |object: &DynamicObject| {
        let args = object.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        if args.contains("\"8192\"") { Ok(()) } else { Err(args) }
    };
    bench.wait_for("Deployment", (Some(at.0), "code-t-fallback"), changed).await?;
    bench
        .condition(
            at,
            "Progressing",
            "True",
            "RollingOut",
            &["primary", "waits for tier fallback, which rolls"],
        )
        .await?;
    let held = bench.api("Deployment", Some(at.0)).get("code-t-primary").await?;
    ensure!(changed(&held).is_err(), "the first tier waits");
    // The fallback is back: the first tier's turn.
    settle(bench, at.0, "code-t-fallback").await?;
    bench.wait_for("Deployment", (Some(at.0), "code-t-primary"), changed).await?;
    settle(bench, at.0, "code-t-primary").await?;
    bench.condition(at, "Progressing", "False", "Settled", &[]).await?;
    // A tier that is taken out takes its objects with it.
    bench.patch("AtlasModel", at, json!({"spec": {"tiers": [tiers[0].clone()]}})).await?;
    for kind in ["Deployment", "Service"] {
        wait_until("the leftovers to go", LONG, async || {
            match bench.api(kind, Some(at.0)).get_opt("code-t-fallback").await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
    }
    bench.remove_model(at).await?;
    for pod in ["code-t-primary-0", "code-t-fallback-0"] {
        bench.remove_pod((at.0, pod)).await?;
    }
    Ok(())
}

/// Writes the status that the Deployment controller leaves after a finished rollout.
pub async fn settle(bench: &Bench, namespace: &str, name: &str) -> Result<()> {
    let live = bench.wait_for("Deployment", (Some(namespace), name), |_| Ok(())).await?;
    let status = json!({
        "observedGeneration": live.metadata.generation,
        "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
    });
    bench.patch_status("Deployment", (Some(namespace), name), status).await
}

/// Starts another replica and stops the first, which gives its leadership back.
pub async fn hand_over(bench: &Bench, to: &str) -> Result<()> {
    let at = (Some("atlas-system"), "atlas-operator");
    let before = bench.wait_for("Lease", at, |_| Ok(())).await?;
    let transitions = |lease: &DynamicObject| lease.data["spec"]["leaseTransitions"].as_i64().unwrap_or(0);
    let second = bench.spawn_operator(to).await?;
    let mut first = bench.replace_operator(Some(second)).context("the first operator")?;
    let pid = first.child.id().context("the first operator ended by itself")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    let status = tokio::time::timeout(LONG, first.child.wait()).await.context("it does not stop")??;
    ensure!(status.success(), "a clean stop exits with {status}: {}", bench.log("operator-a"));
    // Well within the 15 s of a lease that was not given back.
    let holder = bench
        .wait_for("Lease", at, |lease| {
            let holder = &lease.data["spec"]["holderIdentity"];
            if holder == to { Ok(()) } else { Err(holder.to_string()) }
        })
        .await?;
    ensure!(transitions(&holder) == transitions(&before) + 1, "{}", holder.data);
    Ok(())
}

pub async fn a_second_replica_takes_over_at_once(bench: &Bench) -> Result<()> {
    hand_over(bench, "operator-b").await?;
    bench.namespace("after").await?;
    bench.model(("after", "code"), &[tier("primary", "big")], json!({})).await?;
    bench.wait_for("Deployment", (Some("after"), "code-t-primary"), |_| Ok(())).await?;
    Ok(())
}
