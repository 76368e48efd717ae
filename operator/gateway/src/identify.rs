//! Which model a request means: by Host, else by the body's `model`, else the only one there is.
//!
//! Pure. Whether the caller may use the model is `auth`'s question, not asked here.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{error::ApiError, table::ModelConfig};

/// What the gateway reads of a request body; the engine reads the rest, and says what is wrong with it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct BodyHead {
    /// The model id.
    #[serde(deserialize_with = "text_or_nothing")]
    pub model: Option<String>,
    /// Whether the answer comes as a stream.
    pub stream: Option<Value>,
    /// Length limit of the answer.
    pub max_tokens: Option<Value>,
    /// The newer name of the same.
    pub max_completion_tokens: Option<Value>,
    /// Its name in `/v1/responses`.
    pub max_output_tokens: Option<Value>,
    priority: Option<IgnoredAny>,
    return_token_ids: Option<IgnoredAny>,
    resume_tokens: Option<IgnoredAny>,
    resume: Option<IgnoredAny>,
}

fn text_or_nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

impl BodyHead {
    /// Reads the head of a body. What is not JSON has no head, and the engine says what is wrong with it.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        if body.is_empty() { Self::default() } else { serde_json::from_slice(body).unwrap_or_default() }
    }

    /// Reads the head of a body, which is written anew where it names a field twice: engines take the last one, and
    /// what is read here must be what they read.
    #[must_use]
    pub fn of(body: Bytes) -> (Self, Bytes) {
        if body.is_empty() {
            return (Self::default(), body);
        }
        match serde_json::from_slice(&body) {
            Ok(head) => (head, body),
            Err(_) => {
                match serde_json::from_slice::<Value>(&body).ok().and_then(|v| serde_json::to_vec(&v).ok()) {
                    Some(single) => (Self::parse(&single), single.into()),
                    None => (Self::default(), body),
                }
            }
        }
    }

    /// The body without the field that says how urgent it is: among clients that share engines, each would say very.
    #[must_use]
    pub fn without_priority(&self, body: Bytes) -> Bytes {
        if self.priority.is_none() {
            return body;
        }
        let without =
            serde_json::from_slice::<serde_json::Map<String, Value>>(&body).ok().and_then(|mut fields| {
                fields.remove("priority");
                serde_json::to_vec(&fields).ok()
            });
        without.map_or(body, Bytes::from)
    }

    /// Whether it holds a field that is between gateway and engine only.
    #[must_use]
    pub fn names_contract_field(&self) -> bool {
        [&self.return_token_ids, &self.resume_tokens, &self.resume].into_iter().any(Option::is_some)
    }
}

/// The names under which the gateway's own namespace is reached.
#[derive(Debug, Clone)]
pub struct HostNames {
    /// The namespace.
    pub namespace: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
}

impl HostNames {
    /// The Service name in a Host header, where it is one of this namespace.
    #[must_use]
    pub fn service<'h>(&self, host: &'h str) -> Option<&'h str> {
        let host = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let (name, rest) = host.split_once('.').unwrap_or((host, ""));
        let Self { namespace, cluster_domain } = self;
        let known = rest.is_empty()
            || rest.strip_prefix(namespace.as_str()).is_some_and(|rest| {
                rest.is_empty()
                    || rest == ".svc"
                    || rest
                        .strip_prefix(".svc.")
                        .is_some_and(|domain| domain.eq_ignore_ascii_case(cluster_domain))
            });
        known.then_some(name)
    }
}

/// The model that a Host header names.
#[must_use]
pub fn by_host<'t>(
    models: &'t BTreeMap<String, Arc<ModelConfig>>,
    names: &HostNames,
    host: Option<&str>,
) -> Option<&'t Arc<ModelConfig>> {
    models.get(&names.service(host?)?.to_ascii_lowercase())
}

/// The model that a request means.
///
/// # Errors
///
/// 404 in OpenAI's form, with the ids that would have been found.
pub fn identify<'t>(
    models: &'t BTreeMap<String, Arc<ModelConfig>>,
    named_by_host: Option<&'t Arc<ModelConfig>>,
    id: Option<&str>,
) -> Result<&'t Arc<ModelConfig>, ApiError> {
    let not_found = |id: Option<&str>, models: &mut dyn Iterator<Item = &Arc<ModelConfig>>| {
        let available = models.flat_map(|model| model.ids().map(str::to_owned).collect::<Vec<_>>()).collect();
        ApiError::ModelNotFound { id: id.map(str::to_owned), available }
    };
    match (named_by_host, id) {
        (Some(model), Some(id)) if !model.answers_to(id) => {
            Err(not_found(Some(id), &mut std::iter::once(model)))
        }
        (Some(model), _) => Ok(model),
        (None, Some(id)) => models
            .get(id)
            .or_else(|| models.values().find(|model| model.answers_to(id)))
            .ok_or_else(|| not_found(Some(id), &mut models.values())),
        (None, None) => match models.len() {
            1 => models.values().next().ok_or_else(|| not_found(None, &mut models.values())),
            _ => Err(not_found(None, &mut models.values())),
        },
    }
}

/// What is wrong with a body that is there and no JSON.
#[must_use]
pub fn not_json(body: &[u8]) -> Option<ApiError> {
    let problem = serde_json::from_slice::<IgnoredAny>(body).err().filter(|_| !body.is_empty())?;
    Some(ApiError::NotJson { problem: problem.to_string() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn models(names: &[(&str, &[&str])]) -> BTreeMap<String, Arc<ModelConfig>> {
        let config = |(name, aliases): &(&str, &[&str])| ModelConfig {
            name: (*name).into(),
            aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
            suspended: false,
            api_keys_secret: None,
            tiers: Vec::new(),
            pinned_tier: None,
            active_tier_hint: None,
            unhealthy_after: Duration::ZERO,
            failback_after: Duration::ZERO,
            timeout: Duration::ZERO,
            queue: 0,
            across_models: false,
            client_priority: false,
            cors_origins: Vec::new(),
            max_body_bytes: 0,
        };
        names.iter().map(|entry| (entry.0.to_owned(), Arc::new(config(entry)))).collect()
    }

    #[test]
    fn hosts_name_services_of_this_namespace_only() {
        let names = HostNames { namespace: "atlas".into(), cluster_domain: "cluster.local".into() };
        let check = |host: &str, expected: Option<&str>| assert_eq!(names.service(host), expected, "{host}");
        check("code", Some("code"));
        check("code:8080", Some("code"));
        check("code.atlas", Some("code"));
        check("code.atlas.svc", Some("code"));
        check("code.atlas.svc:80", Some("code"));
        check("code.atlas.svc.cluster.local", Some("code"));
        check("code.atlas.svc.cluster.local.:8080", Some("code"));
        check("code.other", None);
        check("code.atlas.svc.other.local", None);
        check("code.atlasx", None);
        check("code.example.com", None);
        check("127.0.0.1:8080", None);
        check("[::1]:8080", Some("[::1]"));
        check("", Some(""));
    }

    #[test]
    fn a_request_means_the_model_that_it_names_first() {
        let names = HostNames { namespace: "atlas".into(), cluster_domain: "cluster.local".into() };
        let two = models(&[("code", &["gpt-patch"]), ("chat", &[])]);
        let one = models(&[("code", &["gpt-patch"])]);
        let none = models(&[]);
        let check = |table, host: Option<&str>, id: Option<&str>, expected: Result<&str, &[&str]>| {
            let found = identify(table, by_host(table, &names, host), id);
            match (found, expected) {
                (Ok(model), Ok(name)) => assert_eq!(model.name, name, "{host:?} {id:?}"),
                (Err(ApiError::ModelNotFound { available, .. }), Err(ids)) => assert_eq!(available, ids),
                (found, expected) => panic!("{host:?} {id:?}: {found:?}, expected {expected:?}"),
            }
        };
        check(&two, Some("chat.atlas.svc:8080"), None, Ok("chat"));
        check(&two, Some("CODE"), Some("gpt-patch"), Ok("code"));
        check(&two, Some("chat"), Some("code"), Err(&["chat"]));
        check(&two, Some("localhost"), Some("code"), Ok("code"));
        check(&two, Some("localhost"), Some("gpt-patch"), Ok("code"));
        check(&two, None, Some("gpt-4"), Err(&["chat", "code", "gpt-patch"]));
        check(&two, None, None, Err(&["chat", "code", "gpt-patch"]));
        check(&one, Some("localhost:1"), None, Ok("code"));
        check(&one, None, Some("gpt-4"), Err(&["code", "gpt-patch"]));
        check(&none, None, None, Err(&[]));
    }

    #[test]
    fn how_urgent_a_request_is_stays_here_however_it_is_written() {
        let check = |body: &'static str, expected: &str| {
            let (head, body) = BodyHead::of(Bytes::from_static(body.as_bytes()));
            assert_eq!(head.model.as_deref(), Some("code"), "{body:?}");
            let sent = head.without_priority(body);
            let value = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
            assert_eq!(value(&sent), value(expected.as_bytes()));
        };
        check(r#"{"model": "code", "n": 1}"#, r#"{"model": "code", "n": 1}"#);
        check(r#"{"model": "code", "priority": -5}"#, r#"{"model": "code"}"#);
        check(r#"{"model": "code", "\u0070riority": "x"}"#, r#"{"model": "code"}"#);
        check(r#"{"model": "code", "priority": 1, "priority": 2}"#, r#"{"model": "code"}"#);
        check(
            r#"{"model": "chat", "model": "code", "priority": null}"#,
            r#"{"model": "code", "priority": null}"#,
        );
        // What was not touched is sent byte for byte.
        let same = Bytes::from_static(b"{\"model\":  \"code\"}");
        let (head, body) = BodyHead::of(same.clone());
        assert_eq!((head.without_priority(body.clone()), body), (same.clone(), same));
        for broken in ["{", "[1]", "{\"model\": 1, \"model\": 2"] {
            let broken = Bytes::from_static(broken.as_bytes());
            let (head, body) = BodyHead::of(broken.clone());
            assert_eq!((head.model.clone(), head.without_priority(body)), (None, broken));
        }
    }

    #[test]
    fn a_body_that_is_no_request_has_no_head() {
        let model = |body: &str| BodyHead::parse(body.as_bytes()).model;
        assert_eq!(model(r#"{"messages": [], "model": "code"}"#).as_deref(), Some("code"));
        assert_eq!(model(r#"{"model": 5}"#), None);
        assert_eq!(model("{"), None);
        assert_eq!(model(""), None);
    }
}
