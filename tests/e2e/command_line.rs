//! `kubectl-atlas` as people run it while a model serves: what it shows of real engines, at rest and under load.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use atlas_tests::{
    lab::{FALLBACK_NODE, PRIMARY_NODE},
    support::{binary, wait_until},
    tour::{NAMESPACE, stage::Stage},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::PATIENCE;

fn atlas(stage: &Stage, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("kubectl-atlas")?);
    command.args(arguments).args(["-n", NAMESPACE, "--width", "160"]).env("KUBECONFIG", stage.kubeconfig());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

pub async fn it_tells_what_engines_do(stage: &mut Stage) -> Result<()> {
    let status = atlas(stage, &["status", "code"])?.output().await?;
    let text = String::from_utf8_lossy(&status.stdout);
    ensure!(status.status.code() == Some(0), "{text}{}", String::from_utf8_lossy(&status.stderr));
    for part in
        ["atlas/code: Ready", PRIMARY_NODE, FALLBACK_NODE, "serves", "stands by", " MiB of 22,000 MiB"]
    {
        ensure!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    watch_draws_again_and_again(stage).await?;
    doctor_judges_engines_at_work(stage).await
}

/// Two pictures, each with what engines say of their cards; and no word where nobody reads on.
async fn watch_draws_again_and_again(stage: &Stage) -> Result<()> {
    let mut watch: Child = atlas(stage, &["status", "code", "--watch"])?.spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().context("no output")?).lines();
    let (mut pictures, mut engines) = (0, 0);
    let read = async {
        while let Some(line) = lines.next_line().await? {
            ensure!(!line.contains('\x1b'), "escapes in a pipe: {line:?}");
            pictures += usize::from(line.contains("atlas/code: Ready"));
            engines += usize::from(line.ends_with(": cpu, no card"));
            if pictures == 3 {
                break;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, read).await.context("it draws no third picture")??;
    ensure!(engines == 4, "two engines in two pictures, and {engines} lines of them");
    drop(lines);
    let ended =
        tokio::time::timeout(PATIENCE, watch.wait_with_output()).await.context("it goes on for nobody")??;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success() && said.is_empty(), "{}: {said}", ended.status);
    Ok(())
}

/// Beside requests it measures; what is known of a processor is said to be no more than that.
async fn doctor_judges_engines_at_work(stage: &mut Stage) -> Result<()> {
    let url = format!("{}/chat/completions", stage.service_url().await?);
    let load = tokio::spawn(async move {
        let client = reqwest::Client::new();
        loop {
            let body = json!({"model": "code", "max_tokens": 64, "messages": [{"role": "user", "content": "Count to a hundred."}]});
            let _ = client.post(&url).json(&body).send().await;
        }
    });
    let report = wait_until("an engine at work to be judged", PATIENCE, async || {
        let ran = atlas(stage, &["doctor", "--model", "code", "-o", "json"]);
        let output = ran.map_err(|e| e.to_string())?.output().await.map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let report: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        let has = |check: &str, part: &str| {
            findings
                .iter()
                .any(|f| f["check"] == check && f["found"].as_str().is_some_and(|f| f.contains(part)))
        };
        let right = output.status.code() == Some(0)
            && has("speed", "tier primary generates ")
            && has("speed", "on the processor")
            && has("batch", "tier primary computes ")
            && has("KV cache", "tier primary uses ")
            && has("load", "tier fallback computed nothing")
            && has("memory", "tier primary needs ");
        if right { Ok(report) } else { Err(format!("{:?}: {text}", output.status.code())) }
    })
    .await;
    load.abort();
    let findings = report?["findings"].as_array().cloned().unwrap_or_default();
    let broken = findings.iter().find(|finding| finding["severity"] == "Broken");
    ensure!(broken.is_none(), "a model that serves is called broken: {broken:?}");
    // Nothing of this takes longer than a look, so the tier that served goes on serving.
    tokio::time::timeout(Duration::from_secs(60), super::condition_of(stage, "code", "Ready")).await??;
    Ok(())
}
