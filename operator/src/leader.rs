//! Leader election over a Lease, with the defaults of client-go: 15 s lease, 10 s renew deadline, 2 s retry.
//!
//! A holder that stops cleanly empties `holderIdentity`, so its successor starts at once.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::tell;

const LEASE_SECONDS: i32 = 15;
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// Name of the Lease.
pub const LEASE_NAME: &str = "atlas-operator";

/// A candidate for the leadership.
pub struct Elector {
    api: Api<Lease>,
    identity: String,
    /// The holder's last renewal as this candidate saw it: a foreign clock is never compared with ours.
    observed: Option<(Lease, Instant)>,
    /// The Lease as this candidate wrote it last.
    written: Option<Lease>,
}

/// Whether the lease may be taken.
fn may_take(spec: &LeaseSpec, identity: &str, unchanged: Duration) -> bool {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.unwrap_or(LEASE_SECONDS).max(1).unsigned_abs();
    holder.is_empty() || holder == identity || unchanged >= Duration::from_secs(u64::from(seconds))
}

/// The specification after `identity` took or renewed it.
fn claimed(previous: Option<&LeaseSpec>, identity: &str, now: Timestamp) -> LeaseSpec {
    let same = previous.filter(|spec| spec.holder_identity.as_deref() == Some(identity));
    let transitions = previous.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        acquire_time: same.and_then(|spec| spec.acquire_time.clone()).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if same.is_some() || previous.is_none() {
            transitions
        } else {
            transitions + 1
        }),
        ..LeaseSpec::default()
    }
}

impl Elector {
    /// A candidate for the Lease in this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, observed: None, written: None }
    }

    /// Waits until this candidate leads; `false` where the token was cancelled before.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        loop {
            match self.try_hold().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        error = %tell(&error),
                        "the Lease could not be read or taken"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => return false,
            }
        }
    }

    /// Renews until the token is cancelled (then finishes the work, releases, `true`) or the lease is lost (`false`).
    pub async fn hold(&mut self, stop: &CancellationToken, finish: impl Future<Output = ()>) -> bool {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => {
                    // Within the lease, or a successor would work beside what still runs.
                    let _ = tokio::time::timeout(RENEW_DEADLINE, finish).await;
                    self.release().await;
                    return true;
                }
            }
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.try_hold()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return false,
                Ok(Err(error)) if renewed.elapsed() < RENEW_DEADLINE => {
                    tracing::warn!(
                        error = %tell(&error),
                        "the Lease could not be renewed"
                    );
                }
                Ok(Err(_)) | Err(_) => return false,
            }
        }
    }

    async fn try_hold(&mut self) -> Result<bool, kube::Error> {
        let now = Timestamp::now();
        // The holder knows the Lease without asking: a conflict tells that somebody else has written it since.
        if let Some(lease) = self.written.take()
            && self.write(lease, now).await?
        {
            return Ok(true);
        }
        let Some(lease) = self.api.get_opt(LEASE_NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(LEASE_NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(claimed(None, &self.identity, now)),
            };
            let created = self.api.create(&PostParams::default(), &lease).await;
            return self.keep(created);
        };
        let unchanged = match &self.observed {
            Some((seen, since)) if seen.spec == lease.spec => since.elapsed(),
            _ => {
                self.observed = Some((lease.clone(), Instant::now()));
                Duration::ZERO
            }
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if !may_take(&spec, &self.identity, unchanged) {
            return Ok(false);
        }
        self.write(lease, now).await
    }

    async fn write(&mut self, mut lease: Lease, now: Timestamp) -> Result<bool, kube::Error> {
        lease.spec = Some(claimed(lease.spec.as_ref(), &self.identity, now));
        let replaced = self.api.replace(LEASE_NAME, &PostParams::default(), &lease).await;
        self.keep(replaced)
    }

    /// Somebody else was faster: not an error, but not ours either.
    fn keep(&mut self, written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
        match written {
            Ok(lease) => {
                self.written = Some(lease);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn release(&self) {
        let released = async {
            let mut lease = self.api.get(LEASE_NAME).await?;
            if let Some(spec) = &mut lease.spec
                && spec.holder_identity.as_deref() == Some(&self.identity)
            {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                self.api.replace(LEASE_NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(RETRY, released).await {
            Ok(Ok(())) => tracing::info!("released the Lease"),
            Ok(Err(error)) => {
                tracing::warn!(error = %tell(&error), "the Lease could not be released");
            }
            Err(_) => tracing::warn!("the Lease could not be released in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_lease_is_free_at_once_and_a_held_one_only_after_its_time() {
        let held = claimed(None, "a", Timestamp::UNIX_EPOCH);
        let check = |spec: &LeaseSpec, who: &str, seconds: u64, expected: bool| {
            assert_eq!(
                may_take(spec, who, Duration::from_secs(seconds)),
                expected,
                "{who} after {seconds} s"
            );
        };
        check(&held, "a", 0, true);
        check(&held, "b", 14, false);
        check(&held, "b", 15, true);
        check(&LeaseSpec { holder_identity: None, ..held.clone() }, "b", 0, true);
        let taken = claimed(Some(&held), "b", Timestamp::UNIX_EPOCH);
        assert_eq!(taken.lease_transitions, Some(1));
    }
}
