//! The gateways' certificate: what a model's conditions say while its Secret cannot be used. A real gateway process stands for a
//! pod, and a folder for the mounted Secret.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::{
    bench::{Bench, tier},
    silence::Process,
};

const SECRET: &str = "Secret secured/web: ";
const UNUSABLE: &str = "CertificateUnusable";

/// With an operator whose gateways take their certificate from the Secret `web`.
pub async fn a_certificate_that_cannot_be_used_is_told_with_its_secret(bench: &Bench) -> Result<()> {
    let at = ("secured", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[tier("primary", "big")], json!({})).await?;
    bench
        .wait_for("Deployment", (Some(at.0), "atlas-gateway"), |live| {
            let volume = &live.data["spec"]["template"]["spec"]["volumes"][0]["secret"];
            // The gateway starts without it, and says so.
            let right = volume["secretName"] == "web" && volume["optional"] == true;
            if right { Ok(()) } else { Err(volume.to_string()) }
        })
        .await?;
    let mounted = tempfile::tempdir()?;
    let file = |name: &str| mounted.path().join(name).display().to_string();
    let flags = ["--tls-certificate", &file("tls.crt"), "--tls-key", &file("tls.key")];
    let gateway = Process::start_in(bench, (at.0, "atlas-gateway-0"), &flags, "healthz").await?;

    // Nothing there, then one key of two, then something else under both.
    for (entry, content, says) in [
        (None, "", "tls.crt cannot be read: does the Secret exist, with the entries tls.crt and tls.key?"),
        (Some("tls.crt"), "nothing", "tls.key cannot be read: does the Secret exist"),
        (Some("tls.key"), "nothing", "tls.crt holds no PEM certificate: put the certificate there"),
    ] {
        if let Some(entry) = entry {
            std::fs::write(file(entry), content)?;
        }
        bench.condition(at, "Ready", "False", UNUSABLE, &["no client is let in", SECRET, says]).await?;
        bench.condition(at, "Degraded", "True", UNUSABLE, &["let nobody in", SECRET, says]).await?;
    }
    // One that has ended lets in who does not look at its time.
    write_pair(mounted.path(), Some(2001))?;
    let says = [SECRET, "tls.crt expired at 2001-01-01T00:00:00Z: renew it"];
    bench.condition(at, "Degraded", "True", UNUSABLE, &says).await?;
    bench.condition(at, "Ready", "False", "NoTierServes", &[]).await?;
    write_pair(mounted.path(), None)?;
    bench.condition(at, "Degraded", "False", "NothingServes", &[]).await?;
    std::fs::write(file("tls.key"), "nothing")?;
    let says = ["go on with the last certificate", SECRET, "tls.key holds no PEM private key"];
    bench.condition(at, "Degraded", "True", UNUSABLE, &says).await?;
    drop(gateway);
    bench.remove_pod((at.0, "atlas-gateway-0")).await?;
    bench.remove_model(at).await
}

/// Writes a certificate for localhost that ends with the year before this one, or far away, and its key.
fn write_pair(folder: &Path, ends: Option<i32>) -> Result<()> {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    if let Some(year) = ends {
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
    }
    let key = rcgen::KeyPair::generate()?;
    std::fs::write(folder.join("tls.crt"), params.self_signed(&key)?.pem())?;
    std::fs::write(folder.join("tls.key"), key.serialize_pem())?;
    Ok(())
}
