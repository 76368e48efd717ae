//! Every child edited, robbed of its labels, and deleted by hand.

use anyhow::{Context, Result, ensure};
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    canonical::{CHILDREN, list},
    next_namespace, restart,
    script::Stage,
};

pub async fn edits_and_deletions_by_hand_are_put_back(stage: &Stage<'_>) -> Result<()> {
    let namespace = next_namespace();
    stage.proxy.begin(&namespace, None);
    restart(stage.bench).await?;
    stage.create(&namespace).await?;
    let children = list(stage.bench, &namespace, &CHILDREN).await?;
    ensure!(children.len() == 15, "{:?}", children.keys());
    for (name, child) in &children {
        let (kind, plain) = name.split_once('/').context("no kind")?;
        let api = stage.bench.api(kind, Some(&namespace));
        // Without labels it is out of the watches' sight.
        let bare = json!({"metadata": {"labels": null}});
        for edit in [edit_of(kind, child), bare] {
            let edited = api.patch(plain, &PatchParams::default(), &Patch::Merge(&edit)).await?;
            ensure!(edited.resource_version() != child.resource_version(), "{name}: {edit} changes nothing");
            stage.rest(&namespace, 0).await.with_context(|| format!("{name} edited: {edit}"))?;
        }
    }
    let now = list(stage.bench, &namespace, &CHILDREN).await?;
    for (name, child) in &children {
        ensure!(now[name].uid() == child.uid(), "{name} was made anew because of an edit");
    }
    for name in children.keys() {
        let (kind, plain) = name.split_once('/').context("no kind")?;
        stage.bench.api(kind, Some(&namespace)).delete(plain, &DeleteParams::background()).await?;
        stage.rest(&namespace, 0).await.with_context(|| format!("{name} deleted"))?;
    }
    println!("every child edited and deleted by hand: {} of them", children.len());
    stage.stay(&namespace, 0).await?;
    stage.delete(&namespace).await
}

fn edit_of(kind: &str, child: &DynamicObject) -> Value {
    let mut edit = json!({"metadata": {"labels": {"app.kubernetes.io/name": "edited"}}});
    let containers = child.data.pointer("/spec/template/spec/containers").cloned();
    match kind {
        "Deployment" => {
            let mut containers = containers.unwrap_or_default();
            containers[0]["image"] = "edited:by-hand".into();
            edit["spec"] = json!({"replicas": 5, "template": {"spec": {"containers": containers}}});
        }
        "Service" => edit["spec"] = json!({"selector": {"app": "edited"}}),
        "ConfigMap" if child.data["data"]["last-good"].is_string() => {
            edit["data"] = json!({"last-good": "edited"});
        }
        "ConfigMap" => edit["data"] = json!({"llm_config.yaml": "edited"}),
        "PodDisruptionBudget" => edit["spec"] = json!({"maxUnavailable": 7}),
        "NetworkPolicy" => edit["spec"] = json!({"ingress": []}),
        "RoleBinding" => edit["subjects"] = json!([]),
        _ => {}
    }
    edit
}
