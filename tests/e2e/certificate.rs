//! TLS with real pods: from a Secret that is missing to one that is renewed, and a drain that takes the only gateway.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use atlas_tests::{
    support::wait_until,
    tour::{MODEL, NAMESPACE, stage::Stage},
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{PATIENCE, condition, drain::drain, run_python};

const GATEWAYS: &str = "app.kubernetes.io/component=gateway";

/// The gateway has one replica from here on, and speaks TLS.
pub async fn clients_speak_tls_to_the_only_gateway(stage: &mut Stage) -> Result<()> {
    let address = stage.service_url().await?;
    let address = address.trim_start_matches("http://").trim_end_matches("/v1").to_owned();
    let port = address.rsplit(':').next().context("no port")?;
    let url = format!("https://{MODEL}.{NAMESPACE}.svc:{port}/v1");
    let resolve = format!("{MODEL}.{NAMESPACE}.svc:{port}:127.0.0.1");
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("root.pem");
    let lists = async |root: &Path| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "5", "--resolve", &resolve, "--cacert"])
            .arg(root);
        let output = curl.arg(format!("{url}/models")).kill_on_drop(true).output().await;
        let output = output.map_err(|error| error.to_string())?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        if said.contains(r#""id":"code""#) { Ok(()) } else { Err(said.into_owned()) }
    };

    stage.local()?.install(&["gateway.tls.secretName=web", "gateway.replicas=1"]).await?;
    let says = condition(stage, MODEL, "Ready", "CertificateUnusable").await?;
    for part in
        ["no client is let in", &format!("Secret {NAMESPACE}/web"), "tls.crt", "does the Secret exist"]
    {
        ensure!(says.contains(part), "{part:?} is not in {says}");
    }

    renew(stage, &root).await?;
    wait_until("clients to be let in", PATIENCE, || lists(&root)).await?;
    asks_like_openai(port, &root).await?;
    let model = format!("atlasmodel/{MODEL}");
    stage.kubectl(&["wait", "-n", NAMESPACE, &model, "--for=condition=Ready", "--timeout=60s"]).await?;
    let url_of_status = ["get", "atlasmodel", MODEL, "-n", NAMESPACE, "-o", "jsonpath={.status.url}"];
    let told = stage.kubectl(&url_of_status).await?;
    ensure!(told.starts_with("https://"), "{told}");

    let before = gateway(stage).await?;
    let old = folder.path().join("old.pem");
    std::fs::copy(&root, &old)?;
    renew(stage, &root).await?;
    wait_until("the renewed certificate", PATIENCE, || lists(&root)).await?;
    ensure!(lists(&old).await.is_err(), "the old certificate is shown beside the new one");
    ensure!(gateway(stage).await? == before, "the gateway was started anew");

    // Nothing waits for a second gateway that nobody asked for: the only one goes, and comes up on another node.
    let (_, node, _) = before;
    drain(stage, &[&node]).await.context("the only gateway's node")?;
    wait_until("the gateway elsewhere", PATIENCE, || lists(&root)).await?;
    ensure!(gateway(stage).await?.1 != node, "it is on {node} again");
    stage.kubectl(&["uncordon", &node]).await?;
    Ok(())
}

/// Name, node and restarts of the only gateway that is not on its way out.
async fn gateway(stage: &Stage) -> Result<(String, String, i64)> {
    let pods = stage.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", GATEWAYS, "-o", "json"]).await?;
    let pods: Value = serde_json::from_str(&pods)?;
    let pods = pods["items"].as_array().context("no list")?;
    let mut live = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let (pod, more) = (live.next().context("no gateway")?, live.count());
    ensure!(more == 0, "{more} gateways more than one");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1);
    Ok((text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]), restarts))
}

/// Puts a new certificate into the Secret, and leaves it where clients find what to trust.
async fn renew(stage: &Stage, root: &Path) -> Result<()> {
    let names = [format!("{MODEL}.{NAMESPACE}.svc"), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    std::fs::write(root, made.cert.pem())?;
    let data = json!({"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "web", "namespace": NAMESPACE}, "stringData": data});
    stage.apply(&secret).await
}

/// The client that people use, with the certificate as what it trusts.
async fn asks_like_openai(port: &str, root: &Path) -> Result<()> {
    let script = format!(
        r#"
from openai import OpenAI
client = OpenAI(base_url="https://localhost:{port}/v1", api_key="unused", max_retries=0)
answer = client.chat.completions.create(model="code", max_tokens=8, temperature=0,
    messages=[{{"role": "user", "content": "Say hello."}}])
assert answer.choices[0].message.content.strip(), answer
"#
    );
    run_python(&script, Some(root)).await
}
