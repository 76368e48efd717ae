//! Reads from the cluster; nothing here decides.

use atlas_crds::{AtlasModel, GpuProfile};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use crate::{args::Target, error::CliError};

/// A cluster and a namespace in it.
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl Cluster {
    /// Connects as kubectl does.
    pub async fn connect(target: &Target) -> Result<Self, CliError> {
        let options = KubeConfigOptions { context: target.context.clone(), ..KubeConfigOptions::default() };
        let config = match Kubeconfig::read() {
            Ok(file) => Config::from_custom_kubeconfig(file, &options).await.map_err(CliError::Connect)?,
            // In a pod there is no file.
            Err(missing) => Config::incluster().map_err(|_| CliError::Connect(missing))?,
        };
        let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(CliError::Client)?;
        Ok(Self { client, namespace })
    }

    /// Objects of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// One AtlasModel.
    pub async fn model(&self, name: &str) -> Result<AtlasModel, CliError> {
        let api: Api<AtlasModel> = self.api();
        let what = format!("AtlasModel {name} in namespace {}", self.namespace);
        match api.get_opt(name).await {
            Ok(Some(model)) => Ok(model),
            Ok(None) => {
                let known: Vec<String> =
                    list(&api, "AtlasModels").await?.iter().map(ResourceExt::name_any).collect();
                let hint = if known.is_empty() {
                    ": the namespace has none; -n names another".to_owned()
                } else {
                    format!(": there are {}", known.join(", "))
                };
                Err(CliError::NotFound { what, hint })
            }
            Err(source) => Err(CliError::Read { what, source }),
        }
    }

    /// Every GpuProfile.
    pub async fn profiles(&self) -> Result<Vec<GpuProfile>, CliError> {
        list(&Api::all(self.client.clone()), "GpuProfiles").await
    }
}

/// Every object that an Api sees.
pub async fn list<K>(api: &Api<K>, what: &str) -> Result<Vec<K>, CliError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(|source| CliError::Read { what: what.to_owned(), source })?;
    Ok(listed.items)
}
