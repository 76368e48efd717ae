//! `kubectl-atlas` against a real API server: what it reads, the one thing it changes, and how it exits.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use atlas_tests::{
    cluster::ApiServer,
    support::{binary, wide_header},
};
use serde_json::{Value, json};
use tokio::process::Command;

/// What a command printed, and how it ended.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

struct Bench {
    server: ApiServer,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn atlas(&self, arguments: &[&str]) -> Result<Ran> {
        let output = Command::new(binary("kubectl-atlas")?)
            .args(arguments)
            .env("KUBECONFIG", self.server.kubeconfig_path())
            .env("COLUMNS", "120")
            .kill_on_drop(true)
            .output()
            .await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.server.kubectl(arguments).await?;
        ensure!(output.success, "kubectl {}: {}", arguments.join(" "), output.stderr);
        Ok(output.stdout)
    }

    /// Writes a manifest and applies it.
    async fn apply(&self, text: &str) -> Result<()> {
        let path = self.folder.path().join("manifest.yaml");
        std::fs::write(&path, text)?;
        self.kubectl(&["apply", "--server-side", "-f", &path.display().to_string()]).await.map(|_| ())
    }
}

#[tokio::test]
async fn every_command_tells_what_the_cluster_has() -> Result<()> {
    let server = ApiServer::start().await?;
    server.apply_crds().await?;
    let bench = Bench { server, folder: tempfile::tempdir()? };
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples");
    for file in ["gpuprofiles.yaml", "atlasmodel.yaml"] {
        bench.kubectl(&["apply", "--server-side", "-f", &samples.join(file).display().to_string()]).await?;
    }
    plan_names_what_each_tier_needs(&bench).await?;
    mistakes_name_what_there_is(&bench).await?;
    status_asks_for_the_operator_and_then_shows_the_tiers(&bench).await?;
    plan_takes_an_engines_word_for_a_file_on_its_node(&bench).await?;
    failover_changes_the_model_and_nothing_else(&bench).await?;
    explain_tells_which_profile_a_node_is(&bench).await?;
    config_puts_in_the_address_that_is_asked_for(&bench).await
}

async fn plan_names_what_each_tier_needs(bench: &Bench) -> Result<()> {
    let path = bench.folder.path().join("wide.gguf");
    std::fs::write(&path, wide_header())?;
    let headers = [format!("primary={}", path.display()), format!("fallback={}", path.display())];
    let options = ["--header", &headers[0], "--header", &headers[1]];
    let ran = bench.atlas(&[&["plan", "code", "-n", "atlas", "-o", "json"], &options[..]].concat()).await?;
    ensure!(ran.code == Some(2), "{:?} {} {}", ran.code, ran.stdout, ran.stderr);
    let plan: Value = serde_json::from_str(&ran.stdout)?;
    let fits = |index: usize| plan["tiers"][index]["fits"].as_bool();
    ensure!((fits(0), fits(1), plan["fits"].as_bool()) == (Some(true), Some(false), Some(false)), "{plan}");
    ensure!(plan["tiers"][1]["advice"][0]["change"] == "contextTokens", "{plan}");
    let table = bench.atlas(&[&["plan", "code", "-n", "atlas"], &options[..]].concat()).await?.stdout;
    for part in ["atlas/code: does not fit", "KV cache", "contextTokens 4096 -> ", "gpuProfile rx-7900-xtx"] {
        ensure!(table.contains(part), "{part} is missing: {table}");
    }
    Ok(())
}

async fn plan_takes_an_engines_word_for_a_file_on_its_node(bench: &Bench) -> Result<()> {
    let tier =
        "{name: only, gpuProfile: rx-7600, contextTokens: 2048, model: {source: \"file:///nowhere/m.gguf\"}}";
    bench
        .apply(&format!(
            "apiVersion: atlas.gillsystems.com/v1alpha1\nkind: AtlasModel\nmetadata: {{name: on-node, namespace: atlas}}\nspec: {{tiers: [{tier}]}}\n"
        ))
        .await?;
    let untold = bench.atlas(&["plan", "on-node", "-n", "atlas"]).await?;
    ensure!(untold.code == Some(2) && untold.stdout.contains("no engine has told"), "{}", untold.stdout);
    let header = json!({
        "source": "file:///nowhere/m.gguf", "architecture": "llama", "parameters": 6_700_000_000_i64,
        "layerWeightBytes": vec![112 << 20; 32], "otherWeightBytes": 16 << 20, "keyElements": 1024, "valueElements": 1024,
        "hidden": 4096, "feedForward": 11008, "queryElements": 4096, "takesQ8Cache": true, "vocabulary": 32000,
        "trainedContext": 8192,
    });
    let status = json!({"status": {"tiers": [{"name": "only", "header": header}]}}).to_string();
    bench
        .kubectl(&[
            "-n",
            "atlas",
            "patch",
            "am/on-node",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ])
        .await?;
    let ran = bench.atlas(&["plan", "on-node", "-n", "atlas", "-o", "json"]).await?;
    let plan: Value = serde_json::from_str(&ran.stdout)?;
    ensure!(ran.code == Some(0) && plan["tiers"][0]["weights"] == 3600_i64 << 20, "{plan} {}", ran.stderr);
    bench.kubectl(&["-n", "atlas", "delete", "am/on-node"]).await.map(|_| ())
}

async fn mistakes_name_what_there_is(bench: &Bench) -> Result<()> {
    for (arguments, says) in [
        (&["plan", "cod", "-n", "atlas"][..], "there are code"),
        (&["status", "cod", "-n", "elsewhere"], "the namespace has none"),
        (&["explain", "nowhere"], "Node nowhere does not exist"),
        (&["failover", "code", "-n", "atlas", "--to", "third"], "use one of primary, fallback"),
        (&["config", "code", "-n", "atlas"], "the operator writes it once the model is accepted"),
    ] {
        let ran = bench.atlas(arguments).await?;
        ensure!(ran.code == Some(1) && ran.stderr.contains(says), "{says}: {:?} {}", ran.code, ran.stderr);
    }
    Ok(())
}

async fn status_asks_for_the_operator_and_then_shows_the_tiers(bench: &Bench) -> Result<()> {
    let ran = bench.atlas(&["status", "-n", "atlas"]).await?;
    ensure!(ran.code == Some(2) && ran.stdout.contains("is the operator running?"), "{}", ran.stdout);
    let status = r#"{"status": {"activeTier": "fallback", "tiers": [
        {"name": "primary", "ready": 0, "replicas": 1, "message": "its pod is not ready"},
        {"name": "fallback", "ready": 1, "replicas": 1, "node": "n2"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": "m",
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#;
    bench
        .kubectl(&["-n", "atlas", "patch", "am/code", "--subresource=status", "--type=merge", "-p", status])
        .await?;
    let ran = bench.atlas(&["status", "code", "-n", "atlas"]).await?;
    ensure!(ran.code == Some(0), "{} {}", ran.stdout, ran.stderr);
    for part in ["atlas/code: Ready", "its pod is not ready", "n2", "serves"] {
        ensure!(ran.stdout.contains(part), "{part} is missing: {}", ran.stdout);
    }
    Ok(())
}

async fn failover_changes_the_model_and_nothing_else(bench: &Bench) -> Result<()> {
    let spec = async || -> Result<Value> {
        let text = bench.kubectl(&["-n", "atlas", "get", "am/code", "-o", "json"]).await?;
        Ok(serde_json::from_str::<Value>(&text)?["spec"].clone())
    };
    let before = spec().await?;
    let ran = bench.atlas(&["failover", "code", "-n", "atlas", "--to", "fallback"]).await?;
    ensure!(ran.code == Some(0), "{} {}", ran.stdout, ran.stderr);
    let pinned = spec().await?;
    ensure!(
        pinned["failover"]["mode"] == "Pinned" && pinned["failover"]["pinnedTier"] == "fallback",
        "{pinned}"
    );
    // A tier that is not ready is pinned all the same, with a word about it.
    let ran = bench.atlas(&["failover", "code", "-n", "atlas", "--to", "primary"]).await?;
    ensure!(ran.code == Some(2) && ran.stdout.contains("is not ready now"), "{}", ran.stdout);
    let ran = bench.atlas(&["failover", "code", "-n", "atlas", "--auto"]).await?;
    ensure!(ran.code == Some(0), "{}", ran.stderr);
    let after = spec().await?;
    ensure!(before == after, "{before} became {after}");
    Ok(())
}

async fn explain_tells_which_profile_a_node_is(bench: &Bench) -> Result<()> {
    bench
        .apply("{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {amd.com/gpu.vram: 24G, amd.com/gpu.cu-count: '96'}}}")
        .await?;
    let ran = bench.atlas(&["explain", "n1", "-o", "json"]).await?;
    let report: Value = serde_json::from_str(&ran.stdout)?;
    let profiles = report["profiles"].as_array().context("profiles")?;
    let matches = |name: &str| profiles.iter().any(|p| p["profile"] == name && p["matches"] == true);
    ensure!(matches("rx-7900-xtx") && !matches("rx-7600"), "{report}");
    // No kubelet, no device plugin: both are told.
    ensure!(
        ran.code == Some(2) && report["problems"].to_string().contains("install the AMD device plugin"),
        "{report}"
    );
    Ok(())
}

async fn config_puts_in_the_address_that_is_asked_for(bench: &Bench) -> Result<()> {
    bench
        .apply(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: code-llm-config, namespace: atlas}\ndata:\n  llm_config.yaml: |\n    hardware:\n      llm_server:\n        host: code.atlas.svc\n        port: 8080\n",
        )
        .await?;
    let ran = bench.atlas(&["config", "code", "-n", "atlas"]).await?;
    ensure!(
        ran.code == Some(0) && ran.stdout.contains("host: code.atlas.svc"),
        "{} {}",
        ran.stdout,
        ran.stderr
    );
    let ran = bench.atlas(&["config", "code", "-n", "atlas", "--host", "192.0.2.7", "--port", "81"]).await?;
    ensure!(ran.stdout.contains("host: 192.0.2.7") && ran.stdout.contains("port: 81"), "{}", ran.stdout);
    Ok(())
}
