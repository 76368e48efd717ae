//! An API server with one operator process, and short words for what the scenarios do with them.

use std::{net::TcpListener, path::PathBuf, process::Stdio, sync::Mutex, time::Duration};

use anyhow::{Context, Result, bail};
use atlas_tests::{
    cluster::{ApiServer, KubectlOutput},
    support::{binary, wait_until},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::hub::Hub;

/// Generous: the machine may be busy, and a wait ends as soon as it can.
pub const LONG: Duration = Duration::from_secs(30);
/// Longer than the second after which the operator looks again while something starts.
const SETTLED: Duration = Duration::from_millis(1500);

/// A kind by its plain name.
pub fn kind(name: &str) -> ApiResource {
    let (group, version) = match name {
        "AtlasModel" | "GpuProfile" => ("atlas.gillsystems.com", "v1alpha1"),
        "Deployment" => ("apps", "v1"),
        "PodDisruptionBudget" => ("policy", "v1"),
        "NetworkPolicy" => ("networking.k8s.io", "v1"),
        "RoleBinding" => ("rbac.authorization.k8s.io", "v1"),
        "ResourceClaimTemplate" => ("resource.k8s.io", "v1"),
        "Lease" => ("coordination.k8s.io", "v1"),
        "Event" => ("events.k8s.io", "v1"),
        "ValidatingWebhookConfiguration" => ("admissionregistration.k8s.io", "v1"),
        _ => ("", "v1"),
    };
    let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, name));
    if name == "NetworkPolicy" {
        resource.plural = "networkpolicies".into();
    }
    resource
}

/// A port of loopback that was free a moment ago.
pub fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()))
}

/// An API server and the operator that runs against it.
pub struct Bench {
    server: ApiServer,
    folder: tempfile::TempDir,
    pub hub: Hub,
    /// What operators reach the API server with.
    kubeconfig: PathBuf,
    pub client: Client,
    pub operator: Mutex<Option<Operator>>,
}

/// One operator process; dropping it ends it.
pub struct Operator {
    pub child: Child,
    pub address: String,
}

impl Bench {
    pub async fn start() -> Result<Self> {
        let bench = Self::without_operator().await?;
        let operator = bench.spawn_operator("operator-a").await?;
        bench.replace_operator(Some(operator));
        Ok(bench)
    }

    pub async fn without_operator() -> Result<Self> {
        let server = ApiServer::start().await?;
        server.apply_crds().await?;
        let folder = tempfile::tempdir()?;
        let client = server.client();
        let hub = Hub::start().await?;
        let kubeconfig = server.kubeconfig_path().to_owned();
        let bench = Self { server, folder, hub, kubeconfig, client, operator: Mutex::new(None) };
        bench.write_profiles(PROFILES)?;
        bench.create("Namespace", None, json!({"metadata": {"name": "atlas-system"}})).await?;
        Ok(bench)
    }

    /// Operators that start from now on take this way to the API server.
    pub fn lead_through(&mut self, kubeconfig: &str) -> Result<()> {
        self.kubeconfig = self.folder.path().join("proxy.kubeconfig");
        Ok(std::fs::write(&self.kubeconfig, kubeconfig)?)
    }

    pub fn replace_operator(&self, operator: Option<Operator>) -> Option<Operator> {
        std::mem::replace(&mut *self.operator.lock().unwrap(), operator)
    }

    /// Starts an operator process and waits until its stores are filled.
    pub async fn spawn_operator(&self, pod_name: &str) -> Result<Operator> {
        self.spawn_operator_with(pod_name, &[]).await
    }

    /// The same with further flags.
    pub async fn spawn_operator_with(&self, pod_name: &str, flags: &[&str]) -> Result<Operator> {
        let address = free_address()?;
        let log = std::fs::File::create(self.folder.path().join(format!("{pod_name}.log")))?;
        let child = Command::new(binary("atlas-operator")?)
            .args(["controller", "--namespace", "atlas-system", "--pod-name", pod_name, "--listen", &address])
            .args([
                "--operator-image",
                "example/atlas-operator:t",
                "--engine-hip-image",
                "example/atlas-engine-hip:t",
            ])
            .args(["--engine-cpu-image", "example/atlas-engine-cpu:t", "--default-profiles"])
            .arg(self.folder.path().join("profiles.yaml"))
            .args(["--hub", &self.hub.url, "--header-allow-addresses", "127.0.0.1"])
            .args(if flags.contains(&"--read-secrets=false") { &[] } else { &["--read-secrets"][..] })
            .args(flags)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let operator = Operator { child, address };
        wait_until("the operator's readiness", LONG, async || {
            let answer = reqwest::get(format!("http://{}/readyz", operator.address))
                .await
                .map_err(|e| e.to_string())?;
            if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
        })
        .await
        .with_context(|| self.log(pod_name))?;
        Ok(operator)
    }

    /// What other processes reach the API server with.
    pub fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    /// The running operator's process.
    pub fn operator_process(&self) -> Result<nix::unistd::Pid> {
        let running = self.operator.lock().unwrap();
        let id = running.as_ref().and_then(|operator| operator.child.id()).context("no operator")?;
        Ok(nix::unistd::Pid::from_raw(i32::try_from(id)?))
    }

    /// What the real kubectl says as administrator, refused or not.
    pub async fn try_kubectl(&self, arguments: &[&str]) -> Result<KubectlOutput> {
        Ok(self.server.kubectl(arguments).await?)
    }

    /// Writes a file into the bench's folder, and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    pub fn log(&self, pod_name: &str) -> String {
        let path: PathBuf = self.folder.path().join(format!("{pod_name}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Runs the real kubectl; what it refuses is an error.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.server.kubectl(arguments).await?;
        anyhow::ensure!(output.success, "kubectl {arguments:?}: {}", output.stderr);
        Ok(output.stdout)
    }

    /// A counter of the operator's metrics.
    pub async fn metric(&self, line: &str) -> Result<f64> {
        let address =
            self.operator.lock().unwrap().as_ref().map(|o| o.address.clone()).context("no operator")?;
        let text = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
        let value = text.lines().find_map(|l| l.strip_prefix(line)).map(|v| v.trim().parse());
        Ok(value.transpose()?.unwrap_or(0.0))
    }

    pub fn api(&self, kind_name: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind(kind_name)),
            None => Api::all_with(self.client.clone(), &kind(kind_name)),
        }
    }

    pub async fn create(
        &self,
        kind_name: &str,
        namespace: Option<&str>,
        mut object: Value,
    ) -> Result<DynamicObject> {
        let resource = kind(kind_name);
        object["apiVersion"] = resource.api_version.into();
        object["kind"] = kind_name.into();
        let object: DynamicObject = serde_json::from_value(object)?;
        Ok(self.api(kind_name, namespace).create(&PostParams::default(), &object).await?)
    }

    pub async fn patch(&self, kind_name: &str, at: (&str, &str), patch: Value) -> Result<DynamicObject> {
        let api = self.api(kind_name, Some(at.0));
        Ok(api.patch(at.1, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    pub async fn patch_status(&self, kind_name: &str, at: (Option<&str>, &str), status: Value) -> Result<()> {
        let api = self.api(kind_name, at.0);
        let patch = json!({"status": status});
        api.patch_status(at.1, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.create("Namespace", None, json!({"metadata": {"name": name}})).await.map(|_| ())
    }

    /// Creates an AtlasModel with these tiers (JSON of each) and further fields of the specification.
    pub async fn model(&self, at: (&str, &str), tiers: &[Value], more: Value) -> Result<DynamicObject> {
        let mut spec = json!({"tiers": tiers});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        self.create(
            "AtlasModel",
            Some(at.0),
            json!({"metadata": {"name": at.1, "namespace": at.0}, "spec": spec}),
        )
        .await
    }

    pub async fn remove_model(&self, at: (&str, &str)) -> Result<()> {
        self.api("AtlasModel", Some(at.0)).delete(at.1, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Deletes a pod as a kubelet does at the end of its grace.
    pub async fn remove_pod(&self, at: (&str, &str)) -> Result<()> {
        self.api("Pod", Some(at.0)).delete(at.1, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// Writes the file of default profiles, as a changed ConfigMap does.
    pub fn write_profiles(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join("profiles.yaml"), text)?)
    }

    /// Waits for an Event with this reason about an object of this name, and returns its note.
    pub async fn event(&self, namespace: &str, about: &str, reason: &str) -> Result<String> {
        let api = self.api("Event", Some(namespace));
        let what = format!("an Event {reason} about {about}");
        let waited = wait_until(&what, LONG, async || {
            let events = api.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let found = events
                .iter()
                .find(|e| e.data["reason"] == reason && e.data["regarding"]["name"] == about)
                .map(|e| e.data["note"].as_str().unwrap_or_default().to_owned());
            let others =
                || events.iter().map(|e| e.data["reason"].to_string()).collect::<Vec<_>>().join(", ");
            found.ok_or_else(|| format!("others: {}", others()))
        });
        waited.await.with_context(|| self.log("operator-a"))
    }

    /// Waits for an object to satisfy a check; what it lacks goes into the error.
    pub async fn wait_for(
        &self,
        kind_name: &str,
        at: (Option<&str>, &str),
        check: impl Fn(&DynamicObject) -> Result<(), String>,
    ) -> Result<DynamicObject> {
        let api = self.api(kind_name, at.0);
        let waited = wait_until(&format!("{kind_name} {}", at.1), LONG, async || {
            let object = api.get(at.1).await.map_err(|e| e.to_string())?;
            check(&object).map(|()| object)
        })
        .await;
        match waited {
            Ok(object) => Ok(object),
            Err(timeout) => bail!("{timeout}\n{}", self.log("operator-a")),
        }
    }

    /// Waits for a condition of an AtlasModel with this status, reason and parts of its message.
    pub async fn condition(
        &self,
        at: (&str, &str),
        type_: &str,
        status: &str,
        reason: &str,
        says: &[&str],
    ) -> Result<()> {
        self.wait_for("AtlasModel", (Some(at.0), at.1), |object| holds(object, type_, status, reason, says))
            .await?;
        Ok(())
    }

    /// The model's resource version once its status has stopped changing: passes that saw their own writes late may
    /// still refine it.
    pub async fn settled_version(&self, at: (&str, &str)) -> Result<Option<String>> {
        let api = self.api("AtlasModel", Some(at.0));
        let settled = async {
            loop {
                let before = api.get(at.1).await?.resource_version();
                tokio::time::sleep(SETTLED).await;
                if api.get(at.1).await?.resource_version() == before {
                    return Ok(before);
                }
            }
        };
        tokio::time::timeout(LONG, settled).await.context("the status never settles")?
    }

    /// Creates a pod as the Deployment controller, the scheduler and the kubelet would leave it.
    pub async fn engine_pod(&self, at: (&str, &str), tier: &str, node: Option<&str>) -> Result<String> {
        let name = format!("{}-t-{tier}-0", at.1);
        let mut spec = json!({"containers": [{"name": "engine", "image": "example/atlas-engine-hip:t"}]});
        if let Some(node) = node {
            spec["nodeName"] = node.into();
        }
        let labels = json!({
            "atlas.gillsystems.com/model": at.1, "atlas.gillsystems.com/tier": tier,
            "app.kubernetes.io/component": "engine", "app.kubernetes.io/managed-by": "atlas-operator",
        });
        self.create(
            "Pod",
            Some(at.0),
            json!({"metadata": {"name": name, "namespace": at.0, "labels": labels}, "spec": spec}),
        )
        .await?;
        Ok(name)
    }

    /// Creates a node with one card as the AMD labeller and device plugin leave it.
    pub async fn card_node(&self, name: &str, vram: &str, units: &str) -> Result<()> {
        let labels = json!({"amd.com/gpu.vram": vram, "amd.com/gpu.cu-count": units});
        self.create("Node", None, json!({"metadata": {"name": name, "labels": labels}})).await?;
        let cards = json!({"amd.com/gpu": "1", "cpu": "8", "memory": "16Gi", "pods": "110"});
        let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]);
        self.patch_status(
            "Node",
            (None, name),
            json!({"capacity": cards, "allocatable": cards, "conditions": ready}),
        )
        .await
    }
}

/// Whether a condition stands as expected.
pub fn holds(
    object: &DynamicObject,
    type_: &str,
    status: &str,
    reason: &str,
    says: &[&str],
) -> Result<(), String> {
    let conditions =
        object.data.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == type_).ok_or(format!("no condition {type_}"))?;
    let message = found["message"].as_str().unwrap_or_default();
    let right = found["status"] == status
        && found["reason"] == reason
        && says.iter().all(|part| message.contains(part));
    if right { Ok(()) } else { Err(format!("{found}, wanted {status} {reason} {says:?}")) }
}

/// A tier of the specification.
pub fn tier(name: &str, profile: &str) -> Value {
    json!({"name": name, "gpuProfile": profile, "model": {"source": format!("hf://acme/models/{name}-7b.gguf")}})
}

/// The default profiles of every scenario.
pub const PROFILES: &str = "
apiVersion: atlas.gillsystems.com/v1alpha1
kind: GpuProfile
metadata: {name: big}
spec: {product: Radeon RX 7900 XTX, gfxTarget: gfx1100, vram: 24560Mi, maxBatch: 4, match: {vramClass: 24G, computeUnits: 96}}
---
apiVersion: atlas.gillsystems.com/v1alpha1
kind: GpuProfile
metadata: {name: small}
spec: {product: Radeon RX 7600, gfxTarget: gfx1102, vram: 8176Mi, maxBatch: 2, match: {vramClass: 8G, computeUnits: 32}}
";
