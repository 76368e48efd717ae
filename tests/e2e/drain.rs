//! `kubectl drain` of each node, by the real eviction API: no drain waits for ever, and no request is lost to one.

use anyhow::{Context, Result, ensure};
use atlas_tests::{
    lab::{FALLBACK_NODE, PLAIN_NODE, PRIMARY_NODE},
    support::wait_until,
    tour::{MODEL, NAMESPACE, stage::Stage},
};
use tokio::sync::oneshot;

use super::PATIENCE;

/// The model has two tiers when this begins, and one when it ends.
pub async fn every_node_can_be_drained(stage: &mut Stage) -> Result<()> {
    let url = format!("{}/models", stage.service_url().await?);
    for nodes in [&[PRIMARY_NODE][..], &[FALLBACK_NODE], &[PLAIN_NODE]] {
        let (drained, lost) = while_asking(&url, drain(stage, nodes)).await?;
        drained.with_context(|| format!("{nodes:?}"))?;
        ensure!(lost.is_empty(), "{nodes:?}: lost {lost:?}");
        give_back(stage, nodes, "2").await?;
    }
    // The second engine is the last, and the first has no other node to come up on: waiting for it would be in vain.
    let both = [PRIMARY_NODE, FALLBACK_NODE];
    for node in both {
        drain(stage, &[node]).await.with_context(|| format!("{node}, after the others of {both:?}"))?;
    }
    give_back(stage, &both, "2").await?;
    // With one tier its only engine goes, and comes back with its node.
    let shorten = "--patch=[{\"op\": \"remove\", \"path\": \"/spec/tiers/1\"}]";
    stage.kubectl(&["patch", "atlasmodel", "-n", NAMESPACE, MODEL, "--type=json", shorten]).await?;
    drain(stage, &[PRIMARY_NODE]).await.context("with one tier")?;
    give_back(stage, &[PRIMARY_NODE], "1").await
}

/// As people do it before they work on nodes.
pub async fn drain(stage: &Stage, nodes: &[&str]) -> Result<()> {
    let flags = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s"];
    let arguments: Vec<&str> = [&["drain"], nodes, &flags].concat();
    stage.kubectl(&arguments).await?;
    Ok(())
}

/// Lets pods come to the nodes again, and waits until all of them are back.
async fn give_back(stage: &Stage, nodes: &[&str], engines: &str) -> Result<()> {
    let arguments: Vec<&str> = [&["uncordon"], nodes].concat();
    stage.kubectl(&arguments).await?;
    let ready = |selector: &'static str, wanted: String| async move {
        let path = "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status} {end}";
        let found = stage.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", selector, "-o", path]).await;
        let found = found.map_err(|error| format!("{error:#}"))?;
        let count = found.split_whitespace().filter(|status| *status == "True").count().to_string();
        if count == wanted { Ok(()) } else { Err(format!("{selector}: {found}, wanted {wanted}")) }
    };
    wait_until("engines and gateways to be back", PATIENCE, || async {
        ready("app.kubernetes.io/component=engine", engines.to_owned()).await?;
        ready("app.kubernetes.io/component=gateway", "2".to_owned()).await
    })
    .await?;
    stage
        .kubectl(&["wait", "atlasmodel", "-n", NAMESPACE, MODEL, "--for=condition=Ready", "--timeout=60s"])
        .await?;
    Ok(())
}

/// Asks again and again while something goes on; what failed comes back.
async fn while_asking<T>(url: &str, work: impl Future<Output = T>) -> Result<(T, Vec<String>)> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
    let (done, mut ended) = oneshot::channel::<()>();
    let asking = async {
        let mut lost = Vec::new();
        while ended.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            match client.get(url).send().await {
                Ok(answer) if answer.status().is_success() => {}
                Ok(answer) => lost.push(answer.status().to_string()),
                Err(error) => lost.push(format!("{error:?}")),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        lost
    };
    let working = async {
        let output = work.await;
        // The other side waits for it.
        let _ = done.send(());
        output
    };
    let (output, lost) = tokio::join!(working, asking);
    Ok((output, lost))
}
