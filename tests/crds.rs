//! The API as a real API server takes it: what is accepted, with which defaults, and what a refusal says.
//!
//! It needs the API server alone, on loopback; no controller runs, so nothing here is about what an object causes.

#[path = "crds/cases.rs"]
mod cases;
#[path = "crds/models.rs"]
mod models;
#[path = "crds/profiles.rs"]
mod profiles;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use atlas_tests::cluster::ApiServer;
use cases::{Case, Outcome};
use kube::Client;
use serde_json::{Value, json};

/// Where each kind is created.
const MODELS: &str = "/apis/atlas.gillsystems.com/v1alpha1/namespaces/default/atlasmodels";
const PROFILES: &str = "/apis/atlas.gillsystems.com/v1alpha1/gpuprofiles";

#[test]
fn checked_in_manifests_are_what_the_types_generate() -> Result<()> {
    for (name, content) in atlas_crds::manifests::render()? {
        for folder in ["crds/manifests", "helm/atlas-operator/files/crds"] {
            let path = repository().join(folder).join(&name);
            let current = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            ensure!(current == content, "{folder}/{name} is out of date: run `make generate`");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_api_server_takes_the_crds_and_answers_as_the_table_says() -> Result<()> {
    let server = ApiServer::start().await?;
    let client = server.client();
    let manifests = repository().join("crds/manifests");
    kubectl(&server, &["apply", "--server-side", "-f", &manifests.display().to_string()]).await?;
    kubectl(&server, &["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"])
        .await
        .context("a CRD was taken but its schema does not hold (see its conditions)")?;

    let mut wrong = Vec::new();
    for (path, table) in [(MODELS, models::CASES), (PROFILES, profiles::CASES)] {
        for case in table {
            if let Err(error) = check(&client, path, case).await {
                wrong.push(format!("{}: {error:#}", case.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} cases went wrong:\n{}", wrong.len(), wrong.join("\n"));

    kubectl_shows_columns_short_names_and_documentation(&server).await?;
    status_and_scale_are_subresources(&server, &client).await
}

/// Sends one manifest as a dry run with strict field validation, as `kubectl apply` does.
async fn check(client: &Client, path: &str, case: &Case) -> Result<()> {
    let answer =
        send(client, "POST", &format!("{path}?dryRun=All&fieldValidation=Strict"), &manifest(case)?).await?;
    match (&case.outcome, answer) {
        (Outcome::Accepted(holds), Ok(object)) => {
            for (pointer, expected) in *holds {
                let expected: Value = serde_yaml_ng::from_str(expected)?;
                let found = object.pointer(pointer).cloned().unwrap_or(Value::Null);
                ensure!(found == expected, "{pointer}: expected {expected}, found {found}");
            }
            Ok(())
        }
        (Outcome::Refused(says), Err(message)) => {
            for part in *says {
                ensure!(message.contains(part), "the message lacks {part:?}: {message}");
            }
            ensure!(
                !message.contains("no such") && !message.contains("evaluating rule"),
                "a rule failed instead of answering: {message}"
            );
            Ok(())
        }
        (Outcome::Accepted(_), Err(message)) => anyhow::bail!("should be accepted, was refused: {message}"),
        (Outcome::Refused(_), Ok(_)) => anyhow::bail!("should be refused, was accepted"),
    }
}

/// The case's manifest: its base with the edits.
fn manifest(case: &Case) -> Result<Value> {
    let mut object: Value = serde_yaml_ng::from_str(case.base)?;
    for (pointer, text) in case.edits {
        let (parent, key) = pointer.rsplit_once('/').context("a JSON pointer begins with '/'")?;
        let parent = object.pointer_mut(parent).with_context(|| format!("{pointer} has no parent"))?;
        let parent = parent.as_object_mut().with_context(|| format!("{pointer}: the parent is no object"))?;
        if *text == "null" {
            parent.remove(key);
        } else {
            parent.insert(key.to_owned(), serde_yaml_ng::from_str(text)?);
        }
    }
    Ok(object)
}

/// One request: the object, or the message of the refusal.
async fn send(client: &Client, method: &str, path: &str, body: &Value) -> Result<Result<Value, String>> {
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(serde_json::to_vec(body)?)?;
    match client.request::<Value>(request).await {
        Ok(object) => Ok(Ok(object)),
        Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
        Err(error) => Err(error.into()),
    }
}

async fn kubectl_shows_columns_short_names_and_documentation(server: &ApiServer) -> Result<()> {
    let samples = repository().join("deploy/samples");
    for file in ["gpuprofiles.yaml", "gpuprofiles-rdna3.yaml", "atlasmodel.yaml", "atlasmodel-local.yaml"] {
        kubectl(server, &["apply", "--server-side", "-f", &samples.join(file).display().to_string()]).await?;
    }
    let models = kubectl(server, &["-n", "atlas", "get", "am"]).await?;
    ensure!(
        columns(&models) == ["NAME", "READY", "ACTIVE", "MODEL", "GPU", "VRAM", "FAILOVERS", "AGE"],
        "{models}"
    );
    let wide = kubectl(server, &["-n", "atlas", "get", "atlasmodels", "-o", "wide"]).await?;
    ensure!(columns(&wide).contains(&"URL") && columns(&wide).contains(&"REASON"), "{wide}");
    let profiles = kubectl(server, &["get", "gpup"]).await?;
    ensure!(
        columns(&profiles) == ["NAME", "PRODUCT", "VRAM", "NODES", "CAPACITY", "INUSE", "AGE"],
        "{profiles}"
    );
    ensure!(profiles.contains("Radeon RX 7600") && profiles.contains("8176Mi"), "{profiles}");

    let tiers = kubectl(server, &["explain", "atlasmodel.spec.tiers"]).await?;
    ensure!(tiers.contains("in order of preference") && tiers.contains("gpuProfile"), "{tiers}");
    let vram = kubectl(server, &["explain", "gpuprofile.spec.vram"]).await?;
    ensure!(vram.contains("mem_info_vram_total"), "{vram}");
    Ok(())
}

async fn status_and_scale_are_subresources(server: &ApiServer, client: &Client) -> Result<()> {
    let model = "/apis/atlas.gillsystems.com/v1alpha1/namespaces/atlas/atlasmodels/code";
    let status = json!({"status": {"url": "http://code.atlas.svc:8080/v1", "activeTier": "primary", "replicas": 1,
        "selector": "atlas.gillsystems.com/model=code,atlas.gillsystems.com/tier=primary"}});
    let refused = |message| anyhow::anyhow!("{message}");

    let plain = send(client, "PATCH", model, &status).await?.map_err(refused)?;
    ensure!(plain.get("status").is_none(), "a write to the object reached its status: {plain}");
    let patched = send(client, "PATCH", &format!("{model}/status"), &status).await?.map_err(refused)?;
    ensure!(patched.pointer("/status/activeTier") == Some(&json!("primary")), "{patched}");
    let generation = |object: &Value| object.pointer("/metadata/generation").cloned();
    ensure!(generation(&plain) == generation(&patched), "a status write is no new generation: {patched}");

    kubectl(server, &["-n", "atlas", "scale", "am/code", "--replicas=3"]).await?;
    let scale =
        kubectl(server, &["-n", "atlas", "get", "am/code", "--subresource=scale", "-o", "json"]).await?;
    let scale: Value = serde_json::from_str(&scale)?;
    ensure!(scale.pointer("/spec/replicas") == Some(&json!(3)), "{scale}");
    ensure!(scale.pointer("/status/replicas") == Some(&json!(1)), "{scale}");
    ensure!(
        scale.pointer("/status/selector")
            == Some(&json!("atlas.gillsystems.com/model=code,atlas.gillsystems.com/tier=primary")),
        "{scale}"
    );
    Ok(())
}

/// What kubectl printed; its refusal as the error.
async fn kubectl(server: &ApiServer, arguments: &[&str]) -> Result<String> {
    let output = server.kubectl(arguments).await?;
    ensure!(output.success, "kubectl {}: {}", arguments.join(" "), output.stderr);
    Ok(output.stdout)
}

/// The headings of a table that kubectl printed.
fn columns(table: &str) -> Vec<&str> {
    table.lines().next().unwrap_or_default().split_whitespace().collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
