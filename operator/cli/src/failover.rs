//! `failover`: pins a model's traffic to one tier, or gives it back to automatic failover.

use atlas_crds::AtlasModel;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::{FailoverArgs, Target},
    cluster::Cluster,
    error::CliError,
};

/// Changes `spec.failover` and says what follows.
pub async fn run(args: &FailoverArgs, target: &Target) -> Result<Outcome, CliError> {
    let cluster = Cluster::connect(target).await?;
    let model = cluster.model(&args.name).await?;
    let patch = build_patch(&model, args.to.as_deref())?;
    let what = format!("AtlasModel {}", args.name);
    let api: Api<AtlasModel> = cluster.api();
    api.patch(&args.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(|source| CliError::Write { what, source })?;
    match &args.to {
        Some(tier) => {
            let ready = is_tier_ready(&model, tier);
            println!("{}: traffic goes to tier {tier} until `failover {} --auto`", args.name, args.name);
            if !ready {
                println!("tier {tier} is not ready now: nothing answers until it is");
            }
            Ok(if ready { Outcome::Well } else { Outcome::Problem })
        }
        None => {
            println!("{}: failover is automatic", args.name);
            Ok(Outcome::Well)
        }
    }
}

/// The merge patch: what it removes is null, as the API's rules want it.
fn build_patch(model: &AtlasModel, to: Option<&str>) -> Result<Value, CliError> {
    let failover = match to {
        None => json!({"mode": "Auto", "pinnedTier": null}),
        Some(tier) if model.spec.tiers.iter().any(|known| known.name == tier) => {
            json!({"mode": "Pinned", "pinnedTier": tier})
        }
        Some(tier) => {
            let known = model.spec.tiers.iter().map(|tier| tier.name.clone()).collect();
            return Err(CliError::UnknownTier { tier: tier.to_owned(), known });
        }
    };
    // Somebody else's change in between is not overwritten unseen.
    Ok(json!({"metadata": {"resourceVersion": model.resource_version()}, "spec": {"failover": failover}}))
}

fn is_tier_ready(model: &AtlasModel, tier: &str) -> bool {
    let tiers = model.status.iter().flat_map(|status| &status.tiers);
    tiers.into_iter().any(|status| status.name == tier && status.ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_names_a_tier_that_is_there() {
        let model: AtlasModel = serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
            "metadata": {"name": "code", "resourceVersion": "7"},
            "spec": {"tiers": [{"name": "a", "gpuProfile": "p", "model": {"source": "file:///m"}}]},
        }))
        .unwrap();
        let pinned = build_patch(&model, Some("a")).unwrap();
        assert_eq!(pinned["spec"]["failover"], json!({"mode": "Pinned", "pinnedTier": "a"}));
        assert_eq!(pinned["metadata"]["resourceVersion"], "7");
        let auto = build_patch(&model, None).unwrap();
        assert_eq!(auto["spec"]["failover"], json!({"mode": "Auto", "pinnedTier": null}));
        let error = build_patch(&model, Some("b")).unwrap_err().to_string();
        assert_eq!(error, "there is no tier \"b\": use one of a");
    }
}
