//! TLS on the API's listener: a certificate and its key from files, read anew when they change.
//!
//! The files are those of a mounted Secret, which changes under a process that goes on. A new pair that cannot be used
//! leaves the old one in place and is told once; at start it is an error. Clients speak TLS 1.2 or 1.3.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and a root, as PEM.
    pub certificate: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path} cannot be read: is the Secret mounted, with the entries tls.crt and tls.key?")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate.
    #[error("{path} holds no PEM certificate: put the certificate there, followed by its intermediates")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no key.
    #[error("{path} holds no PEM private key (PKCS #8, PKCS #1 or SEC 1, not encrypted)")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// They do not belong together.
    #[error(
        "the key in {key} is of an unknown kind or not that of the certificate in {certificate}: put both of one pair into the Secret"
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// TLS cannot be set up at all.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// What both files held.
type Contents = (Vec<u8>, Vec<u8>);

/// A listener's certificate.
#[derive(Debug)]
pub struct Identity {
    files: TlsFiles,
    shown: RwLock<Arc<CertifiedKey>>,
    /// Why the files cannot be used now.
    problem: RwLock<Option<String>>,
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Identity {
    /// Reads it for the first time.
    ///
    /// # Errors
    ///
    /// A file is missing or cannot be used.
    pub fn load(files: TlsFiles) -> Result<(Arc<Self>, Contents), TlsError> {
        let contents = read(&files)?;
        let shown = RwLock::new(certify(&files, &contents)?);
        Ok((Arc::new(Self { files, shown, problem: RwLock::default() }), contents))
    }

    /// Why the files cannot be used now, so that an older certificate is shown.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What connections are accepted with.
    ///
    /// # Errors
    ///
    /// The TLS library refuses its own settings.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Takes changed files over until it is told to stop. `seen` is what was read last.
    pub async fn follow(self: Arc<Self>, mut seen: Contents, every: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let contents = match read(&self.files) {
                Ok(contents) if contents == seen => continue,
                Ok(contents) => contents,
                Err(error) => {
                    self.note(&error);
                    continue;
                }
            };
            match certify(&self.files, &contents) {
                Ok(certified) => {
                    *self.shown.write().unwrap_or_else(PoisonError::into_inner) = certified;
                    *self.problem.write().unwrap_or_else(PoisonError::into_inner) = None;
                    info!(certificate = %self.files.certificate.display(), "another certificate is shown");
                }
                Err(error) => self.note(&error),
            }
            seen = contents;
        }
    }

    /// Keeps what is wrong, and says it once.
    fn note(&self, error: &TlsError) {
        let told = Some(error.to_string());
        let before = std::mem::replace(
            &mut *self.problem.write().unwrap_or_else(PoisonError::into_inner),
            told.clone(),
        );
        if before != told {
            warn!(error = error as &dyn std::error::Error, "the last good certificate stays");
        }
    }
}

fn read(files: &TlsFiles) -> Result<Contents, TlsError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
    Ok((read(&files.certificate)?, read(&files.key)?))
}

fn certify(files: &TlsFiles, (certificate, key): &Contents) -> Result<Arc<CertifiedKey>, TlsError> {
    let no_certificate = || TlsError::NoCertificate { path: files.certificate.clone() };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| no_certificate())?;
    if chain.is_empty() {
        return Err(no_certificate());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey { path: files.key.clone() })?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
    certified.map(Arc::new).map_err(|source| TlsError::Mismatch {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    })
}
