//! `config`: the clients' `llm_config.yaml`, with an address that a client outside the cluster can use where asked.

use atlas_crds::names;
use atlas_operator_core::llm_config::{FILE_NAME, replace_server};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use kube::Api;

use crate::{
    Outcome,
    args::{ConfigArgs, Target},
    cluster::{Cluster, list},
    error::CliError,
    terminal::put,
};

/// Prints the file.
pub async fn run(args: &ConfigArgs, target: &Target) -> Result<Outcome, CliError> {
    let cluster = Cluster::connect(target).await?;
    cluster.model(&args.name).await?;
    let name = names::llm_config_name(&args.name);
    let what = format!("ConfigMap {name} in namespace {}", cluster.namespace);
    let missing = |what| CliError::NotFound {
        what,
        hint: ": the operator writes it once the model is accepted".into(),
    };
    let api: Api<ConfigMap> = cluster.api();
    let found = api.get_opt(&name).await.map_err(|source| CliError::Read { what: what.clone(), source })?;
    let text = found.and_then(|map| map.data?.remove(FILE_NAME)).ok_or_else(|| missing(what))?;
    let server = match &args.host {
        Some(host) => Some((host.clone(), args.port.unwrap_or(names::GATEWAY_PORT))),
        None => exposed_address(&cluster, &args.name).await?,
    };
    let text = match server {
        Some((host, port)) => replace_server(&text, &host, port).map_err(CliError::Yaml)?,
        None => text,
    };
    put(&text);
    Ok(Outcome::Well)
}

/// Where the Service is reached from outside the cluster, where it is.
async fn exposed_address(cluster: &Cluster, name: &str) -> Result<Option<(String, u16)>, CliError> {
    let api: Api<Service> = cluster.api();
    let what = || format!("Service {name}");
    let service = api.get_opt(name).await.map_err(|source| CliError::Read { what: what(), source })?;
    let Some(service) = service else { return Ok(None) };
    let nodes = match service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) {
        // Reading nodes is a right that not everybody has; --host is for those.
        Some("NodePort") => list(&Api::<Node>::all(cluster.client.clone()), "Nodes").await?,
        _ => Vec::new(),
    };
    Ok(choose_address(&service, &nodes))
}

fn choose_address(service: &Service, nodes: &[Node]) -> Option<(String, u16)> {
    let spec = service.spec.as_ref()?;
    let port = spec.ports.as_ref()?.first()?;
    match spec.type_.as_deref() {
        Some("LoadBalancer") => {
            let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
            let host = ingress.hostname.clone().or_else(|| ingress.ip.clone())?;
            Some((host, u16::try_from(port.port).ok()?))
        }
        Some("NodePort") => {
            let addresses =
                || nodes.iter().filter_map(|node| node.status.as_ref()?.addresses.as_ref()).flatten();
            let of =
                |type_: &str| addresses().find(|address| address.type_ == type_).map(|a| a.address.clone());
            Some((of("ExternalIP").or_else(|| of("InternalIP"))?, u16::try_from(port.node_port?).ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_exposed_address_is_found_for_every_type() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.7"}]}}))
        .unwrap();
        let check = |service: serde_json::Value, expected: Option<(&str, u16)>| {
            let service: Service = serde_json::from_value(service).unwrap();
            let found = choose_address(&service, std::slice::from_ref(&node));
            assert_eq!(found.as_ref().map(|(host, port)| (host.as_str(), *port)), expected);
        };
        let port = json!([{"port": 8080, "nodePort": 30123}]);
        check(json!({"spec": {"type": "ClusterIP", "ports": port}}), None);
        check(json!({"spec": {"type": "NodePort", "ports": port}}), Some(("192.0.2.7", 30123)));
        check(json!({"spec": {"type": "LoadBalancer", "ports": port}}), None);
        let ready = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
        check(
            json!({"spec": {"type": "LoadBalancer", "ports": port}, "status": ready}),
            Some(("192.0.2.9", 8080)),
        );
    }
}
