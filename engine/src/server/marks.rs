//! What the resume contract adds to streams whose events have no room for it: names that a resumed answer has again, and a
//! comment behind the events of each token, so that a gateway knows which tokens a client has seen all of.

use super::params::Params;
use super::reply::{Event, new_id};
use super::unix_seconds;
use atlas_engine_core::TokenId;
use serde_json::json;
use sha2::{Digest, Sha256};

/// What such a comment begins with.
const NAME: &str = "atlas-resume";

/// Id and time of an answer: a new one's, or those of the broken one that a request goes on with.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The id.
    pub id: String,
    /// The time.
    pub created: u64,
}

impl Identity {
    /// Of the answer to a request.
    pub fn of(params: &Params, prefix: &str) -> Self {
        match &params.resume.from {
            Some(broken) => Self { id: broken.id.clone(), created: broken.created },
            None => Self { id: new_id(prefix), created: unix_seconds() },
        }
    }

    /// The id of one of its parts: the same for a resumed answer as for the unbroken one.
    pub fn part(&self, prefix: &str, index: usize) -> String {
        let digest = hex::encode(Sha256::digest(format!("{} {index}", self.id)));
        format!("{prefix}{}", &digest[..32])
    }
}

/// Writes the comments.
#[derive(Debug)]
pub struct Marks {
    /// Told once, in the first.
    origin: Option<(Identity, Option<u64>)>,
}

impl Marks {
    /// For an answer whose request asks for them.
    pub fn new(params: &Params, identity: Identity) -> Option<Self> {
        // Log-probabilities of what was said before stand in the last events, and a resumed answer has not got them:
        // without its seed nobody goes on with it.
        let seed = params.sampling.top_logprobs.is_none().then_some(params.sampling.seed);
        params.resume.return_token_ids.then_some(Self { origin: Some((identity, seed)) })
    }

    /// Behind the events of these tokens.
    pub fn tokens(&mut self, ids: &[TokenId]) -> Event {
        let mut mark = json!({"token_ids": ids});
        if let Some((Identity { id, created }, seed)) = self.origin.take() {
            mark["id"] = id.into();
            mark["created"] = created.into();
            if let Some(seed) = seed {
                mark["seed"] = seed.into();
            }
        }
        Event::comment(NAME, &mark)
    }

    /// Behind the last events.
    pub fn end() -> Event {
        Event::comment(NAME, &json!({"token_ids": [], "end": true}))
    }
}
