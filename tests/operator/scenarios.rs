//! One function a behaviour; each has a namespace of its own, but for nodes and profiles, which are the cluster's.

use anyhow::{Context, Result, ensure};
use atlas_tests::support::wait_until;
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams},
};
use serde_json::{Value, json};

use crate::bench::{Bench, LONG, holds, tier};

pub async fn default_profiles_are_created_once_and_never_overwritten(bench: &Bench) -> Result<()> {
    for name in ["big", "small"] {
        bench.wait_for("GpuProfile", (None, name), |_| Ok(())).await?;
    }
    let api = bench.api("GpuProfile", None);
    let patch = kube::api::Patch::Merge(json!({"spec": {"boardPowerWatts": 999}}));
    api.patch("big", &kube::api::PatchParams::default(), &patch).await?;
    // A restart meets the changed one and leaves it.
    drop(bench.replace_operator(None));
    let operator = bench.spawn_operator("operator-a").await?;
    bench.replace_operator(Some(operator));
    bench.wait_for("GpuProfile", (None, "small"), |p| has_status(p, "NodesMatched")).await?;
    ensure!(api.get("big").await?.data["spec"]["boardPowerWatts"] == 999);
    Ok(())
}

fn has_status(object: &DynamicObject, condition: &str) -> Result<(), String> {
    let text = object.data["status"]["conditions"].to_string();
    if text.contains(condition) { Ok(()) } else { Err(text) }
}

pub async fn a_profile_without_nodes_says_what_was_looked_for(bench: &Bench) -> Result<()> {
    bench
        .wait_for("GpuProfile", (None, "big"), |object| {
            holds(object, "NodesMatched", "False", "NoMatchingNode", &["amd.com/gpu.vram=24G"])
        })
        .await?;
    bench.namespace("nodeless").await?;
    bench.model(("nodeless", "code"), &[tier("primary", "big")], json!({})).await?;
    bench
        .condition(
            ("nodeless", "code"),
            "Scheduled",
            "False",
            "NoMatchingNode",
            &["big", "amd.com/gpu.cu-count=96", "node labeller"],
        )
        .await?;
    bench.card_node("xtx", "24G", "96").await?;
    bench.card_node("rx", "8G", "32").await?;
    bench
        .condition(("nodeless", "code"), "Scheduled", "Unknown", "Scheduling", &["primary (0 of 1)"])
        .await?;
    bench
        .wait_for("GpuProfile", (None, "big"), |p| {
            holds(p, "NodesMatched", "True", "Matched", &[])?;
            holds(p, "Unambiguous", "True", "OneKind", &[])?;
            if p.data["status"]["capacity"] == 1 { Ok(()) } else { Err(p.data["status"].to_string()) }
        })
        .await?;
    remove_model(bench, ("nodeless", "code")).await
}

async fn remove_model(bench: &Bench, at: (&str, &str)) -> Result<()> {
    bench.api("AtlasModel", Some(at.0)).delete(at.1, &DeleteParams::background()).await?;
    Ok(())
}

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
    let version = bench.api("AtlasModel", Some(at.0)).get(at.1).await?.resource_version();
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
    remove_model(bench, at).await
}

pub async fn mistakes_are_told_where_people_look(bench: &Bench) -> Result<()> {
    let namespace = "mistakes";
    bench.namespace(namespace).await?;
    let with = |key: &str, value: Value| {
        let mut tier = tier("primary", "big");
        tier[key] = value;
        vec![tier]
    };
    let cases: Vec<(&str, Vec<Value>, Value, &str, &[&str])> = vec![
        (
            "profile",
            vec![tier("primary", "rx-9999")],
            json!({}),
            "ProfileNotFound",
            &["rx-9999", "big, small"],
        ),
        ("batch", with("maxBatch", 64.into()), json!({}), "BatchTooLarge", &["64", "4", "big"]),
        ("kv", with("kvCacheType", "Q8_0".into()), json!({}), "NotImplemented", &["kvCacheType", "Q8_0"]),
        (
            "offload",
            with("cpuOffloadLayers", 3.into()),
            json!({}),
            "NotImplemented",
            &["cpuOffloadLayers", "3"],
        ),
        ("standby", with("standby", "Warm".into()), json!({}), "NotImplemented", &["standby", "Warm"]),
        (
            "bucket",
            with("model", json!({"source": "s3://b/k.gguf"})),
            json!({}),
            "NotImplemented",
            &["s3://b/k.gguf"],
        ),
        (
            "access",
            with("maxBatch", 1.into()),
            json!({"access": {"apiKeysSecret": "keys"}}),
            "NotImplemented",
            &["access.apiKeysSecret", "keys"],
        ),
        (
            "resume",
            with("maxBatch", 1.into()),
            json!({"resume": {"acrossModels": true}}),
            "NotImplemented",
            &["resume.acrossModels"],
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
    wait_until("an Event of the refusal", LONG, async || {
        let events = bench
            .api("Event", Some(namespace))
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let told = events.iter().any(|e| {
            e.data["reason"] == "ProfileNotFound"
                && e.data["type"] == "Warning"
                && e.data["regarding"]["name"] == "profile"
        });
        if told { Ok(()) } else { Err(format!("{} other events", events.items.len())) }
    })
    .await?;
    // The profile that was missing appears: nobody has to touch the model.
    bench
        .create("GpuProfile", None, json!({"metadata": {"name": "rx-9999"}, "spec": {"product": "P", "gfxTarget": "gfx1100", "vram": "16Gi", "match": {"vramClass": "16G", "computeUnits": 60}}}))
        .await?;
    bench.condition((namespace, "profile"), "Accepted", "True", "Valid", &[]).await?;
    for model in bench.api("AtlasModel", Some(namespace)).list(&ListParams::default()).await? {
        remove_model(bench, (namespace, &model.name_any())).await?;
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
    remove_model(bench, at).await
}

pub async fn engine_exits_become_conditions_and_readiness_becomes_ready(bench: &Bench) -> Result<()> {
    let at = ("exits", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    let pod = bench.engine_pod(at, "primary", Some("xtx")).await?;
    bench.condition(at, "Scheduled", "True", "AllScheduled", &[]).await?;
    for exit in atlas_operator_core::engine_contract::EngineExit::ALL {
        let message = format!("engine said {}", exit.code());
        let ended = json!({"exitCode": exit.code(), "message": message, "reason": "Error"});
        bench
            .patch_status("Pod", (Some(at.0), &pod), pod_status(false, json!({"terminated": ended})))
            .await?;
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
    bench.api("Pod", Some(at.0)).delete(&pod, &DeleteParams::default().grace_period(0)).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &[]).await?;
    remove_model(bench, at).await
}

fn pod_status(ready: bool, state: Value) -> Value {
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
    remove_model(bench, at).await?;
    for pod in ["code-t-primary-0", "code-t-fallback-0"] {
        bench.api("Pod", Some(at.0)).delete(pod, &DeleteParams::default().grace_period(0)).await?;
    }
    Ok(())
}

/// Writes the status that the Deployment controller leaves after a finished rollout.
async fn settle(bench: &Bench, namespace: &str, name: &str) -> Result<()> {
    let live = bench.wait_for("Deployment", (Some(namespace), name), |_| Ok(())).await?;
    let status = json!({
        "observedGeneration": live.metadata.generation,
        "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
    });
    bench.patch_status("Deployment", (Some(namespace), name), status).await
}

pub async fn two_models_and_one_card(bench: &Bench) -> Result<()> {
    let (old, young) = (("cards", "old"), ("cards", "young"));
    bench.namespace("cards").await?;
    bench.model(old, &[tier("primary", "big")], json!({})).await?;
    let replicas = |wanted: i64| {
        move |object: &DynamicObject| {
            let found = &object.data["spec"]["replicas"];
            if *found == wanted { Ok(()) } else { Err(found.to_string()) }
        }
    };
    bench.wait_for("Deployment", (Some("cards"), "old-t-primary"), replicas(1)).await?;
    let pod = bench.engine_pod(old, "primary", Some("xtx")).await?;
    bench
        .wait_for("GpuProfile", (None, "big"), |p| {
            if p.data["status"]["inUse"] == 1 { Ok(()) } else { Err(p.data["status"].to_string()) }
        })
        .await?;
    bench.model(young, &[tier("primary", "big"), tier("fallback", "small")], json!({})).await?;
    bench.condition(young, "Scheduled", "False", "CardInUse", &["cards/old", "big"]).await?;
    bench.wait_for("Deployment", (Some("cards"), "young-t-primary"), replicas(0)).await?;
    bench.wait_for("Deployment", (Some("cards"), "young-t-fallback"), replicas(1)).await?;
    // It starts when the card is free.
    remove_model(bench, old).await?;
    bench.api("Pod", Some("cards")).delete(&pod, &DeleteParams::default().grace_period(0)).await?;
    bench.wait_for("Deployment", (Some("cards"), "young-t-primary"), replicas(1)).await?;
    remove_model(bench, young).await
}

pub async fn the_gateway_stays_while_a_model_lives(bench: &Bench) -> Result<()> {
    bench.namespace("shared").await?;
    let a = bench.model(("shared", "a"), &[tier("primary", "big")], json!({})).await?.uid();
    let b = bench.model(("shared", "b"), &[tier("primary", "small")], json!({})).await?.uid();
    let owned_by = |expected: Vec<Option<String>>| {
        move |object: &DynamicObject| {
            let mut owners: Vec<_> = object.owner_references().iter().map(|o| Some(o.uid.clone())).collect();
            let mut expected = expected.clone();
            owners.sort();
            expected.sort();
            if owners == expected { Ok(()) } else { Err(format!("{owners:?}")) }
        }
    };
    for kind in ["Deployment", "ServiceAccount", "RoleBinding", "PodDisruptionBudget"] {
        bench.wait_for(kind, (Some("shared"), "atlas-gateway"), owned_by(vec![a.clone(), b.clone()])).await?;
    }
    remove_model(bench, ("shared", "a")).await?;
    for kind in ["Deployment", "ServiceAccount", "RoleBinding", "PodDisruptionBudget"] {
        bench.wait_for(kind, (Some("shared"), "atlas-gateway"), owned_by(vec![b.clone()])).await?;
    }
    remove_model(bench, ("shared", "b")).await
}

pub async fn a_second_replica_takes_over_at_once(bench: &Bench) -> Result<()> {
    let second = bench.spawn_operator("operator-b").await?;
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
        .wait_for("Lease", (Some("atlas-system"), "atlas-operator"), |lease| {
            let holder = &lease.data["spec"]["holderIdentity"];
            if holder == "operator-b" { Ok(()) } else { Err(holder.to_string()) }
        })
        .await?;
    ensure!(holder.data["spec"]["leaseTransitions"] == 1, "{}", holder.data);
    bench.namespace("after").await?;
    bench.model(("after", "code"), &[tier("primary", "big")], json!({})).await?;
    bench.wait_for("Deployment", (Some("after"), "code-t-primary"), |_| Ok(())).await?;
    Ok(())
}
