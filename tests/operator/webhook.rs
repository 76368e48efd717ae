//! The validating webhook as kubectl's user meets it: refusals, warnings, a renewed certificate, and its absence.

use anyhow::{Context, Result, ensure};
use atlas_tests::support::wait_until;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::bench::{Bench, LONG, free_address};

const NAME: &str = "atlas-operator-webhook";
const NAMESPACE: &str = "admission";

pub async fn what_cannot_fit_is_refused_and_what_may_come_is_warned_of(bench: &Bench) -> Result<()> {
    let namespace = json!({"metadata": {"name": NAMESPACE, "labels": {"reviewed": "yes"}}});
    bench.create("Namespace", None, namespace).await?;
    let address = free_address()?;
    let rules = json!([{
        "apiGroups": ["atlas.gillsystems.com"], "apiVersions": ["v1alpha1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["atlasmodels"],
    }]);
    let webhook = json!({
        "name": "atlasmodels.atlas.gillsystems.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": format!("https://{address}/validate-atlasmodel")},
        // So that its silence shows here; the chart's default is Ignore.
        "failurePolicy": "Fail", "rules": rules,
        "namespaceSelector": {"matchLabels": {"reviewed": "yes"}},
    });
    let configuration = json!({"metadata": {"name": NAME}, "webhooks": [webhook]});
    bench.create("ValidatingWebhookConfiguration", None, configuration).await?;
    let flags = ["--webhook-listen", &address, "--webhook-dns-name", "127.0.0.1"];
    let replica = bench.spawn_operator_with("operator-w", &flags).await?;
    let first = bench.wait_for("ValidatingWebhookConfiguration", (None, NAME), trusts(1)).await?;

    // The profile may be the next file of the folder.
    let told =
        apply(bench, &model("early", "rx-9998", "other", 4096), &[]).await?.context("it was refused")?;
    for part in
        ["Warning: spec.tiers[primary].gpuProfile", "\"rx-9998\" does not exist yet", "there are big, "]
    {
        ensure!(told.contains(part), "{part}: {told}");
    }
    let told =
        apply(bench, &model("giant", "big", "llama-70b", 4096), &[]).await?.context("it was refused")?;
    ensure!(
        told.contains("Warning: spec.tiers[primary].model: models of this size are experimental"),
        "{told}"
    );

    // Nothing is known of a header that nobody has read: what does not fit is stored, and told by a condition.
    let told = apply(bench, &model("first", "small", "wide", 8192), &[]).await?.context("it was refused")?;
    ensure!(!told.contains("Warning"), "{told}");
    let second = model("second", "small", "wide", 8192);
    let refusal = wait_until("the header to be known", LONG, async || {
        match apply(bench, &second, &["--dry-run=server"]).await {
            Ok(Err(refusal)) => Ok(refusal.to_string()),
            Ok(Ok(told)) => Err(told),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    for part in [
        "admission webhook \"atlasmodels.atlas.gillsystems.com\" denied the request: spec.tiers[primary]: it needs",
        "of the 5,616 MiB that the Radeon RX 7600 offers",
        "contextTokens 8192 -> ",
    ] {
        ensure!(refusal.contains(part), "{part}: {refusal}");
    }
    ensure!(apply(bench, &second, &[]).await?.is_err(), "only a rehearsal was refused");
    let told = apply(bench, &model("second", "small", "wide", 2048), &[]).await?.context("it was refused")?;
    ensure!(!told.contains("Warning"), "{told}");
    let grown = apply(bench, &model("second", "small", "wide", 8192), &[]).await?;
    ensure!(grown.is_err(), "a change that does not fit was accepted");
    // What was stored before may be changed in everything else.
    let mut renamed = model("first", "small", "wide", 8192);
    renamed["spec"]["aliases"] = json!(["gpt"]);
    let told = apply(bench, &renamed, &[]).await?.context("it was refused")?;
    ensure!(told.contains("Warning: spec.tiers[primary]: it needs"), "{told}");

    // A certificate that is due is renewed by whoever looks first; until the others have it, both are trusted.
    let due = Patch::Merge(json!({"stringData": {"renew-after": "2020-01-01T00:00:00Z"}}));
    bench.api("Secret", Some("atlas-system")).patch(NAME, &PatchParams::default(), &due).await?;
    let other = free_address()?;
    let flags = ["--webhook-listen", &other, "--webhook-dns-name", "127.0.0.1"];
    let renewing = bench.spawn_operator_with("operator-x", &flags).await?;
    let renewed = bench.wait_for("ValidatingWebhookConfiguration", (None, NAME), trusts(2)).await?;
    ensure!(bundle(&renewed) != bundle(&first), "the trust is the old one");
    apply(bench, &model("second", "small", "wide", 2304), &[])
        .await?
        .context("the old certificate is not trusted")?;

    // Without any replica it fails open, as the chart has it.
    drop((replica, renewing));
    let kept = bench.api("ValidatingWebhookConfiguration", None).get(NAME).await?;
    let mut webhooks = kept.data["webhooks"].clone();
    webhooks[0]["failurePolicy"] = "Ignore".into();
    let open = Patch::Merge(json!({"webhooks": webhooks}));
    bench.api("ValidatingWebhookConfiguration", None).patch(NAME, &PatchParams::default(), &open).await?;
    wait_until("the webhook to be done without", LONG, async || {
        apply(bench, &model("third", "small", "wide", 8192), &[])
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())
    })
    .await?;
    bench.api("ValidatingWebhookConfiguration", None).delete(NAME, &Default::default()).await?;
    for name in ["early", "giant", "first", "second", "third"] {
        bench.remove_model((NAMESPACE, name)).await?;
    }
    Ok(())
}

fn model(name: &str, profile: &str, file: &str, context: i32) -> Value {
    let source = format!("hf://acme/models/{file}.gguf");
    let tier = json!({"name": "primary", "gpuProfile": profile, "contextTokens": context, "model": {"source": source}});
    json!({
        "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"tiers": [tier]},
    })
}

/// What kubectl prints of an accepted object, or of a refused one.
async fn apply(bench: &Bench, object: &Value, more: &[&str]) -> Result<Result<String, anyhow::Error>> {
    let path = bench.write("model.json", &object.to_string())?;
    let output = bench.try_kubectl(&[&["apply", "-f", &path], more].concat()).await?;
    Ok(if output.success { Ok(output.stdout + &output.stderr) } else { Err(anyhow::anyhow!(output.stderr)) })
}

fn bundle(configuration: &DynamicObject) -> String {
    configuration.data["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()
}

/// Whether this many authorities are trusted, as far as the length of their PEM tells.
fn trusts(authorities: usize) -> impl Fn(&DynamicObject) -> Result<(), String> {
    move |configuration| {
        // A certificate of this kind is some 600 characters of PEM, 800 in base64.
        let length = bundle(configuration).len();
        if length / 600 >= authorities && length > 0 { Ok(()) } else { Err(format!("{length} characters")) }
    }
}
