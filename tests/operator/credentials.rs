//! Private sources: the Secret that a tier names reaches its pods and the reader of headers, and is told where it fails.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, tier},
    hub::TOKEN,
    scenarios::pod_status,
};

fn private(secret: Option<&str>) -> Value {
    let mut tier = tier("primary", "big");
    tier["model"] = json!({"source": "hf://acme/models/private.gguf"});
    if let Some(secret) = secret {
        tier["model"]["credentialsSecret"] = secret.into();
    }
    tier
}

/// With an operator that may read Secrets.
pub async fn a_private_models_secret_is_used_and_told_where_it_is_not_whole(bench: &Bench) -> Result<()> {
    let at = ("private", "code");
    bench.namespace(at.0).await?;
    bench.model(at, &[private(Some("hub"))], json!({})).await?;
    let says = ["Secret private/hub does not exist: create it with the key HF_TOKEN"];
    bench.condition(at, "VramFits", "Unknown", "HeaderUnread", &says).await?;
    // Only the key that the source wants, by reference.
    let live = bench
        .wait_for("Deployment", (Some(at.0), "code-t-primary"), |live| {
            let env = &live.data["spec"]["template"]["spec"]["containers"][0]["env"];
            let reference = json!({"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}});
            let wanted = json!([{"name": "HF_TOKEN", "valueFrom": reference}]);
            if *env == wanted { Ok(()) } else { Err(env.to_string()) }
        })
        .await?;
    ensure!(!live.data.to_string().contains(TOKEN), "{}", live.data);

    // What a kubelet says of it becomes a condition with the remedy.
    let pod = bench.engine_pod(at, "primary", Some("xtx")).await?;
    let waiting = json!({"reason": "CreateContainerConfigError", "message": "secret \"hub\" not found"});
    let status = pod_status(false, json!({"waiting": waiting}));
    bench.patch_status("Pod", (Some(at.0), &pod), status).await?;
    let says = ["tier primary: secret \"hub\" not found", "a Secret hub with the key HF_TOKEN"];
    bench.condition(at, "ModelCached", "False", "CredentialsMissing", &says).await?;

    let secret = json!({"metadata": {"name": "hub"}, "stringData": {"token": TOKEN}});
    bench.create("Secret", Some(at.0), secret).await?;
    let says = ["Secret private/hub has no key HF_TOKEN, or an empty one: add it"];
    bench.condition(at, "VramFits", "Unknown", "HeaderUnread", &says).await?;
    bench.patch("Secret", (at.0, "hub"), json!({"stringData": {"HF_TOKEN": format!("{TOKEN}\n")}})).await?;
    bench.condition(at, "VramFits", "True", "Fits", &[]).await?;
    // What one Secret opens stays closed to others, in this namespace and elsewhere.
    let other = ("private", "other");
    bench.model(other, &[private(None)], json!({})).await?;
    let says = ["answers 401: a private or gated repository needs a token", "credentialsSecret"];
    bench.condition(other, "VramFits", "Unknown", "HeaderUnread", &says).await?;
    ensure!(!bench.log("operator-a").contains(TOKEN), "the token is in the log");
    bench.remove_pod((at.0, &pod)).await?;
    bench.remove_model(other).await?;
    bench.remove_model(at).await
}

/// With an operator that may not.
pub async fn without_the_right_the_secret_is_the_engines_alone(bench: &Bench) -> Result<()> {
    let at = ("closed", "code");
    bench.namespace(at.0).await?;
    let mut bucket = tier("primary", "big");
    let s3 = json!({"endpoint": "http://minio.storage:9000", "region": "eu-west-1", "pathStyle": true});
    bucket["model"] = json!({"source": "s3://models/a.gguf", "credentialsSecret": "keys", "s3": s3});
    bench.model(at, &[bucket], json!({})).await?;
    let says = ["the operator reads no Secrets, so closed/keys is the engine's alone", "headers.readSecrets"];
    bench.condition(at, "VramFits", "Unknown", "HeaderUnread", &says).await?;
    bench
        .wait_for("Deployment", (Some(at.0), "code-t-primary"), |live| {
            let container = &live.data["spec"]["template"]["spec"]["containers"][0];
            let args = container["args"].to_string();
            let flags = r#""--s3-endpoint","http://minio.storage:9000","--s3-region","eu-west-1","--s3-path-style","true""#;
            let names: Vec<&str> =
                container["env"].as_array().into_iter().flatten().filter_map(|v| v["name"].as_str()).collect();
            let wanted = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
            if args.contains(flags) && names == wanted { Ok(()) } else { Err(container.to_string()) }
        })
        .await?;
    bench.remove_model(at).await
}
