//! What goes along with a download's requests so that its server answers: nothing, a token, or a signature.

use super::FetchError;
use super::source::{Origin, Remote};
use atlas_s3::{BUCKET_REGION_HEADER, Credentials, Object, Refusal, Verb};
use reqwest::header::{AUTHORIZATION, HeaderName, IF_MATCH, IF_RANGE};
use reqwest::{Client, Method, RequestBuilder, Response};

/// Bytes of a refusal that are read.
const MAX_REFUSAL: usize = 8 << 10;

/// What goes along with each request of a download. It is made once, and says nothing of what it holds.
pub enum Pass<'a> {
    /// Nothing.
    Open,
    /// A file of the hub, with a token where there is one.
    Hub(Option<String>),
    /// An object of a bucket; without credentials the bucket has to be public.
    Object(&'a Object, Option<Credentials>),
}

impl<'a> Pass<'a> {
    /// Finds what a source needs in the environment.
    ///
    /// # Errors
    /// A part of the credentials is missing.
    pub fn of(remote: &'a Remote) -> Result<Self, FetchError> {
        // What is no text is no token either.
        let variable = |name: &str| std::env::var(name).ok();
        Ok(match &remote.origin {
            Origin::Web => Self::Open,
            Origin::Hub => {
                let token = variable("HF_TOKEN").map(|token| token.trim().to_owned());
                Self::Hub(token.filter(|token| !token.is_empty()))
            }
            Origin::Bucket(object) => {
                Self::Object(object, Credentials::read(variable).map_err(FetchError::Credentials)?)
            }
        })
    }

    /// A request for the file, with it.
    pub fn request(&self, client: &Client, verb: Verb, remote: &Remote) -> RequestBuilder {
        let method = match verb {
            Verb::Get => Method::GET,
            Verb::Head => Method::HEAD,
        };
        match self {
            Self::Open | Self::Hub(None) | Self::Object(_, None) => client.request(method, &remote.url),
            Self::Hub(Some(token)) => {
                client.request(method, &remote.url).header(AUTHORIZATION, format!("Bearer {token}"))
            }
            Self::Object(object, Some(credentials)) => {
                client.request(method, credentials.sign(verb, object, jiff::Timestamp::now()))
            }
        }
    }

    /// The header that binds a continuation to a version: buckets know nothing of `If-Range`, and refuse by 412.
    pub const fn version_header(&self) -> HeaderName {
        match self {
            Self::Open | Self::Hub(_) => IF_RANGE,
            Self::Object(..) => IF_MATCH,
        }
    }

    /// Cause and remedy of a refusal.
    pub async fn explain(&self, response: Response) -> String {
        let status = response.status().as_u16();
        let told = |text: &str| text.to_owned();
        // The hub says which part of an address is unknown.
        if response.headers().get("x-error-code").is_some_and(|code| code == "RevisionNotFound") {
            return told(": the repository has no such revision");
        }
        match (self, status) {
            (Self::Object(object, credentials), _) => {
                let region = response.headers().get(BUCKET_REGION_HEADER);
                let region = region.and_then(|region| region.to_str().ok()).map(str::to_owned);
                let body = read_refusal(response).await;
                let (signed, bucket_region) = (credentials.is_some(), region.as_deref());
                Refusal { status, bucket_region, body: &body, signed, region: object.region() }.explain()
            }
            (Self::Hub(Some(_)), 401 | 403) => told(
                ": the token in HF_TOKEN may not read this repository; accept its terms with the token's account",
            ),
            (Self::Hub(None), 401 | 403) => told(
                ": the repository may be gated or private; give a token in HF_TOKEN (credentialsSecret of the model)",
            ),
            (Self::Open, 401 | 403) => told(": the server wants credentials"),
            (_, 404) => told(": check the source's spelling"),
            _ => String::new(),
        }
    }
}

async fn read_refusal(mut response: Response) -> String {
    let mut body = Vec::new();
    // What does not come is not needed: the status stands for itself.
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= MAX_REFUSAL {
            body.truncate(MAX_REFUSAL);
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}
