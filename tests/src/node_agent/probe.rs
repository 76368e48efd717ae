//! Probes: the counting rules (pure) and the request itself.
//!
//! HTTP and TCP probes only; a probe of another kind counts as failed and says so. They are sent from the node's
//! network namespace, as a kubelet sends them, since the agent's thread lives there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// What a probe decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Holds the other two back until the container is up.
    Startup,
    /// Restarts the container.
    Liveness,
    /// Takes the container out of Services.
    Readiness,
}

impl ProbeKind {
    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// Consecutive results against a probe's thresholds.
#[derive(Debug)]
pub struct ProbeCounter {
    failure_threshold: u32,
    success_threshold: u32,
    last: Option<bool>,
    run: u32,
}

impl ProbeCounter {
    /// Starts without any result.
    pub fn new(probe: &Probe) -> Self {
        let threshold =
            |value: Option<i32>, default| value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default);
        Self {
            failure_threshold: threshold(probe.failure_threshold, 3).max(1),
            success_threshold: threshold(probe.success_threshold, 1).max(1),
            last: None,
            run: 0,
        }
    }

    /// Counts one result; the verdict once a threshold is reached, `None` before that.
    pub fn record(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.run >= threshold).then_some(success)
    }
}

/// When to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeTiming {
    /// Before the first probe.
    pub initial_delay: Duration,
    /// Between two probes.
    pub period: Duration,
    /// How long one may take.
    pub timeout: Duration,
}

impl ProbeTiming {
    /// The probe's own times with Kubernetes' defaults.
    pub fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
        }
    }
}

/// Why one probe failed; the text goes into the event.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The connection failed.
    #[error("dial tcp {address}: {source}")]
    Dial {
        /// Where to.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("{address}: no answer within {timeout:?}")]
    Late {
        /// Where to.
        address: SocketAddr,
        /// The probe's timeout.
        timeout: Duration,
    },
    /// An HTTP answer that is not a success.
    #[error("HTTP probe failed with statuscode: {0}")]
    Status(u16),
    /// The answer is not HTTP.
    #[error("{0} did not answer in HTTP")]
    NotHttp(SocketAddr),
    /// The port is neither a number nor the name of a container port.
    #[error("port {0} is not one of the container's ports")]
    UnknownPort(String),
    /// A kind of probe that the node agent lacks.
    #[error("the simulated node knows only httpGet (HTTP) and tcpSocket probes")]
    Unsupported,
}

/// Sends one probe.
///
/// # Errors
/// When the probe fails, whatever the reason.
pub async fn send_probe(probe: &Probe, container: &Container, pod_ip: IpAddr) -> Result<(), ProbeError> {
    let timeout = ProbeTiming::of(probe).timeout;
    let (host, port, http) = match (&probe.http_get, &probe.tcp_socket) {
        (Some(get), _) if get.scheme.as_deref().unwrap_or("HTTP") == "HTTP" => {
            (&get.host, &get.port, Some(get))
        }
        (None, Some(tcp)) => (&tcp.host, &tcp.port, None),
        _ => return Err(ProbeError::Unsupported),
    };
    let ip = host.as_ref().and_then(|host| host.parse().ok()).unwrap_or(pod_ip);
    let address = SocketAddr::new(ip, port_number(port, container)?);
    let request = async {
        let stream =
            TcpStream::connect(address).await.map_err(|source| ProbeError::Dial { address, source })?;
        match http {
            Some(get) => get_status(stream, get, address).await,
            None => Ok(()),
        }
    };
    tokio::time::timeout(timeout, request).await.unwrap_or(Err(ProbeError::Late { address, timeout }))
}

/// The number behind a port that may be a name.
fn port_number(port: &IntOrString, container: &Container) -> Result<u16, ProbeError> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| {
        ProbeError::UnknownPort(match port {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(name) => name.clone(),
        })
    })
}

async fn get_status(
    mut stream: TcpStream,
    get: &HTTPGetAction,
    address: SocketAddr,
) -> Result<(), ProbeError> {
    let path = get.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut request =
        format!("GET {slash}{path} HTTP/1.1\r\nUser-Agent: kube-probe/1.36\r\nConnection: close\r\n");
    let headers = get.http_headers.as_deref().unwrap_or_default();
    if !headers.iter().any(|header| header.name.eq_ignore_ascii_case("host")) {
        request.push_str(&format!("Host: {address}\r\n"));
    }
    for header in headers {
        request.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    request.push_str("\r\n");
    let dial = |source| ProbeError::Dial { address, source };
    stream.write_all(request.as_bytes()).await.map_err(dial)?;
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line).await.map_err(dial)?;
    match parse_status(&line) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(ProbeError::Status(status)),
        None => Err(ProbeError::NotHttp(address)),
    }
}

/// The status of `HTTP/1.1 200 OK`.
fn parse_status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` and `-` are results; the output has `R` (ready), `F` (failed) or `.` (no verdict) for each.
    fn check(failures: i32, successes: i32, results: &str, expected: &str) {
        let probe = Probe {
            failure_threshold: Some(failures),
            success_threshold: Some(successes),
            ..Probe::default()
        };
        let mut counter = ProbeCounter::new(&probe);
        let verdicts: String = results
            .chars()
            .map(|result| match counter.record(result == '+') {
                Some(true) => 'R',
                Some(false) => 'F',
                None => '.',
            })
            .collect();
        assert_eq!(verdicts, expected, "{results}");
    }

    #[test]
    fn a_threshold_counts_consecutive_results() {
        check(3, 1, "---+--+---", "..FR..R..F");
        check(1, 2, "+++-+-++", ".RRF.F.R");
        check(1, 1, "-+-", "FRF");
    }

    #[test]
    fn status_lines_are_read_strictly() {
        assert_eq!(parse_status(b"HTTP/1.1 503 Service Unavailable\r\n"), Some(503));
        assert_eq!(parse_status(b"HTTP/1.0 204\r\n"), Some(204));
        assert_eq!(parse_status(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(parse_status(b""), None);
        assert_eq!(parse_status(b"HTTP/1.1 \xff\r\n"), None);
    }

    #[test]
    fn a_named_port_comes_from_the_container() {
        let container: Container = serde_json::from_value(
            serde_json::json!({"name": "c", "ports": [{"name": "api", "containerPort": 8000}]}),
        )
        .expect("a container");
        assert_eq!(port_number(&IntOrString::String("api".into()), &container).ok(), Some(8000));
        assert_eq!(port_number(&IntOrString::String("81".into()), &container).ok(), Some(81));
        assert!(port_number(&IntOrString::String("none".into()), &container).is_err());
        assert!(port_number(&IntOrString::Int(70000), &container).is_err());
    }
}
