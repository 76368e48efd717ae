//! Keeps the webhook's certificate: in a Secret that every replica reads, and in the API server's trust.
//!
//! Replicas that renew at the same moment meet at the Secret's version: one wins, the others take what it wrote.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};

use super::{
    certificate::{Certificate, CertificateError},
    server::{Identity, IdentityError},
};
use crate::{
    error::{backoff, tell},
    metrics::Metrics,
};

/// How often Secret and trust are looked at: within this time every replica has a renewed certificate.
const PERIOD: Duration = Duration::from_secs(60);

/// Why the certificate could not be kept.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Secret {name} could not be read")]
    Read {
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("Secret {name} could not be written")]
    Write {
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("ValidatingWebhookConfiguration {name} could not be read: is webhook.enabled set in the chart?")]
    Trust {
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("the certificate could not be made")]
    Make(#[source] CertificateError),
    #[error("the certificate of Secret {name} cannot be used")]
    Use {
        name: String,
        #[source]
        source: IdentityError,
    },
}

/// The task that does it.
pub struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<ValidatingWebhookConfiguration>,
    name: String,
    dns_names: Vec<String>,
    identity: Arc<Identity>,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// A keeper that has done nothing yet.
    pub fn new(
        client: Client,
        namespace: &str,
        name: String,
        dns_names: Vec<String>,
        identity: Arc<Identity>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            configurations: Api::all(client),
            name,
            dns_names,
            identity,
            metrics,
        }
    }

    /// Keeps the certificate, for ever.
    pub async fn run(self) {
        let mut tries = 0;
        loop {
            let pause = match self.keep().await {
                Ok(true) => {
                    tries = 0;
                    PERIOD
                }
                // Somebody else was faster: what it wrote is taken next.
                Ok(false) => backoff(1),
                Err(error) => {
                    tries += 1;
                    // Before the first success, or for long: a person should know.
                    tracing::warn!(
                        tries,
                        error = %tell(&error),
                        "the webhook is not trusted yet"
                    );
                    backoff(tries)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One look; `false` where somebody else wrote in between.
    async fn keep(&self) -> Result<bool, KeepError> {
        let name = || self.name.clone();
        let now = Timestamp::now();
        let live = self
            .secrets
            .get_opt(&self.name)
            .await
            .map_err(|source| KeepError::Read { name: name(), source })?;
        let found = live.as_ref().and_then(|secret| Certificate::from_data(secret.data.as_ref()?));
        let certificate = match found {
            Some(found) if !found.is_due(&self.dns_names, now) => found,
            found => {
                let made =
                    Certificate::issue(&self.dns_names, found.as_ref(), now).map_err(KeepError::Make)?;
                if !self.store(live, &made).await? {
                    return Ok(false);
                }
                tracing::info!(renew_after = %made.renew_after, "made a certificate for the webhook");
                made
            }
        };
        // Trusted first, used then: no answer is ever given under a certificate that nobody vouches for.
        let trusted = self.trust(&certificate).await?;
        self.identity.take(&certificate).map_err(|source| KeepError::Use { name: name(), source })?;
        self.metrics.webhook_renewal.set(certificate.renew_after.as_second());
        Ok(trusted)
    }

    async fn store(&self, live: Option<Secret>, made: &Certificate) -> Result<bool, KeepError> {
        let written = match live {
            Some(mut secret) => {
                secret.data = Some(made.to_data());
                self.secrets.replace(&self.name, &PostParams::default(), &secret).await
            }
            None => {
                let secret = Secret {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                    data: Some(made.to_data()),
                    ..Secret::default()
                };
                self.secrets.create(&PostParams::default(), &secret).await
            }
        };
        conflict_is_false(written).map_err(|source| KeepError::Write { name: self.name.clone(), source })
    }

    async fn trust(&self, certificate: &Certificate) -> Result<bool, KeepError> {
        let failed = |source| KeepError::Trust { name: self.name.clone(), source };
        let mut live = self.configurations.get(&self.name).await.map_err(failed)?;
        let wanted = ByteString(certificate.authorities.clone().into_bytes());
        let mut changed = false;
        for webhook in live.webhooks.iter_mut().flatten() {
            if webhook.client_config.ca_bundle.as_ref() != Some(&wanted) {
                webhook.client_config.ca_bundle = Some(wanted.clone());
                changed = true;
            }
        }
        if !changed {
            return Ok(true);
        }
        tracing::info!(configuration = self.name, "the API server is told whom to trust");
        conflict_is_false(self.configurations.replace(&self.name, &PostParams::default(), &live).await)
            .map_err(failed)
    }
}

fn conflict_is_false<T>(written: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
