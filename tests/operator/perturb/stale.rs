//! An operator that starts on lists of the past: it catches up, and does no harm before it has.

use anyhow::{Context, Result, ensure};

use super::{next_namespace, restart, script::Stage};

/// Which lists are old, and what the path of such a list holds.
type Variant = (&'static str, fn(&str) -> bool);

const VARIANTS: [Variant; 3] = [
    ("every list", |_| true),
    ("the list of models", |path| path.contains("/atlasmodels")),
    ("every list but that of models", |path| !path.contains("/atlasmodels")),
];

pub async fn lists_of_the_past_harm_nothing(stage: &Stage<'_>) -> Result<()> {
    for (what, is_old) in VARIANTS {
        let namespace = next_namespace();
        stage.proxy.begin(&namespace, None);
        restart(stage.bench).await?;
        stage.create(&namespace).await?;
        let mut lists = stage.proxy.take_lists().await?;
        ensure!(lists.len() >= 10, "{:?}", lists.keys());
        lists.retain(|path, _| is_old(path));
        stage.change(&namespace).await?;
        stage.shorten(&namespace).await?;
        let generation = async || {
            anyhow::Ok(
                stage
                    .bench
                    .api("Deployment", Some(&namespace))
                    .get("code-t-primary")
                    .await?
                    .metadata
                    .generation,
            )
        };
        let before = generation().await?;
        stage.proxy.serve_stale(lists);
        restart(stage.bench).await?;
        stage.rest(&namespace, 2).await.with_context(|| what.to_owned())?;
        stage.stay(&namespace, 2).await.with_context(|| what.to_owned())?;
        stage.check_writes().with_context(|| what.to_owned())?;
        ensure!(generation().await? == before, "{what} old: the engine that serves was rolled");
        println!("{what} old: no harm");
        stage.delete(&namespace).await?;
    }
    Ok(())
}
