//! The cluster's own certificate authority and what it signs; made anew for every cluster and thrown away with it.
//!
//! Keys are ECDSA P-256, certificates have no useful lifetime limit. It deliberately knows no rotation: a cluster
//! lives for minutes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::error::ClusterError;

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct CertFiles {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Whom a client certificate stands for.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user name.
    pub user: String,
    /// The one group, if any: a distinguished name holds one value of a kind here.
    pub group: Option<String>,
}

impl Identity {
    /// A user in no group.
    pub fn user(user: impl Into<String>) -> Self {
        Self { user: user.into(), group: None }
    }

    /// Someone who may do everything.
    pub fn admin() -> Self {
        Self { user: "kubernetes-admin".into(), group: Some("system:masters".into()) }
    }

    /// A node's kubelet.
    pub fn node(name: &str) -> Self {
        Self { user: format!("system:node:{name}"), group: Some("system:nodes".into()) }
    }
}

/// The authorities and the folder that all files go to.
pub struct Pki {
    folder: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
    front_proxy_ca: CertifiedIssuer<'static, KeyPair>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Pki {
    /// Makes the authorities and the service-account key below `folder`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn create(folder: &Path) -> Result<Self, ClusterError> {
        std::fs::create_dir_all(folder)
            .map_err(ClusterError::io(format!("make the folder {}", folder.display())))?;
        let pki = Self {
            folder: folder.to_owned(),
            ca: authority("atlas-test-ca")?,
            front_proxy_ca: authority("atlas-test-front-proxy-ca")?,
        };
        write(&pki.ca_path(), &pki.ca.pem())?;
        write(&pki.front_proxy_ca_path(), &pki.front_proxy_ca.pem())?;
        write(&pki.ca_key_path(), &pki.ca.key().serialize_pem())?;
        let key = KeyPair::generate().map_err(failed("the service accounts"))?;
        write(&pki.service_account_key_path(), &key.serialize_pem())?;
        write(&pki.service_account_public_key_path(), &key.public_key_pem())?;
        Ok(pki)
    }

    /// The authority's certificate.
    pub fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    pub(super) fn ca_key_path(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    pub(super) fn front_proxy_ca_path(&self) -> PathBuf {
        self.folder.join("front-proxy-ca.crt")
    }

    /// The key that signs service-account tokens.
    pub(super) fn service_account_key_path(&self) -> PathBuf {
        self.folder.join("service-account.key")
    }

    /// The key that verifies them.
    pub(super) fn service_account_public_key_path(&self) -> PathBuf {
        self.folder.join("service-account.pub")
    }

    /// A serving certificate for these addresses and names.
    ///
    /// # Errors
    /// When a name is no host name or a file cannot be written.
    pub fn serving(&self, name: &str, ips: &[IpAddr], names: &[&str]) -> Result<CertFiles, ClusterError> {
        let hosts = ips.iter().map(ToString::to_string).chain(names.iter().map(|name| (*name).to_owned()));
        let mut params = CertificateParams::new(hosts.collect::<Vec<_>>()).map_err(failed(name))?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(name, params, &self.ca)
    }

    /// A client certificate; `name` names the files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn client(&self, name: &str, identity: &Identity) -> Result<CertFiles, ClusterError> {
        self.issue(name, client_params(identity), &self.ca)
    }

    pub(super) fn front_proxy_client(&self) -> Result<CertFiles, ClusterError> {
        let params = client_params(&Identity::user("front-proxy-client"));
        self.issue("front-proxy-client", params, &self.front_proxy_ca)
    }

    /// Writes a kubeconfig with a client certificate of its own for `identity`, all in one file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn kubeconfig(&self, name: &str, identity: &Identity, server: &str) -> Result<PathBuf, ClusterError> {
        let files = self.client(name, identity)?;
        let path = self.folder.join(format!("{name}.kubeconfig"));
        // JSON is YAML; paths are absolute, and every program of the cluster sees the same files.
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "atlas",
            "clusters": [{"name": "atlas", "cluster": {
                "server": server, "certificate-authority": self.ca_path()}}],
            "users": [{"name": name, "user": {
                "client-certificate": files.cert, "client-key": files.key}}],
            "contexts": [{"name": "atlas", "context": {"cluster": "atlas", "user": name}}],
        });
        write(&path, &format!("{config:#}\n"))?;
        Ok(path)
    }

    fn issue(
        &self,
        name: &str,
        mut params: CertificateParams,
        issuer: &CertifiedIssuer<'static, KeyPair>,
    ) -> Result<CertFiles, ClusterError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed(name))?;
        let cert = params.signed_by(&key, issuer).map_err(failed(name))?;
        let files = CertFiles {
            cert: self.folder.join(format!("{name}.crt")),
            key: self.folder.join(format!("{name}.key")),
        };
        write(&files.cert, &cert.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>, ClusterError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().map_err(failed(name))?;
    CertifiedIssuer::self_signed(params, key).map_err(failed(name))
}

fn client_params(identity: &Identity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.user.as_str());
    if let Some(group) = &identity.group {
        params.distinguished_name.push(DnType::OrganizationName, group.as_str());
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn failed(subject: &str) -> impl FnOnce(rcgen::Error) -> ClusterError {
    let subject = subject.to_owned();
    move |source| ClusterError::Certificate { subject, source }
}

fn write(path: &Path, text: &str) -> Result<(), ClusterError> {
    std::fs::write(path, text).map_err(ClusterError::io(format!("write {}", path.display())))
}
