//! The chart: what it renders, what it refuses, and its life on a real API server.
//!
//! It needs helm and the API server alone; that the installed controller runs is the end-to-end suite's.
//! `ATLAS_UPDATE=1 cargo test -p atlas-tests --test chart plain_manifests` writes deploy/install.yaml anew.

#[path = "chart/monitoring.rs"]
mod monitoring;
#[path = "chart/values.rs"]
mod values;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use atlas_tests::{assets::Assets, cluster::ApiServer};
use serde::Deserialize;
use serde_json::Value;

const MODELS_CRD: &str = "atlasmodels.atlas.gillsystems.com";

/// What precedes the rendered chart in deploy/install.yaml.
const INSTALL_HEADER: &str = "\
# Rendered from helm/atlas-operator by `make generate`: change that.
apiVersion: v1
kind: Namespace
metadata:
  name: atlas-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
";

#[test]
fn the_chart_passes_a_strict_lint() -> Result<()> {
    let output = Helm::offline()?.run(&["lint", "--strict", &chart()])?;
    ensure!(output.contains("0 chart(s) failed"), "{output}");
    Ok(())
}

#[test]
fn plain_manifests_are_the_rendered_chart() -> Result<()> {
    let rendered =
        Helm::offline()?.run(&["template", "atlas-operator", &chart(), "--namespace", "atlas-system"])?;
    // Nothing of Helm manages what kubectl applies.
    let kept: Vec<&str> = rendered
        .lines()
        .filter(|line| !["managed-by: Helm", "helm.sh/"].iter().any(|part| line.contains(part)))
        .collect();
    let expected = format!("{INSTALL_HEADER}{}\n", kept.join("\n"));
    let path = repository().join("deploy/install.yaml");
    if std::env::var_os("ATLAS_UPDATE").is_some() {
        std::fs::write(&path, &expected)?;
    }
    let current = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    ensure!(current == expected, "deploy/install.yaml is out of date: run `make generate`");

    let kinds: Vec<String> =
        documents(&current)?.iter().filter_map(|d| d["kind"].as_str().map(str::to_owned)).collect();
    ensure!(kinds.first().is_some_and(|kind| kind == "Namespace"), "{kinds:?}");
    ensure!(
        !kinds.iter().any(|kind| kind == "AtlasModel" || kind == "GpuProfile"),
        "a custom resource would be applied before its CRD exists: {kinds:?}"
    );
    Ok(())
}

#[test]
fn the_chart_holds_the_generated_crds_and_keeps_them() -> Result<()> {
    let rendered = documents(&Helm::offline()?.run(&["template", "x", &chart()])?)?;
    for (file, content) in atlas_crds::manifests::render()? {
        let generated: Value = serde_yaml_ng::from_str(&content)?;
        let in_chart = rendered
            .iter()
            .find(|d| {
                d["kind"] == "CustomResourceDefinition"
                    && d["metadata"]["name"] == generated["metadata"]["name"]
            })
            .with_context(|| format!("the chart lacks {file}"))?;
        ensure!(same(&in_chart["spec"], &generated["spec"]), "the chart's CRD differs from {file}");
        ensure!(
            in_chart["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep",
            "{file} is not kept"
        );
    }
    let without =
        documents(&Helm::offline()?.run(&["template", "x", &chart(), "--set", "crds.install=false"])?)?;
    ensure!(
        !without.iter().any(|d| d["kind"] == "CustomResourceDefinition"),
        "crds.install=false renders CRDs"
    );
    Ok(())
}

#[test]
fn the_default_profiles_are_the_sample() -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).context(path.to_owned());
    let sample = read("deploy/samples/gpuprofiles.yaml")?;
    ensure!(
        read("helm/atlas-operator/files/gpuprofiles.yaml")? == sample,
        "copy deploy/samples/gpuprofiles.yaml there"
    );
    let rendered = documents(&Helm::offline()?.run(&["template", "x", &chart()])?)?;
    let map = rendered.iter().find(|d| d["kind"] == "ConfigMap").context("no ConfigMap")?;
    let file = map["data"]["gpuprofiles.yaml"].as_str().context("no file in it")?;
    ensure!(file.trim() == sample.trim(), "the ConfigMap's file differs:\n{file}");
    Ok(())
}

#[test]
fn nodes_are_written_only_where_that_was_asked_for() -> Result<()> {
    for (setting, flag, resource) in [
        ("None", None, None),
        ("Condition", Some("--mark-nodes=condition"), Some("nodes/status")),
        ("Taint", Some("--mark-nodes=taint"), Some("nodes")),
    ] {
        let set = format!("gpuFaults.markNodes={setting}");
        let rendered = documents(&Helm::offline()?.run(&["template", "x", &chart(), "--set", &set])?)?;
        let rules = rendered.iter().filter_map(|d| d["rules"].as_array()).flatten();
        let held = |list: &Value, one: &str| list.as_array().is_some_and(|l| l.iter().any(|v| v == one));
        let written: Vec<&str> = rules
            .filter(|rule| ["patch", "update", "*"].iter().any(|verb| held(&rule["verbs"], verb)))
            .flat_map(|rule| rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str))
            .filter(|resource| resource.starts_with("nodes") || *resource == "*")
            .collect();
        ensure!(written == resource.into_iter().collect::<Vec<_>>(), "{setting}: {written:?}");
        let args = rendered
            .iter()
            .find_map(|d| d.pointer("/spec/template/spec/containers/0/args")?.as_array())
            .context("no controller")?;
        let given = args.iter().filter_map(Value::as_str).find(|arg| arg.starts_with("--mark-nodes"));
        ensure!(given == flag, "{setting}: {given:?}");
    }
    Ok(())
}

#[test]
fn secrets_are_read_only_where_that_was_asked_for() -> Result<()> {
    for (setting, expected) in [("false", 0), ("true", 1)] {
        let set = format!("headers.readSecrets={setting}");
        let rendered = documents(&Helm::offline()?.run(&["template", "x", &chart(), "--set", &set])?)?;
        // The gateway's ClusterRole is bound in its own namespace alone, and the webhook's Role names its Secret.
        let roles = rendered
            .iter()
            .filter(|d| d["kind"] == "ClusterRole" && d["metadata"]["name"] != "atlas-gateway");
        let rules = roles.filter_map(|d| d["rules"].as_array()).flatten();
        let of_secrets: Vec<&Value> =
            rules.filter(|rule| rule["resources"].to_string().contains("secrets")).collect();
        ensure!(of_secrets.len() == expected, "{setting}: {of_secrets:?}");
        ensure!(of_secrets.iter().all(|rule| rule["verbs"] == serde_json::json!(["get"])), "{of_secrets:?}");
        let text = serde_json::to_string(&rendered)?;
        ensure!(text.contains("--read-secrets=true") == (expected == 1), "{setting}");
    }
    Ok(())
}

#[test]
fn wrong_values_are_refused_by_name() -> Result<()> {
    for (setting, says) in [
        ("controller.replicas=0", &["controller/replicas", "minimum"][..]),
        ("controller.gatewaySilence=fast", &["controller/gatewaySilence", "does not match pattern"]),
        ("images.pullPolicy=Sometimes", &["images/pullPolicy", "'Always', 'IfNotPresent', 'Never'"]),
        ("images.operator.repository=", &["images/operator/repository"]),
        ("gateway.replica=2", &["gateway", "additional properties 'replica' not allowed"]),
        ("typo=1", &["additional properties 'typo' not allowed"]),
        ("webhook.failurePolicy=Maybe", &["webhook/failurePolicy", "'Ignore', 'Fail'"]),
        ("gateway.tls.secret=web", &["gateway/tls", "additional properties 'secret' not allowed"]),
        ("gpuFaults.markNodes=Cordon", &["gpuFaults/markNodes", "'None', 'Condition', 'Taint'"]),
        ("crds.install=maybe", &["crds/install", "want boolean"]),
    ] {
        let refused = Helm::offline()?.run(&["template", "x", &chart(), "--set", setting]);
        let message = format!("{:#}", refused.err().with_context(|| format!("{setting} was accepted"))?);
        for part in says {
            ensure!(message.contains(part), "{setting}: the message lacks {part:?}: {message}");
        }
    }
    Ok(())
}

#[test]
fn every_value_is_documented_and_known_to_the_schema() -> Result<()> {
    let folder = repository().join("helm/atlas-operator");
    let values: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(folder.join("values.yaml"))?)?;
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("values.schema.json"))?)?;
    let mut in_values: Vec<&String> = values.as_object().context("values.yaml is no map")?.keys().collect();
    let mut in_schema: Vec<&String> = schema["properties"]
        .as_object()
        .context("no properties")?
        .keys()
        .filter(|key| *key != "global")
        .collect();
    in_values.sort();
    in_schema.sort();
    ensure!(in_values == in_schema, "values.yaml has {in_values:?}, the schema {in_schema:?}");
    Ok(())
}

#[tokio::test]
async fn install_uninstall_install_under_another_name_and_upgrade() -> Result<()> {
    let server = ApiServer::start().await?;
    let helm = Helm::on(&server)?;
    let older = older_chart()?;
    let older = older.path().display().to_string();

    // A new release, and an upgrade that brings a new field of the API.
    helm.run(&["install", "first", &older, "--namespace", "one", "--create-namespace"])?;
    ensure!(!crd(&server).await?.has_suspend, "the older chart should lack spec.suspend");
    let notes = helm.run(&["upgrade", "first", &chart(), "--namespace", "one"])?;
    ensure!(notes.contains("kubectl -n one rollout status deployment/first-atlas-operator"), "{notes}");
    ensure!(crd(&server).await?.has_suspend, "the upgrade left the CRD as it was");
    kubectl(&server, &["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).await?;
    let sample = repository().join("deploy/samples/atlasmodel.yaml").display().to_string();
    kubectl(&server, &["apply", "-f", &sample]).await?;

    // A second release beside it is refused before it touches anything.
    let beside = helm.run(&["install", "beside", &older, "--namespace", "two", "--create-namespace"]);
    let message = format!("{:#}", beside.err().context("a second release beside the first was accepted")?);
    ensure!(
        message.contains("ClusterRole \"atlas-gateway\"") && message.contains("invalid ownership"),
        "{message}"
    );
    ensure!(crd(&server).await?.has_suspend && crd(&server).await?.owner == "first", "it changed the CRDs");

    // Uninstalled, the CRDs and what users made of them stay.
    helm.run(&["uninstall", "first", "--namespace", "one"])?;
    kubectl(&server, &["--namespace", "atlas", "get", "atlasmodel", "code"]).await?;
    let left = kubectl(
        &server,
        &["get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/name=atlas-operator"],
    )
    .await?;
    let left: Vec<&str> = left.lines().filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(
        left == ["NAME", "clusterrole.rbac.authorization.k8s.io/atlas-gateway"],
        "uninstall left {left:?}: gateways need theirs, and nobody more"
    );

    // Another release takes the kept CRDs over without a flag, brings its own, and goes on upgrading them.
    helm.run(&["install", "second", &older, "--namespace", "two", "--create-namespace"])?;
    let taken = crd(&server).await?;
    ensure!(taken.owner == "second" && !taken.has_suspend, "the install left the CRDs as they were");
    let owner = ["get", "clusterrole", "atlas-gateway", "-o", "jsonpath={.metadata.annotations}"];
    ensure!(
        kubectl(&server, &owner).await?.contains(r#""meta.helm.sh/release-name":"second""#),
        "not taken over"
    );
    helm.run(&["upgrade", "second", &chart(), "--namespace", "two"])?;
    ensure!(crd(&server).await?.has_suspend, "the upgrade left the CRD as it was");
    ensure!(kubectl(&server, &owner).await?.contains(r#""meta.helm.sh/release-name":"second""#), "not kept");
    helm.run(&["upgrade", "second", &older, "--namespace", "two"])?;
    ensure!(!crd(&server).await?.has_suspend, "the CRD is not an ordinary part of the release");
    helm.run(&["rollback", "second", "1", "--namespace", "two"])?;
    helm.run(&["uninstall", "second", "--namespace", "two"])?;
    kubectl(&server, &["--namespace", "atlas", "get", "atlasmodel", "code"]).await?;
    Ok(())
}

#[tokio::test]
async fn plain_manifests_apply_to_an_empty_api_server() -> Result<()> {
    let server = ApiServer::start().await?;
    let install = repository().join("deploy/install.yaml").display().to_string();
    kubectl(&server, &["apply", "-f", &install]).await?;
    let again = kubectl(&server, &["apply", "-f", &install]).await?;
    ensure!(
        again.contains("deployment.apps/atlas-operator unchanged"),
        "applied again, it restarts: {again}"
    );

    let role = "clusterroles/atlas-operator";
    let rules: Value = serde_json::from_str(&kubectl(&server, &["get", role, "-o", "json"]).await?)?;
    ensure!(!rules.to_string().contains('*'), "the controller asks for everything: {rules}");
    let controller = "--as=system:serviceaccount:atlas-system:atlas-operator";
    for (verb, resource, allowed) in [
        ("create", "deployments.apps", true),
        ("create", "rolebindings.rbac.authorization.k8s.io", true),
        ("bind", "clusterroles.rbac.authorization.k8s.io/atlas-gateway", true),
        ("bind", "clusterroles.rbac.authorization.k8s.io/cluster-admin", false),
        ("create", "roles.rbac.authorization.k8s.io", false),
        ("patch", "atlasmodels.atlas.gillsystems.com", false),
        ("update", "deployments.apps", false),
        ("get", "pods", false),
        ("update", "nodes", false),
        ("get", "secrets", false),
        ("delete", "gpuprofiles.atlas.gillsystems.com", false),
    ] {
        let answer =
            server.kubectl(&["auth", "can-i", verb, resource, "--namespace=atlas", controller]).await?;
        ensure!(
            answer.stdout.trim() == if allowed { "yes" } else { "no" },
            "can the controller {verb} {resource}? {}{}",
            answer.stdout,
            answer.stderr
        );
    }
    for (verb, resource, allowed) in [
        ("update", "secrets/atlas-operator-webhook", true),
        ("create", "secrets", false),
        ("list", "secrets", false),
        ("get", "secrets/another", false),
        (
            "update",
            "validatingwebhookconfigurations.admissionregistration.k8s.io/atlas-operator-webhook",
            true,
        ),
        ("update", "validatingwebhookconfigurations.admissionregistration.k8s.io/another", false),
    ] {
        let answer = server
            .kubectl(&["auth", "can-i", verb, resource, "--namespace=atlas-system", controller])
            .await?;
        ensure!(
            answer.stdout.trim() == if allowed { "yes" } else { "no" },
            "can the controller {verb} {resource}? {}{}",
            answer.stdout,
            answer.stderr
        );
    }
    Ok(())
}

/// The CRD of AtlasModel as far as this suite looks at it.
struct Crd {
    has_suspend: bool,
    owner: String,
}

async fn crd(server: &ApiServer) -> Result<Crd> {
    let crd: Value =
        serde_json::from_str(&kubectl(server, &["get", "crd", MODELS_CRD, "-o", "json"]).await?)?;
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let fields = crd.pointer(spec).context("the CRD has no schema")?;
    let owner = crd["metadata"]["annotations"]["meta.helm.sh/release-name"].as_str().unwrap_or_default();
    Ok(Crd { has_suspend: fields.get("suspend").is_some(), owner: owner.to_owned() })
}

/// A copy of the chart as it might have been before `spec.suspend` was added.
fn older_chart() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    copy(&repository().join("helm/atlas-operator"), folder.path())?;
    let path = folder.path().join("files/crds/atlas.gillsystems.com_atlasmodels.yaml");
    let mut crd: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path)?)?;
    let fields = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties");
    let removed = fields.and_then(Value::as_object_mut).context("no schema")?.remove("suspend");
    ensure!(removed.is_some(), "spec.suspend is gone: choose another field");
    std::fs::write(&path, serde_yaml_ng::to_string(&crd)?)?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The real helm, with folders of its own so that a user's settings have no say.
struct Helm {
    program: PathBuf,
    home: tempfile::TempDir,
    kubeconfig: Option<PathBuf>,
}

impl Helm {
    fn offline() -> Result<Self> {
        Ok(Self { program: Assets::find()?.helm, home: tempfile::tempdir()?, kubeconfig: None })
    }

    fn on(server: &ApiServer) -> Result<Self> {
        Ok(Self { kubeconfig: Some(server.kubeconfig_path().to_owned()), ..Self::offline()? })
    }

    /// Standard output; what went to standard error is the error of a failed run.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("HOME", self.home.path()).env_remove("KUBECONFIG");
        for (name, folder) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(name, self.home.path().join(folder));
        }
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let output = command.output().with_context(|| format!("{}", self.program.display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm {}: {errors}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }
}

async fn kubectl(server: &ApiServer, arguments: &[&str]) -> Result<String> {
    let output = server.kubectl(arguments).await?;
    ensure!(output.success, "kubectl {}: {}", arguments.join(" "), output.stderr);
    Ok(output.stdout)
}

fn documents(yaml: &str) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| Ok(Value::deserialize(document)?))
        .filter(|document| !matches!(document, Ok(Value::Null)))
        .collect()
}

/// Equal as JSON, where 64 and 64.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

fn chart() -> String {
    repository().join("helm/atlas-operator").display().to_string()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
