//! Spans on their way to a collector: OTLP over HTTP, as JSON.
//!
//! A small part of the protocol, written out: the OpenTelemetry crates would add a second HTTP client, protocol
//! buffers and a registry of their own for the one kind of span there is. Nothing waits for the collector: what it does
//! not take in time is dropped and counted.

use prometheus::IntCounter;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Requests whose spans wait to be sent.
const WAITING: usize = 1024;
/// Spans of one message, at most about.
const BATCH: usize = 512;
/// How long spans wait for others to be sent with.
const GATHER: Duration = Duration::from_secs(1);
/// Time that the collector gets for a message.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Something that took time.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The trace that it belongs to.
    pub trace_id: u128,
    /// Its own id.
    pub span_id: u64,
    /// The span that it is part of.
    pub parent: Option<u64>,
    /// What it was.
    pub name: String,
    /// Whether it answers a caller, instead of being a part of that.
    pub server: bool,
    /// Nanoseconds since 1970.
    pub start_nanos: u64,
    /// Nanoseconds since 1970.
    pub end_nanos: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Why it failed, where it did.
    pub error: Option<&'static str>,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A text.
    Text(String),
    /// A count.
    Int(u64),
}

impl Attribute {
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!({"stringValue": text}),
            // The protocol writes whole numbers of 64 bits as strings.
            Self::Int(number) => json!({"intValue": number.to_string()}),
        }
    }
}

impl Span {
    fn json(&self) -> Value {
        let Self { trace_id, span_id, parent, name, server, start_nanos, end_nanos, attributes, error } =
            self;
        let attributes = attributes.iter().map(|(key, value)| json!({"key": key, "value": value.json()}));
        let mut span = json!({
            "traceId": format!("{trace_id:032x}"),
            "spanId": format!("{span_id:016x}"),
            "name": name,
            "kind": if *server { 2 } else { 1 },
            "startTimeUnixNano": start_nanos.to_string(),
            "endTimeUnixNano": end_nanos.to_string(),
            "attributes": attributes.collect::<Vec<_>>(),
            "status": error.map_or_else(|| json!({}), |error| json!({"code": 2, "message": error})),
        });
        if let Some(parent) = parent {
            span["parentSpanId"] = format!("{parent:016x}").into();
        }
        span
    }
}

/// The message that a collector takes.
fn message(spans: &[Span]) -> Value {
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let version = env!("CARGO_PKG_VERSION");
    json!({"resourceSpans": [{
        "resource": {"attributes": [attribute("service.name", "atlas-engine"), attribute("service.version", version)]},
        "scopeSpans": [{
            "scope": {"name": "atlas-engine", "version": version},
            "spans": spans.iter().map(Span::json).collect::<Vec<_>>(),
        }],
    }]})
}

enum Errand {
    Spans(Vec<Span>),
    /// Send what there is, then tell.
    Flush(oneshot::Sender<()>),
}

/// Takes spans to a collector, in the background.
#[derive(Debug, Clone)]
pub struct Exporter {
    errands: mpsc::Sender<Errand>,
    dropped: IntCounter,
}

impl Exporter {
    /// Starts on the runtime at hand; `endpoint` is the collector's base, such as `http://collector:4318`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn start(endpoint: &str, dropped: IntCounter) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let (errands, inbox) = mpsc::channel(WAITING);
        tokio::spawn(run(Collector { client, url, dropped: dropped.clone(), failing: false }, inbox));
        Ok(Self { errands, dropped })
    }

    /// Sends spans along; those that find no place are dropped.
    pub fn send(&self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        if count > 0 && self.errands.try_send(Errand::Spans(spans)).is_err() {
            self.dropped.inc_by(count);
        }
    }

    /// Waits until what was sent along before has left.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.errands.send(Errand::Flush(done)).await.is_ok() {
            // The other end closes only with the runtime.
            let _ = wait.await;
        }
    }
}

struct Collector {
    client: reqwest::Client,
    url: String,
    dropped: IntCounter,
    failing: bool,
}

async fn run(mut collector: Collector, mut inbox: mpsc::Receiver<Errand>) {
    while let Some(first) = inbox.recv().await {
        let (mut spans, mut told) = (Vec::new(), Vec::new());
        let gathered = tokio::time::Instant::now() + GATHER;
        let mut next = Some(first);
        while let Some(errand) = next {
            match errand {
                Errand::Spans(more) => spans.extend(more),
                Errand::Flush(done) => told.push(done),
            }
            if spans.len() >= BATCH || !told.is_empty() {
                break;
            }
            // Late is like closed here: what has been gathered is sent.
            next = tokio::time::timeout_at(gathered, inbox.recv()).await.unwrap_or_default();
        }
        if !spans.is_empty() {
            collector.post(&spans).await;
        }
        for done in told {
            // Who does not wait any more needs no answer.
            let _ = done.send(());
        }
    }
}

impl Collector {
    async fn post(&mut self, spans: &[Span]) {
        let request = self.client.post(&self.url).header("content-type", "application/json");
        let answer = request.body(message(spans).to_string()).send().await;
        let result = answer.and_then(reqwest::Response::error_for_status);
        if let Err(error) = &result {
            self.dropped.inc_by(spans.len() as u64);
            if !self.failing {
                tracing::warn!(url = self.url, %error, "the collector does not take spans; they are dropped");
            }
        } else if self.failing {
            tracing::info!(url = self.url, "the collector takes spans again");
        }
        self.failing = result.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_protocols_form() {
        let span = Span {
            trace_id: 0xab,
            span_id: 0xc,
            parent: None,
            name: "chat m".into(),
            server: true,
            start_nanos: 1,
            end_nanos: 2,
            attributes: vec![("a", Attribute::Text("t".into())), ("b", Attribute::Int(5))],
            error: None,
        };
        let failed = Span { parent: Some(0xc), server: false, error: Some("timeout"), ..span.clone() };
        let message = message(&[span, failed]);
        let spans = &message["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(
            spans[0],
            json!({"traceId": "000000000000000000000000000000ab", "spanId": "000000000000000c", "name": "chat m",
                "kind": 2, "startTimeUnixNano": "1", "endTimeUnixNano": "2", "status": {}, "attributes": [
                    {"key": "a", "value": {"stringValue": "t"}}, {"key": "b", "value": {"intValue": "5"}}]})
        );
        assert_eq!(spans[1]["parentSpanId"], "000000000000000c");
        assert_eq!((&spans[1]["kind"], &spans[1]["status"]["message"]), (&json!(1), &json!("timeout")));
        let resource = &message["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(resource["value"]["stringValue"], "atlas-engine");
    }
}
