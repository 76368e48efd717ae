//! The main job on the whole local cluster, as `make run` shows it, and what users see when their input is wrong.
//!
//! One cluster serves every scenario, one after another: starting it is what takes the time.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "e2e/certificate.rs"]
mod certificate;
#[path = "e2e/command_line.rs"]
mod command_line;
#[path = "e2e/drain.rs"]
mod drain;
#[path = "e2e/reported.rs"]
mod reported;
#[path = "e2e/warm.rs"]
mod warm;
#[path = "e2e/webhook.rs"]
mod webhook;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use atlas_tests::{
    assets::cache_folder,
    lab::MODEL_FILE,
    support::{init_logging, wait_until},
    tour::{
        self, NAMESPACE,
        report::{Report, Screen},
        stage::{LocalStage, Stage},
    },
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_answers_through_the_loss_of_its_card_and_bad_input_is_explained() -> Result<()> {
    init_logging();
    let folder = tempfile::tempdir()?;
    let corrupt = folder.path().join("corrupt.gguf");
    std::fs::write(&corrupt, b"GGUF, but not really: this file ends before it begins")?;
    // Another way to the same model, which a scenario takes away.
    let served = folder.path().join(warm::FILE);
    std::os::unix::fs::symlink(cache_folder().join("models").join(MODEL_FILE), &served)?;
    let models =
        BTreeMap::from([("corrupt.gguf".to_owned(), corrupt), (warm::FILE.to_owned(), served.clone())]);

    let screen = Screen::default();
    let mut report = Report::default();
    let mut stage = Stage::Local(Box::new(LocalStage::start(&screen, &mut report, models).await?));
    let outcome = scenarios(&mut stage, &screen, &mut report, &served).await;
    if outcome.is_err() {
        // What an operator on call would look at first.
        for arguments in [&["describe", "atlasmodels", "-A"][..], &["get", "pods,events", "-A"][..]] {
            screen.detail(&stage.kubectl(arguments).await.unwrap_or_default());
        }
    }
    stage.stop().await;
    outcome
}

async fn scenarios(stage: &mut Stage, screen: &Screen, report: &mut Report, served: &Path) -> Result<()> {
    tour::run(stage, screen, report).await?;
    the_report_says_what_happened(report)?;
    the_description_reads_well(stage).await?;
    the_openai_client_works(stage).await?;
    command_line::it_tells_what_engines_do(stage).await?;
    a_hand_edit_is_put_back(stage).await?;
    a_younger_model_waits_for_the_card(stage).await?;
    webhook::what_cannot_fit_is_refused_through_the_service(stage).await?;
    drain::every_node_can_be_drained(stage).await?;
    certificate::clients_speak_tls_to_the_only_gateway(stage).await?;
    stage.kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, "code", "--timeout=60s"]).await?;
    nothing_is_left(stage).await?;
    reported::a_file_on_the_node_is_planned_with_the_engines_word(stage).await?;
    warm::a_warm_tier_takes_over_without_a_download(stage, served).await?;
    for case in bad_inputs() {
        screen.heading(case.name);
        case.check(stage, screen).await.with_context(|| case.name)?;
    }
    two_profiles_on_one_node(stage).await
}

fn the_report_says_what_happened(report: &Report) -> Result<()> {
    let tiers: Vec<&str> = report.answers.iter().map(|answer| answer.answer.tier.as_str()).collect();
    ensure!(tiers == ["primary", "fallback", "primary"], "{tiers:?}");
    ensure!(report.answers.iter().all(|answer| !answer.answer.text.trim().is_empty()), "an answer is empty");
    ensure!(report.lost == Some(0), "lost {:?}", report.lost);
    ensure!(report.answered > 0, "the load got no answer at all");
    ensure!(report.failover_ms.is_some() && report.failback_ms.is_some(), "nothing was measured");
    Ok(())
}

async fn the_description_reads_well(stage: &Stage) -> Result<()> {
    let text = stage.kubectl(&["describe", "atlasmodel", "-n", NAMESPACE, "code"]).await?;
    for part in ["FailedOver", "FailedBack", "Active Tier:", "http://code.atlas.svc:8080/v1"] {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

/// The client that the tour's last lines propose.
async fn the_openai_client_works(stage: &mut Stage) -> Result<()> {
    let url = stage.service_url().await?;
    let script = format!(
        r#"
from openai import OpenAI
client = OpenAI(base_url="{url}", api_key="unused", max_retries=0)
assert [m.id for m in client.models.list()] == ["code"]
answer = client.chat.completions.create(model="code", max_tokens=8, temperature=0,
    messages=[{{"role": "user", "content": "Say hello."}}])
assert answer.model == "code" and answer.choices[0].message.content.strip(), answer
assert answer.usage.completion_tokens > 0, answer.usage
pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(
    model="code", max_tokens=8, temperature=0, stream=True,
    messages=[{{"role": "user", "content": "Say hello."}}]) if chunk.choices]
assert "".join(pieces) == answer.choices[0].message.content, pieces
try:
    client.chat.completions.create(model="gpt-4", messages=[{{"role": "user", "content": "?"}}])
except Exception as error:
    assert error.status_code == 404 and "code" in str(error), error
else:
    raise AssertionError("an unknown model was served")
"#
    );
    run_python(&script, None).await
}

/// Runs a script among the clients that `make setup` installs; `root` is the only certificate that it trusts.
async fn run_python(script: &str, root: Option<&Path>) -> Result<()> {
    let python = cache_folder().join("venv/bin/python");
    let output = tokio::process::Command::new(&python)
        .args(["-c", script])
        .envs(root.map(|root| ("SSL_CERT_FILE", root)))
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{}: run `make setup`", python.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn a_hand_edit_is_put_back(stage: &Stage) -> Result<()> {
    let scale = ["scale", "deployment", "-n", NAMESPACE, "code-t-fallback", "--replicas=0"];
    stage.kubectl(&scale).await?;
    let replicas =
        ["get", "deployment", "-n", NAMESPACE, "code-t-fallback", "-o", "jsonpath={.spec.replicas}"];
    wait_until("the Deployment's replicas to be put back", PATIENCE, || async {
        match stage.kubectl(&replicas).await {
            Ok(count) if count == "1" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    Ok(())
}

async fn a_younger_model_waits_for_the_card(stage: &Stage) -> Result<()> {
    let younger = model("younger", "rx-7900-xtx", "smollm2-135m-primary.gguf", None);
    stage.apply(&younger).await?;
    let message = condition(stage, "younger", "Scheduled", "CardInUse").await?;
    ensure!(message.contains("code"), "the holder is not named: {message}");
    stage.kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, "younger"]).await?;
    Ok(())
}

/// Of every kind that the cluster knows, but for events, which are told for a while and then forgotten.
async fn nothing_is_left(stage: &Stage) -> Result<()> {
    let kinds = stage.kubectl(&["api-resources", "--verbs=list", "--namespaced", "-o", "name"]).await?;
    let kinds: Vec<&str> =
        kinds.lines().filter(|kind| *kind != "events" && !kind.starts_with("events.")).collect();
    ensure!(kinds.len() > 15, "{kinds:?}");
    let kinds = kinds.join(",");
    let arguments = ["get", kinds.as_str(), "-n", NAMESPACE, "-o", "name"];
    wait_until("everything of the deleted model to be gone", PATIENCE, || async {
        let left = stage.kubectl(&arguments).await.map_err(|error| format!("{error:#}"))?;
        let ours: Vec<&str> =
            left.lines().filter(|name| name.contains("/code") || name.contains("atlas-gateway")).collect();
        if ours.is_empty() { Ok(()) } else { Err(format!("{ours:?}")) }
    })
    .await?;
    Ok(())
}

/// A manifest that cannot work, and what its author reads.
struct BadInput {
    name: &'static str,
    manifest: Value,
    condition: &'static str,
    reason: &'static str,
    /// What the message must name.
    named: &'static [&'static str],
}

fn bad_inputs() -> Vec<BadInput> {
    let zeros = "0".repeat(64);
    vec![
        BadInput {
            name: "unknown profile",
            manifest: model("bad-profile", "rx-9999", "smollm2-135m-primary.gguf", None),
            condition: "Accepted",
            reason: "ProfileNotFound",
            named: &["rx-9999", "rx-7900-xtx"],
        },
        BadInput {
            name: "missing model file",
            manifest: model("bad-file", "rx-7900-xtx", "missing.gguf", None),
            condition: "ModelCached",
            reason: "ModelUnavailable",
            named: &["missing.gguf", "404"],
        },
        BadInput {
            name: "corrupt model file",
            manifest: model("bad-gguf", "rx-7900-xtx", "corrupt.gguf", None),
            condition: "ModelCached",
            reason: "ModelInvalid",
            named: &["GGUF version", "exit code 11"],
        },
        BadInput {
            name: "another checksum",
            manifest: model("bad-sum", "rx-7900-xtx", "smollm2-135m-primary.gguf", Some(&zeros)),
            condition: "ModelCached",
            reason: "ChecksumMismatch",
            named: &["sha256"],
        },
        BadInput {
            name: "no node has the card",
            manifest: model("bad-node", "w7900", "smollm2-135m-primary.gguf", None),
            condition: "Scheduled",
            reason: "NoMatchingNode",
            named: &["48G", "96"],
        },
    ]
}

impl BadInput {
    async fn check(&self, stage: &Stage, screen: &Screen) -> Result<()> {
        stage
            .apply(&json!({"apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile",
                "metadata": {"name": "w7900"},
                "spec": {"product": "Radeon PRO W7900", "gfxTarget": "gfx1100", "vram": "49136Mi",
                         "match": {"vramClass": "48G", "computeUnits": 96}}}))
            .await?;
        stage.apply(&self.manifest).await?;
        let name = self.manifest["metadata"]["name"].as_str().unwrap();
        let message = condition(stage, name, self.condition, self.reason).await?;
        screen.detail(&message);
        for word in self.named {
            ensure!(message.contains(word), "{word:?} is not named in: {message}");
        }
        let ready = condition_of(stage, name, "Ready").await?;
        ensure!(ready["status"] == "False", "Ready is {ready}");
        let field = format!("involvedObject.name={name}");
        let events = [
            "get",
            "events",
            "-n",
            NAMESPACE,
            "--field-selector",
            &field,
            "-o",
            "jsonpath={.items[*].reason}",
        ];
        wait_until("an Event with the reason", PATIENCE, || async {
            match stage.kubectl(&events).await {
                Ok(reasons) if reasons.split_whitespace().any(|reason| reason == self.reason) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        stage.kubectl(&["delete", "atlasmodel", "-n", NAMESPACE, name]).await?;
        Ok(())
    }
}

async fn two_profiles_on_one_node(stage: &Stage) -> Result<()> {
    stage
        .apply(&json!({"apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile",
            "metadata": {"name": "rx-7600-again"},
            "spec": {"product": "Radeon RX 7600", "gfxTarget": "gfx1102", "vram": "8176Mi",
                     "match": {"vramClass": "8G", "computeUnits": 32}}}))
        .await?;
    let path = "jsonpath={.status.conditions[?(@.type==\"Unambiguous\")].message}";
    wait_until("the profile to name the other one", PATIENCE, || async {
        match stage.kubectl(&["get", "gpuprofile", "rx-7600-again", "-o", path]).await {
            Ok(message) if message.contains("rx-7600") && message.contains("node-7600") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    Ok(())
}

fn model(name: &str, profile: &str, file: &str, sha256: Option<&str>) -> Value {
    let mut source = json!({"source": format!("http://models.atlas.test:8089/{file}")});
    if let Some(sha256) = sha256 {
        source["sha256"] = json!(sha256);
    }
    json!({"apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"rollout": {"drainTimeout": "5s"},
                 "tiers": [{"name": "only", "gpuProfile": profile, "contextTokens": 512, "model": source}]}})
}

/// Waits until the model's condition is False for this reason, and gives its message.
async fn condition(stage: &Stage, name: &str, kind: &str, reason: &str) -> Result<String> {
    let message = wait_until(&format!("{kind}=False, {reason} on {name}"), PATIENCE, || async {
        match condition_of(stage, name, kind).await {
            Ok(seen) if seen["status"] == "False" && seen["reason"] == reason => {
                Ok(seen["message"].as_str().unwrap_or_default().to_owned())
            }
            Ok(seen) => Err(seen.to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;
    Ok(message)
}

async fn condition_of(stage: &Stage, name: &str, kind: &str) -> Result<Value> {
    let text = stage.kubectl(&["get", "atlasmodel", "-n", NAMESPACE, name, "-o", "json"]).await?;
    let object: Value = serde_json::from_str(&text)?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or(Value::Null))
}
