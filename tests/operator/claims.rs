//! Cards by claims: what the API server takes as a claim template, and which one a pod refers to.

use anyhow::{Context, Result, ensure};
use atlas_tests::support::wait_until;
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, LONG, holds, tier},
    inventory::replicas,
};

fn claim_of(deployment: &DynamicObject) -> Result<String, String> {
    let spec = &deployment.data["spec"]["template"]["spec"];
    let name = spec["resourceClaims"][0]["resourceClaimTemplateName"].as_str().unwrap_or_default();
    if name.is_empty() { Err(spec.to_string()) } else { Ok(name.to_owned()) }
}

pub async fn cards_of_one_node_are_told_apart_by_claims(bench: &Bench) -> Result<()> {
    let at = ("claims", "code");
    bench.namespace(at.0).await?;
    for (name, vram, class, units) in [("claim-xtx", "24560Mi", "25G", 96), ("claim-rx", "8176Mi", "9G", 32)]
    {
        let spec = json!({"product": name, "gfxTarget": "gfx1100", "vram": vram, "allocation": "ResourceClaim",
            "match": {"vramClass": class, "computeUnits": units}});
        bench.create("GpuProfile", None, json!({"metadata": {"name": name}, "spec": spec})).await?;
    }
    bench.model(at, &[tier("primary", "claim-xtx"), tier("fallback", "claim-rx")], json!({})).await?;
    let mut claims = Vec::new();
    for (tier, units) in [("primary", "96"), ("fallback", "32")] {
        let name = format!("code-t-{tier}");
        let deployment = bench.wait_for("Deployment", (Some(at.0), &name), replicas(1)).await?;
        let pod = &deployment.data["spec"]["template"]["spec"];
        let resources = &pod["containers"][0]["resources"];
        ensure!(resources["claims"] == json!([{"name": "gpu"}]), "{resources}");
        ensure!(!resources.to_string().contains("amd.com/gpu"), "{resources}");
        ensure!(pod["affinity"]["nodeAffinity"] == Value::Null, "{}", pod["affinity"]);
        let claim = claim_of(&deployment).map_err(anyhow::Error::msg)?;
        let template = bench.wait_for("ResourceClaimTemplate", (Some(at.0), &claim), |_| Ok(())).await?;
        let request = &template.data["spec"]["spec"]["devices"]["requests"][0]["exactly"];
        let expression = request["selectors"][0]["cel"]["expression"].as_str().unwrap_or_default();
        ensure!(request["deviceClassName"] == "gpu.amd.com" && request["count"] == 1, "{request}");
        ensure!(expression.contains(&format!("quantity(\"{units}\")")), "{expression}");
        let owner = template.owner_references().first().cloned().context("no owner")?;
        ensure!(owner.controller == Some(true) && owner.name == "code", "{owner:?}");
        claims.push(claim);
    }
    // Nodes need no labels, and the scheduler says where there is no card.
    bench.condition(at, "Scheduled", "Unknown", "Scheduling", &["primary (0 of 1)"]).await?;
    bench
        .wait_for("GpuProfile", (None, "claim-rx"), |p| holds(p, "NodesMatched", "Unknown", "ByClaim", &[]))
        .await?;
    let writes = "atlas_writes_total{kind=\"ResourceClaimTemplate\"}";
    ensure!(bench.metric(writes).await? == 2.0, "an unchanged claim template is written once");

    // A template cannot change: another card makes another one, and the one before goes.
    let patch = Patch::Merge(json!({"spec": {"vram": "16368Mi"}}));
    bench.api("GpuProfile", None).patch("claim-rx", &PatchParams::default(), &patch).await?;
    let before = claims.pop().context("two claims")?;
    let deployment = bench
        .wait_for("Deployment", (Some(at.0), "code-t-fallback"), |d| {
            let name = claim_of(d)?;
            if name == before { Err(name) } else { Ok(()) }
        })
        .await?;
    claims.push(claim_of(&deployment).map_err(anyhow::Error::msg)?);
    claims.sort();
    wait_until("the claim template before to go", LONG, async || {
        let all = bench.api("ResourceClaimTemplate", Some(at.0)).list(&ListParams::default()).await;
        let mut found: Vec<String> = all.map_err(|e| e.to_string())?.iter().map(|t| t.name_any()).collect();
        found.sort();
        if found == claims { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await?;
    bench.remove_model(at).await?;
    for name in ["claim-xtx", "claim-rx"] {
        bench.api("GpuProfile", None).delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}
