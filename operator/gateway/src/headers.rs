//! Which headers pass, in both directions, and what the gateway's own request headers mean.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Version, header, request::Parts};

use crate::error::ApiError;

/// The tier that answered.
pub const TIER: HeaderName = HeaderName::from_static("x-atlas-tier");
/// The model file that answered.
pub const MODEL: HeaderName = HeaderName::from_static("x-atlas-model");
/// Identifies a request in the logs of everything that it passes.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// An API key in the way of `/v1/messages`.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Whom the gateway let in: engines keep callers' cached prefixes apart by it.
const CALLER: HeaderName = HeaderName::from_static("x-atlas-caller");
const REQUIRE_TIER: HeaderName = HeaderName::from_static("x-atlas-require-tier");
const NO_FALLBACK: HeaderName = HeaderName::from_static("x-atlas-no-fallback");
const ACROSS_MODELS: HeaderName = HeaderName::from_static("x-atlas-resume-across-models");
const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-atlas-timeout-ms");

/// Headers that belong to one connection only (RFC 9110, 7.6.1), or that the gateway has dealt with itself.
const NOT_PASSED: [HeaderName; 15] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
    header::CONTENT_LENGTH,
    // API keys are the gateway's business; engines never see them.
    header::AUTHORIZATION,
    API_KEY,
    header::COOKIE,
];

/// A longer id of a request is replaced.
const LONGEST_REQUEST_ID: usize = 256;

/// What the client asks of the gateway itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The only tier that may answer.
    pub require_tier: Option<String>,
    /// Whether only the first tier may answer.
    pub no_fallback: bool,
    /// A shorter limit than the model's own.
    pub timeout: Option<Duration>,
    /// Whether a broken stream may go on at another model; else the model's own word counts.
    pub across_models: Option<bool>,
}

impl Wishes {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// A value means nothing.
    pub fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let text =
            |name: &HeaderName| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let bad =
            |name, value: &str, expected| ApiError::BadHeader { name, value: value.to_owned(), expected };
        let timeout = match text(&TIMEOUT_MS) {
            None => None,
            Some(value) => match value.trim().parse::<u64>() {
                Ok(millis) if millis > 0 => Some(Duration::from_millis(millis)),
                _ => return Err(bad("x-atlas-timeout-ms", &value, "a positive number of milliseconds")),
            },
        };
        let flag = |name: &HeaderName, told| match text(name).as_deref().map(str::trim) {
            None => Ok(None),
            Some("false" | "0") => Ok(Some(false)),
            Some("true" | "1") => Ok(Some(true)),
            Some(value) => Err(bad(told, value, "true or false")),
        };
        let no_fallback = flag(&NO_FALLBACK, "x-atlas-no-fallback")?.unwrap_or(false);
        let across_models = flag(&ACROSS_MODELS, "x-atlas-resume-across-models")?;
        Ok(Self {
            require_tier: text(&REQUIRE_TIER).map(|tier| tier.trim().to_owned()),
            no_fallback,
            timeout,
            across_models,
        })
    }
}

/// Refuses a head that two readers could read in two ways, beyond what the HTTP library refuses by itself.
///
/// # Errors
///
/// Chunks within chunks, several hosts, or none where there must be one (RFC 9112, 3.2 and 6.1).
pub fn check_clear(head: &Parts) -> Result<(), ApiError> {
    let codings: Vec<&HeaderValue> = head.headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if !matches!(codings.as_slice(), [] | [_]) || !codings.iter().all(|value| is_chunked(value)) {
        return Err(ApiError::Ambiguous {
            what: "send Transfer-Encoding once, as \"chunked\", or not at all",
        });
    }
    match head.headers.get_all(header::HOST).iter().count() {
        0 if head.version == Version::HTTP_11 => Err(ApiError::Ambiguous { what: "it has no Host header" }),
        0 | 1 => Ok(()),
        _ => Err(ApiError::Ambiguous { what: "send Host once" }),
    }
}

/// The headers of a request as an engine gets them; `caller` is empty where the model asks for no key.
#[must_use]
pub fn for_engine(headers: &HeaderMap, caller: &str) -> HeaderMap {
    let mut passed = pass(headers);
    // Names of a Secret's entries are always of a header's characters.
    if let Ok(caller) = HeaderValue::from_str(caller)
        && !caller.is_empty()
    {
        passed.insert(CALLER, caller);
    }
    // Engines answer with it, and the buffer for the heads of their answers is small.
    if passed.get(REQUEST_ID).is_none_or(|id| id.len() > LONGEST_REQUEST_ID) {
        let id = format!("{:032x}", rand::random::<u128>());
        if let Ok(value) = HeaderValue::from_str(&id) {
            passed.insert(REQUEST_ID, value);
        }
    }
    passed
}

/// The headers of an engine's answer as the client gets them.
#[must_use]
pub fn for_client(headers: &HeaderMap, tier: &str, display_model: &str) -> HeaderMap {
    let mut passed = pass(headers);
    for (name, text) in [(TIER, tier), (MODEL, display_model)] {
        // A file name may hold what a header may not: it is left out then.
        if let Ok(value) = HeaderValue::from_str(text) {
            passed.insert(name, value);
        }
    }
    passed
}

fn pass(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let kept = headers.iter().filter(|(name, _)| {
        !NOT_PASSED.contains(name)
            && !name.as_str().starts_with("x-atlas-")
            && !named.iter().any(|n| n == name.as_str())
    });
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> HeaderMap {
        let entry =
            |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        entries.iter().map(entry).collect()
    }

    #[test]
    fn headers_of_the_connection_and_secrets_stay_here() {
        let given = map(&[
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("host", "code"),
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
            ("x-atlas-require-tier", "primary"),
            ("x-atlas-caller", "somebody else"),
            ("x-request-id", "mine"),
            ("traceparent", "00-1-2-01"),
            ("content-type", "application/json"),
        ]);
        let passed = for_engine(&given, "");
        let mut names: Vec<&str> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "traceparent", "x-request-id"]);
        assert_eq!(passed["x-request-id"], "mine");
        assert_eq!(for_engine(&given, "alice")["x-atlas-caller"], "alice");
    }

    #[test]
    fn a_request_without_an_id_or_with_a_long_one_gets_one() {
        assert_eq!(for_engine(&HeaderMap::new(), "")["x-request-id"].len(), 32);
        for (told, kept) in [(256, 256), (257, 32)] {
            let passed = for_engine(&map(&[("x-request-id", &"a".repeat(told))]), "");
            assert_eq!(passed["x-request-id"].len(), kept);
        }
    }

    #[test]
    fn an_answer_says_what_served_it_and_an_engine_cannot_say_otherwise() {
        let passed = for_client(&map(&[("x-atlas-tier", "forged"), ("x-request-id", "1")]), "primary", "big");
        assert_eq!(
            (&passed["x-atlas-tier"], &passed["x-atlas-model"]),
            (&"primary".parse().unwrap(), &"big".parse().unwrap())
        );
        assert!(!for_client(&HeaderMap::new(), "primary", "a\nb").contains_key("x-atlas-model"));
    }

    #[test]
    fn wishes_are_understood_or_refused() {
        let wishes = Wishes::parse(&map(&[
            ("x-atlas-require-tier", "primary"),
            ("x-atlas-no-fallback", "true"),
            ("x-atlas-timeout-ms", "250"),
            ("x-atlas-resume-across-models", "1"),
        ]));
        let expected = Wishes {
            require_tier: Some("primary".into()),
            no_fallback: true,
            timeout: Some(Duration::from_millis(250)),
            across_models: Some(true),
        };
        assert_eq!(wishes.unwrap(), expected);
        for bad in [
            ("x-atlas-timeout-ms", "0"),
            ("x-atlas-timeout-ms", "soon"),
            ("x-atlas-no-fallback", "maybe"),
            ("x-atlas-resume-across-models", ""),
        ] {
            assert!(Wishes::parse(&map(&[bad])).is_err(), "{bad:?}");
        }
    }
}
