//! TLS on the API's listener: a certificate and its key from files, read anew when they change.
//!
//! The files are those of a mounted Secret, which changes under a process that goes on. A new pair that cannot be used
//! leaves the old one in place and is told once; while there is none at all, no client is let in and the gateway is not
//! ready. Clients speak TLS 1.2 or 1.3.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
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

use crate::validity;

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
    #[error("{path} cannot be read: does the Secret exist, with the entries tls.crt and tls.key?")]
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
    /// No client that looks at its time accepts it.
    #[error("the certificate in {path} expired at {at}: renew it and put it and its key into the Secret")]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        at: jiff::Timestamp,
    },
    /// TLS cannot be set up at all.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// What both files held.
type Contents = (Vec<u8>, Vec<u8>);

/// A certificate that clients are shown.
#[derive(Debug, Clone)]
struct Shown {
    certified: Arc<CertifiedKey>,
    /// Its end, where it could be read.
    ends: Option<jiff::Timestamp>,
}

/// A listener's certificate.
#[derive(Debug)]
pub struct Identity {
    files: TlsFiles,
    shown: RwLock<Option<Shown>>,
    /// Why the files cannot be used now.
    problem: RwLock<Option<String>>,
    /// What was in the files when they were taken last, and when that certificate ends.
    seen: Mutex<Option<(Contents, Option<jiff::Timestamp>)>>,
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown().map(|shown| shown.certified)
    }
}

impl Identity {
    /// Reads it for the first time, as far as it is there.
    #[must_use]
    pub fn open(files: TlsFiles) -> Arc<Self> {
        let (shown, problem, seen) = (RwLock::default(), RwLock::default(), Mutex::default());
        let identity = Self { files, shown, problem, seen };
        identity.look(jiff::Timestamp::now());
        Arc::new(identity)
    }

    /// Why the files cannot be used now, so that an older certificate is shown, or none.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether clients can be let in.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.shown().is_some()
    }

    fn shown(&self) -> Option<Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// Takes changed files over until it is told to stop.
    pub async fn follow(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            self.look(jiff::Timestamp::now());
        }
    }

    /// Reads the files, and takes over what is new and can be used.
    fn look(&self, now: jiff::Timestamp) {
        let outcome = read(&self.files).and_then(|contents| self.take(contents, now));
        let told = outcome.as_ref().err().map(ToString::to_string);
        let mut problem = self.problem.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *problem, told.clone());
        drop(problem);
        if let (Err(error), true) = (&outcome, before != told) {
            let error = error as &dyn std::error::Error;
            if self.is_usable() {
                warn!(error, "the last certificate stays");
            } else {
                warn!(error, "no client is let in before there is a certificate");
            }
        }
    }

    fn take(&self, contents: Contents, now: jiff::Timestamp) -> Result<(), TlsError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let has_ended = |ends: Option<jiff::Timestamp>| ends.is_some_and(|ends| ends <= now);
        let ends = match &*seen {
            Some((known, ends)) if *known == contents => *ends,
            _ => {
                let offered = certify(&self.files, &contents)?;
                let ends = offered.ends;
                // One that has ended is better than none: who does not look at its time gets in.
                let better = self.shown().is_some_and(|shown| !has_ended(shown.ends));
                if !has_ended(ends) || !better {
                    *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Some(offered);
                    info!(certificate = %self.files.certificate.display(), "another certificate is shown");
                }
                *seen = Some((contents, ends));
                ends
            }
        };
        match ends.filter(|_| has_ended(ends)) {
            Some(at) => Err(TlsError::Expired { path: self.files.certificate.clone(), at }),
            None => Ok(()),
        }
    }
}

fn read(files: &TlsFiles) -> Result<Contents, TlsError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
    Ok((read(&files.certificate)?, read(&files.key)?))
}

fn certify(files: &TlsFiles, (certificate, key): &Contents) -> Result<Shown, TlsError> {
    let no_certificate = || TlsError::NoCertificate { path: files.certificate.clone() };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| no_certificate())?;
    let ends = validity::end_of(chain.first().ok_or_else(no_certificate)?);
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey { path: files.key.clone() })?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
    let shown = certified.map(|certified| Shown { certified: Arc::new(certified), ends });
    shown.map_err(|source| TlsError::Mismatch {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    })
}
