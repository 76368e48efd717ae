//! A leader that loses the Lease with a write under way, which takes place long after its successor is done.

use anyhow::{Context, Result, ensure};
use atlas_tests::{api_proxy::Fault, support::wait_until};
use serde_json::json;

use super::{
    next_namespace, restart,
    script::{LIMIT, Stage},
};

const SUCCESSOR: &str = "operator-q";

pub async fn a_deposed_leaders_late_write_is_put_right(stage: &Stage<'_>) -> Result<()> {
    let (namespace, bench) = (next_namespace(), stage.bench);
    stage.proxy.begin(&namespace, None);
    restart(bench).await?;
    stage.create(&namespace).await?;
    // The first write of the change is that of the last tier, which rolls first.
    stage.proxy.begin(&namespace, Some((Fault::Hold, 1)));
    let succession = async {
        stage.proxy.wait_for_strike().await;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let taken = json!({"spec": {"holderIdentity": SUCCESSOR, "renewTime": now}});
        bench.patch("Lease", ("atlas-system", "atlas-operator"), taken).await?;
        let mut deposed = bench.replace_operator(None).context("no operator")?;
        let ended = tokio::time::timeout(LIMIT, deposed.child.wait())
            .await
            .context("it goes on without the Lease")??;
        ensure!(!ended.success(), "a lost Lease is no clean end: {ended}");
        let successor = bench.spawn_operator(SUCCESSOR).await?;
        bench.replace_operator(Some(successor));
        anyhow::Ok(())
    };
    tokio::try_join!(stage.change(&namespace), succession)?;
    stage.shorten(&namespace).await?;
    stage.stay(&namespace, 2).await?;
    let before = stage.proxy.writes().len();
    stage.proxy.release();
    wait_until("the late write", LIMIT, async || {
        if stage.proxy.writes().len() > before { Ok(()) } else { Err("not yet") }
    })
    .await?;
    stage.rest(&namespace, 2).await?;
    stage.stay(&namespace, 2).await?;
    println!("a late write of a deposed leader: put right");
    stage.delete(&namespace).await
}
