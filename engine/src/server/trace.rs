//! What a request was doing when, as spans: the whole of it, and within it queued, prefill and decode.
//!
//! A request's span belongs to the trace that its `traceparent` header names (W3C Trace Context), else to one of its
//! own. Nothing here sends anything.

use crate::otlp::{Attribute, Exporter, Span};
use axum::http::HeaderMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The trace that a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: u128,
    /// The caller's span, where there is one.
    parent: Option<u64>,
    /// Whether the caller wants it recorded.
    sampled: bool,
}

impl TraceContext {
    /// The caller's trace, or a new one where the header is missing or not of its form.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get("traceparent").and_then(|value| Self::parse(value.to_str().ok()?));
        given.unwrap_or_else(|| Self { trace_id: rand::random(), parent: None, sampled: true })
    }

    /// Reads `VERSION-TRACE-PARENT-FLAGS`; later versions may have more behind it.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let mut hex = |digits: usize| {
            let part = parts.next()?;
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            (part.len() == digits && part.bytes().all(lower)).then_some(part)
        };
        let (version, trace, parent, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        if version == "ff" || version == "00" && parts.next().is_some() {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let parent = u64::from_str_radix(parent, 16).ok().filter(|id| *id != 0)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace_id, parent: Some(parent), sampled })
    }
}

/// When a request passed from one stage to the next.
#[derive(Debug, Clone)]
pub struct Timeline {
    context: TraceContext,
    operation: &'static str,
    model: String,
    clock: SystemTime,
    arrived: Instant,
    /// Its first step began.
    began: Option<Instant>,
    /// Its first token came.
    first_token: Option<Instant>,
}

/// How a request went, for its span.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// `answered`, or why not.
    pub end: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were cached.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
}

/// A request under way, whose spans leave when it is dropped; its client has left unless `outcome` says otherwise.
pub struct Recording {
    /// What it was doing when.
    pub timeline: Timeline,
    /// How it went.
    pub outcome: Outcome,
    /// Where its spans go.
    pub spans: Option<Exporter>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(spans) = &self.spans {
            spans.send(self.timeline.spans(self.outcome, Instant::now()));
        }
    }
}

impl Timeline {
    /// A request that has arrived; `clock` is the time of day at `arrived`.
    pub fn new(
        context: TraceContext,
        operation: &'static str,
        model: String,
        clock: SystemTime,
        arrived: Instant,
    ) -> Self {
        Self { context, operation, model, clock, arrived, began: None, first_token: None }
    }

    /// A step of one of its choices began; the earliest counts.
    pub fn begin(&mut self, at: Instant) {
        self.began = Some(self.began.map_or(at, |began| began.min(at)));
    }

    /// One of its choices has a token; the first counts.
    pub fn token(&mut self, at: Instant) {
        self.first_token.get_or_insert(at);
    }

    /// The trace.
    pub fn trace_id(&self) -> u128 {
        self.context.trace_id
    }

    /// From its arrival to its first step; none where it had none.
    pub fn queued(&self) -> Option<Duration> {
        Some(self.began?.saturating_duration_since(self.arrived))
    }

    /// From its first step to its first token; none where it had none.
    pub fn prefill(&self) -> Option<Duration> {
        Some(self.first_token?.saturating_duration_since(self.began?))
    }

    /// The spans of a request that has ended; none where the caller wants none. A stage that was not reached has none,
    /// and the last one ends with the request.
    pub fn spans(&self, outcome: Outcome, now: Instant) -> Vec<Span> {
        let Self { context, operation, model, clock: _, arrived, began, first_token } = self;
        if !context.sampled {
            return Vec::new();
        }
        let Outcome { end, prompt_tokens, cached_tokens, completion_tokens } = outcome;
        let own: u64 = rand::random();
        let count = |count: usize| Attribute::Int(count as u64);
        let request = Span {
            trace_id: context.trace_id,
            span_id: own,
            parent: context.parent,
            name: format!("{operation} {model}"),
            server: true,
            start_nanos: self.nanos(*arrived),
            end_nanos: self.nanos(now),
            attributes: vec![
                ("gen_ai.operation.name", Attribute::Text((*operation).to_owned())),
                ("gen_ai.request.model", Attribute::Text(model.clone())),
                ("gen_ai.usage.input_tokens", count(prompt_tokens)),
                ("gen_ai.usage.output_tokens", count(completion_tokens)),
                ("gen_ai.usage.cache_read.input_tokens", count(cached_tokens)),
            ],
            error: (end != "answered").then_some(end),
        };
        let stages = [
            ("queued", Some(*arrived), *began),
            ("prefill", *began, *first_token),
            ("decode", *first_token, Some(now)),
        ];
        let stages = stages.into_iter().filter_map(|(name, from, to)| {
            let (from, to) = (from?, to.unwrap_or(now));
            Some(Span {
                trace_id: context.trace_id,
                span_id: rand::random(),
                parent: Some(own),
                name: name.to_owned(),
                server: false,
                start_nanos: self.nanos(from),
                end_nanos: self.nanos(to),
                attributes: Vec::new(),
                error: None,
            })
        });
        std::iter::once(request).chain(stages).collect()
    }

    /// Nanoseconds since 1970.
    fn nanos(&self, at: Instant) -> u64 {
        let since = self.clock.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from((since + at.saturating_duration_since(self.arrived)).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_trace_is_read_in_its_form_only() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let expected =
            |sampled| Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, Some(0xf067_aa0b), sampled));
        for (text, expected) in [
            (format!("00-{trace}-00000000f067aa0b-01"), expected(true)),
            (format!("00-{trace}-00000000f067aa0b-00"), expected(false)),
            (format!("00-{trace}-00000000f067aa0b-03"), expected(true)),
            (format!("cc-{trace}-00000000f067aa0b-01-what-comes"), expected(true)),
            (format!("00-{trace}-00000000f067aa0b-01-more"), None),
            (format!("ff-{trace}-00000000f067aa0b-01"), None),
            (format!("00-{}-00000000f067aa0b-01", trace.to_uppercase()), None),
            (format!("00-{}-00000000f067aa0b-01", "0".repeat(32)), None),
            (format!("00-{trace}-0000000000000000-01"), None),
            (format!("00-{trace}-f067aa0b-01"), None),
            (format!("00-{trace}-00000000f067aa0b"), None),
            (String::new(), None),
        ] {
            let read = TraceContext::parse(&text);
            assert_eq!(read.map(|read| (read.trace_id, read.parent, read.sampled)), expected, "{text}");
        }
    }

    #[test]
    fn stages_follow_each_other_within_the_request() {
        let arrived = Instant::now();
        let after = |millis: u64| arrived + Duration::from_millis(millis);
        let context = TraceContext { trace_id: 7, parent: Some(9), sampled: true };
        let clock = UNIX_EPOCH + Duration::from_secs(1);
        let outcome = |end| Outcome { end, prompt_tokens: 5, cached_tokens: 2, completion_tokens: 3 };
        let mut timeline = Timeline::new(context, "chat", "m".into(), clock, arrived);
        let shown = |timeline: &Timeline, end, now| -> Vec<(String, u64, u64)> {
            let millis = |nanos: u64| nanos / 1_000_000;
            let spans = timeline.spans(outcome(end), after(now)).into_iter();
            spans.map(|span| (span.name, millis(span.start_nanos), millis(span.end_nanos))).collect()
        };
        let expected = |spans: &[(&str, u64, u64)]| -> Vec<(String, u64, u64)> {
            spans.iter().map(|(name, from, to)| ((*name).to_owned(), *from, *to)).collect()
        };
        // It left while it waited.
        assert_eq!(
            shown(&timeline, "client", 40),
            expected(&[("chat m", 1000, 1040), ("queued", 1000, 1040)])
        );
        assert_eq!((timeline.queued(), timeline.prefill()), (None, None));
        // Several choices: the first to begin and the first token count.
        [30, 10].into_iter().for_each(|at| timeline.begin(after(at)));
        [25, 50].into_iter().for_each(|at| timeline.token(after(at)));
        assert_eq!(
            shown(&timeline, "answered", 90),
            expected(&[
                ("chat m", 1000, 1090),
                ("queued", 1000, 1010),
                ("prefill", 1010, 1025),
                ("decode", 1025, 1090)
            ])
        );
        let millis = Duration::from_millis;
        assert_eq!((timeline.queued(), timeline.prefill()), (Some(millis(10)), Some(millis(15))));
        let spans = timeline.spans(outcome("timeout"), after(90));
        assert_eq!((spans[0].parent, spans[0].error, spans[0].server), (Some(9), Some("timeout"), true));
        assert!(spans[1..].iter().all(|span| span.parent == Some(spans[0].span_id) && span.trace_id == 7));
        let unwanted = TraceContext { sampled: false, ..context };
        let unwanted = Timeline::new(unwanted, "chat", "m".into(), clock, arrived);
        assert!(unwanted.spans(outcome("answered"), after(1)).is_empty());
    }
}
