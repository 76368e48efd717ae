//! The webhook as the chart installs it: the API server reaches it through its Service.

use anyhow::{Result, ensure};
use atlas_tests::{support::wait_until, tour::stage::Stage};
use serde_json::json;

use super::{PATIENCE, model};

pub async fn what_cannot_fit_is_refused_through_the_service(stage: &Stage) -> Result<()> {
    let mut manifest = model("too-big", "rx-7600", "smollm2-135m-primary.gguf", None);
    manifest["spec"]["tiers"][0]["maxVram"] = json!("64Mi");
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    serde_json::to_writer(file.as_file(), &manifest)?;
    let path = file.path().display().to_string();
    // Each replica refuses what it knows: the one that does not lead reads the header when it is asked first.
    let refusal = wait_until("the refusal", PATIENCE, || async {
        match stage.kubectl(&["apply", "--dry-run=server", "-f", &path]).await {
            Ok(accepted) => Err(accepted),
            Err(refusal) => Ok(format!("{refusal:#}")),
        }
    })
    .await?;
    for part in [
        "admission webhook \"atlasmodels.atlas.gillsystems.com\" denied the request: spec.tiers[only]: it needs",
        "of the 64 MiB that the Radeon RX 7600 offers",
    ] {
        ensure!(refusal.contains(part), "{part}: {refusal}");
    }
    Ok(())
}
