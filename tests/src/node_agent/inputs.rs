//! A container's variables, with what Secrets and ConfigMaps hold.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};

use super::environment::{expand, field_value};
use super::machine::Machine;
use super::volumes::{InputError, fetch_config_map, fetch_secret};

/// Collects a container's own variables and those every container gets; later ones win.
///
/// # Errors
/// When a Secret, ConfigMap or key is missing, or a source is not supported.
pub async fn collect_environment(
    machine: &Machine,
    pod: &Pod,
    container: &Container,
    pod_ip: Ipv4Addr,
) -> Result<Vec<(String, String)>, InputError> {
    let (host, port) = machine.kubernetes_service().await?;
    let mut variables: Vec<(String, String)> = vec![
        ("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("HOSTNAME".into(), pod.metadata.name.clone().unwrap_or_default()),
        ("HOME".into(), "/".into()),
        ("KUBERNETES_SERVICE_HOST".into(), host.clone()),
        ("KUBERNETES_SERVICE_PORT".into(), port.to_string()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".into(), port.to_string()),
        ("KUBERNETES_PORT".into(), format!("tcp://{host}:{port}")),
        (format!("KUBERNETES_PORT_{port}_TCP"), format!("tcp://{host}:{port}")),
        (format!("KUBERNETES_PORT_{port}_TCP_ADDR"), host),
        (format!("KUBERNETES_PORT_{port}_TCP_PORT"), port.to_string()),
        (format!("KUBERNETES_PORT_{port}_TCP_PROTO"), "tcp".into()),
    ];
    for source in container.env_from.iter().flatten() {
        let data = if let Some(map) = &source.config_map_ref {
            fetch_config_map(machine, pod, &map.name, map.optional == Some(true)).await?
        } else if let Some(secret) = &source.secret_ref {
            fetch_secret(machine, pod, &secret.name, secret.optional == Some(true)).await?
        } else {
            continue;
        };
        let prefix = source.prefix.clone().unwrap_or_default();
        variables
            .extend(data.into_iter().map(|(key, value)| {
                (format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned())
            }));
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => fetch_value(machine, pod, source, pod_ip).await?,
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &variables)),
        };
        variables.extend(value.map(|value| (variable.name.clone(), value)));
    }
    Ok(variables)
}

/// `None` when an optional source is missing.
async fn fetch_value(
    machine: &Machine,
    pod: &Pod,
    source: &EnvVarSource,
    pod_ip: Ipv4Addr,
) -> Result<Option<String>, InputError> {
    let (kind, name, key, optional, data) = if let Some(field) = &source.field_ref {
        let node_ip = machine.node_ip().to_string();
        let value = field_value(pod, &field.field_path, &pod_ip.to_string(), &node_ip);
        return value.map(Some).ok_or_else(|| InputError::Unsupported {
            what: format!("env field {:?}", field.field_path),
            instead: "a field of metadata, spec.nodeName or status.podIP",
        });
    } else if let Some(from) = &source.config_map_key_ref {
        let optional = from.optional == Some(true);
        let data = fetch_config_map(machine, pod, &from.name, optional).await?;
        ("ConfigMap", &from.name, &from.key, optional, data)
    } else if let Some(from) = &source.secret_key_ref {
        let optional = from.optional == Some(true);
        let data = fetch_secret(machine, pod, &from.name, optional).await?;
        ("Secret", &from.name, &from.key, optional, data)
    } else {
        return Err(InputError::Unsupported {
            what: "this source of an env value".into(),
            instead: "value, fieldRef, configMapKeyRef or secretKeyRef",
        });
    };
    match data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(InputError::NoKey { kind, name: name.clone(), key: key.clone() }),
    }
}
