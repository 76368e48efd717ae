//! Settings of the gateway: where it listens, what it serves, and how patient it is.

use std::{net::SocketAddr, time::Duration};

use crate::tls::TlsFiles;

/// Settings of one gateway process. What belongs to a model stands in the AtlasModel instead.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The namespace whose models are served.
    pub namespace: String,
    /// Listener of the OpenAI-compatible API.
    pub listen: SocketAddr,
    /// Listener of `/healthz`, `/readyz`, `/metrics` and `/internal/status`.
    pub internal_listen: SocketAddr,
    /// Certificate and key of the API's listener; without them it speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// DNS domain of the cluster, as in `NAME.NAMESPACE.svc.DOMAIN`.
    pub cluster_domain: String,
    /// Name of this pod, shown in the status.
    pub pod_name: String,
    /// Waits and limits.
    pub timing: Timing,
}

/// Waits and limits that are the same for every model.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Distance of two probes of an endpoint, give or take a fifth.
    pub probe_interval: Duration,
    /// Distance of two looks at the clock: how late a silent endpoint or a due failback may be noticed.
    pub tick: Duration,
    /// How long an engine that counts its steps may have work and finish none.
    pub hang_after: Duration,
    /// How long one that does not may owe an answer without a sign of progress.
    pub first_byte_after: Duration,
    /// Longest wait for a connection to an engine.
    pub connect_timeout: Duration,
    /// Longest wait of a request for any tier to become ready.
    pub hold: Duration,
    /// Requests of one model that may wait like that at once.
    pub max_held: usize,
    /// Longest wait for the first event of a stream before its headers go out without it.
    pub first_byte_hold: Duration,
    /// Distance of the comments that keep such a stream awake.
    pub ping_interval: Duration,
    /// Longest wait of a broken stream for an engine that can go on with it.
    pub resume_hold: Duration,
    /// Longest wait for a request's body.
    pub body_timeout: Duration,
    /// Longest wait for a client to read what was written.
    pub write_timeout: Duration,
    /// How long new connections are still accepted after the stop signal, so that Services notice.
    pub drain_grace: Duration,
    /// For how long a connection is quiet before it is ended then: a request may be on its way.
    pub drain_quiet: Duration,
    /// How long running requests may take after that.
    pub drain_timeout: Duration,
    /// How long a client may take for its handshake, and then for the head of a request.
    pub head_timeout: Duration,
    /// How long a connection may wait for its next request: longer than what is in front of gateways, which would send it
    /// on a connection that ends at that moment.
    pub idle_timeout: Duration,
    /// Distance of two looks at the listener's certificate.
    pub tls_reload: Duration,
    /// Seconds after which the API server ends a watch, to be begun again where it was. One whose server is gone without a word
    /// is noticed five seconds later, and until then nothing new is seen.
    pub watch_seconds: u32,
    /// Largest answer that is held back until it is whole.
    pub max_buffered_answer_bytes: usize,
}

impl Timing {
    /// What a cluster gets.
    #[must_use]
    pub const fn production() -> Self {
        Self {
            probe_interval: Duration::from_millis(200),
            tick: Duration::from_millis(50),
            hang_after: Duration::from_secs(3),
            first_byte_after: Duration::from_secs(30),
            connect_timeout: Duration::from_millis(300),
            hold: Duration::from_secs(10),
            max_held: 1_024,
            first_byte_hold: Duration::from_secs(15),
            ping_interval: Duration::from_secs(5),
            resume_hold: Duration::from_secs(2),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            drain_grace: Duration::from_secs(3),
            drain_quiet: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(300),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(620),
            tls_reload: Duration::from_secs(1),
            watch_seconds: 20,
            max_buffered_answer_bytes: 64 << 20,
        }
    }
}
