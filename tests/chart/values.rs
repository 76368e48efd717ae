//! What values of the chart become: whatever its schema lets through, the controller takes; and what private registries
//! and log collectors need reaches every pod.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use atlas_tests::support::binary;
use serde_json::Value;

use super::{Helm, chart, documents};

fn render(settings: &[&str]) -> Result<Vec<Value>> {
    let chart = chart();
    let mut arguments = vec!["template", "x", &chart];
    arguments.extend(settings.iter().flat_map(|setting| ["--set-json", setting]));
    documents(&Helm::offline()?.run(&arguments)?)
}

fn controller(rendered: &[Value]) -> Result<&Value> {
    let found =
        rendered.iter().find_map(|d| d.pointer("/spec/template/spec").filter(|_| d["kind"] == "Deployment"));
    found.context("no controller")
}

#[test]
fn what_the_schema_lets_through_the_controller_takes() -> Result<()> {
    let extremes: &[&[&str]] = &[
        &[],
        &["gateway.replicas=1", r#"controller.gatewaySilence="500ms""#, "headers.read=false"],
        &["gateway.replicas=16", r#"controller.gatewaySilence="999m""#, "headers.readSecrets=true"],
        &[r#"gpuFaults.markNodes="Taint""#, r#"gateway.tls.secretName="web""#, "webhook.enabled=false"],
        &[r#"gpuFaults.markNodes="Condition""#, r#"images.pullSecrets=["a","b.c"]"#],
        &[
            r#"headers.allowAddresses=["10.0.0.0/8","fd00::/7","192.168.0.9"]"#,
            r#"images.pullPolicy="Never""#,
        ],
    ];
    for settings in extremes {
        let rendered = render(settings)?;
        let args = controller(&rendered)?["containers"][0]["args"].as_array().context("no args")?;
        let args = args.iter().filter_map(Value::as_str);
        let mut command = Command::new(binary("atlas-operator")?);
        command.args(args).env("KUBECONFIG", "/nowhere").env_remove("KUBERNETES_SERVICE_HOST");
        let output = command.output()?;
        // It read its command line, and then found no cluster.
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("no way to the API server"), "{settings:?}: {said}");
    }
    Ok(())
}

#[test]
fn what_the_controller_refuses_the_schema_refuses() -> Result<()> {
    for (setting, field) in [
        ("gateway.replicas=17", "gateway/replicas"),
        (r#"controller.gatewaySilence="0ms""#, "controller/gatewaySilence"),
        (r#"controller.gatewaySilence="499ms""#, "controller/gatewaySilence"),
        (r#"headers.allowAddresses=["10.0.0.0/129"]"#, "headers/allowAddresses"),
        (r#"headers.allowAddresses=["example"]"#, "headers/allowAddresses"),
        (r#"images.pullSecrets=["Not_a_name"]"#, "images/pullSecrets"),
        (r#"images.operator.digest="sha256:12""#, "images/operator/digest"),
    ] {
        let message =
            format!("{:#}", render(&[setting]).err().with_context(|| format!("{setting} was accepted"))?);
        ensure!(message.contains(field), "{setting}: {message}");
    }
    Ok(())
}

#[test]
fn a_private_registry_reaches_every_pod_and_a_digest_pins_an_image() -> Result<()> {
    let digest = "ab".repeat(32);
    let rendered = render(&[
        r#"images.pullSecrets=["registry","second"]"#,
        &format!(r#"images.operator.digest="sha256:{digest}""#),
        r#"controller.priorityClassName="system-cluster-critical""#,
        r#"controller.logFormat="json""#,
    ])?;
    let pod = controller(&rendered)?;
    ensure!(
        pod["imagePullSecrets"] == serde_json::json!([{"name": "registry"}, {"name": "second"}]),
        "{pod}"
    );
    ensure!(pod["priorityClassName"] == "system-cluster-critical", "{pod}");
    let container = &pod["containers"][0];
    let image = container["image"].as_str().unwrap_or_default();
    ensure!(image.ends_with(&format!("@sha256:{digest}")), "{image}");
    let args = container["args"].to_string();
    for expected in
        ["--image-pull-secret=registry", "--image-pull-secret=second", &format!("--operator-image={image}")]
    {
        ensure!(args.contains(expected), "{expected} is not in {args}");
    }
    let format = serde_json::json!({"name": "ATLAS_LOG_FORMAT", "value": "json"});
    ensure!(container["env"].as_array().is_some_and(|env| env.contains(&format)), "{container}");
    Ok(())
}

#[test]
fn values_of_before_a_setting_was_added_get_its_default() -> Result<()> {
    // As `helm upgrade --reuse-values` renders them.
    let before = ["userRoles=null", "images.pullSecrets=null", "images.operator.digest=null"];
    let before = before.iter().chain(&["controller.logFormat=null", "controller.priorityClassName=null"]);
    let before: Vec<&str> = before.copied().collect();
    ensure!(render(&before)? == render(&[])?, "settings that are not there change what is rendered");
    Ok(())
}
