//! HTTPS on the webhook's port: a review in, a verdict out.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use atlas_crds::AtlasModel;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;

use super::{
    certificate::Certificate,
    review::{Knowledge, Opinion, review},
};
use crate::{
    credentials::Wanted,
    error::tell,
    headers::{HeaderState, Headers},
    metrics::Metrics,
    stores::Stores,
};

/// Path that the ValidatingWebhookConfiguration names.
const PATH: &str = "/validate-atlasmodel";
/// Both versions of an object, each of at most what the API server stores.
const MAX_BODY_BYTES: usize = 7 << 20;
/// Longest wait for a peer to finish its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at once; API servers keep a few open.
const MAX_CONNECTIONS: usize = 64;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is no PEM.
    #[error("it is no PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// Its key does not belong to it, or is of a kind that is not known.
    #[error("its key cannot be used")]
    Key(#[source] rustls::Error),
}

/// The certificate that is shown now; none before the first is kept.
#[derive(Debug, Default)]
pub struct Identity(RwLock<Option<Arc<CertifiedKey>>>);

impl Identity {
    /// Shows another certificate from now on.
    ///
    /// # Errors
    ///
    /// It cannot be used.
    pub fn take(&self, certificate: &Certificate) -> Result<(), IdentityError> {
        let chain = CertificateDer::pem_slice_iter(certificate.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(IdentityError::Pem)?;
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).map_err(IdentityError::Pem)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(IdentityError::Key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// What verdicts are made from.
#[derive(Clone)]
pub struct Answering {
    /// Reflected copies.
    pub stores: Arc<Stores>,
    /// Headers that were read.
    pub headers: Option<Arc<Headers>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Serves for ever.
///
/// # Errors
///
/// The address cannot be listened on.
pub async fn serve(listen: SocketAddr, identity: Arc<Identity>, answering: Answering) -> std::io::Result<()> {
    let config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let router = Router::new()
        .route(PATH, post(validate))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(answering);
    let listener = TcpListener::bind(listen).await?;
    tracing::info!(address = %listener.local_addr()?, "listening for reviews");
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file handles, most likely: they come back.
                tracing::warn!(error = %tell(&error), "no connection could be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let _place = place;
            // A peer that does not trust us, or says nothing, is the API server's matter to tell.
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                let service = TowerToHyperService::new(router);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
    }
}

/// What the API server sends, as far as it is read.
#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    dry_run: bool,
    object: Option<Value>,
    old_object: Option<Value>,
}

async fn validate(State(answering): State<Answering>, Json(review): Json<Review>) -> Response {
    let Request { uid, dry_run, object, old_object } = review.request;
    let opinion = match object.map(serde_json::from_value::<AtlasModel>) {
        Some(Ok(model)) => {
            // What was stored by an older version may no longer parse: then everything counts as new.
            let old = old_object.and_then(|old| serde_json::from_value(old).ok());
            answering.judge(&model, old.as_ref(), dry_run)
        }
        // The schema has refused what is malformed; what is left is a version that this one does not know.
        Some(Err(_)) | None => {
            answering.count("unknown");
            Opinion::default()
        }
    };
    (StatusCode::OK, Json(answer(&uid, opinion))).into_response()
}

impl Answering {
    fn judge(&self, model: &AtlasModel, old: Option<&AtlasModel>, dry_run: bool) -> Opinion {
        let profiles = self.stores.profiles.state();
        let header = |wanted: &Wanted| {
            let headers = self.headers.as_ref()?;
            if dry_run {
                return headers.known(wanted);
            }
            // A look also has it read in the background, on replicas too that reconcile nothing.
            match headers.look(wanted) {
                HeaderState::Read(known) => Some(known),
                HeaderState::Reading(_) | HeaderState::Unread(_) => None,
            }
        };
        let opinion = review(model, old, &Knowledge { profiles: &profiles, header: &header });
        self.count(match &opinion {
            Opinion { refusal: Some(_), .. } => "refused",
            Opinion { warnings, .. } if !warnings.is_empty() => "warned",
            Opinion { .. } => "accepted",
        });
        opinion
    }

    fn count(&self, verdict: &str) {
        self.metrics.reviews.with_label_values(&[verdict]).inc();
    }
}

/// The answer in the API server's words.
fn answer(uid: &str, opinion: Opinion) -> Value {
    let Opinion { refusal, warnings } = opinion;
    let mut response = json!({"uid": uid, "allowed": refusal.is_none()});
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    if let Some(refusal) = refusal {
        response["status"] = json!({"code": 422, "reason": "Invalid", "message": refusal});
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}
