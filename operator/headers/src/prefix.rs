//! The first bytes of a file behind HTTP, grown on demand.
//!
//! Ranges are asked for where the server knows them; where it sends the whole file instead, its stream is read as far
//! as needed and then dropped.

use std::error::Error;

use atlas_s3::{BUCKET_REGION_HEADER, Refusal, Verb};
use reqwest::{
    Client, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_RANGE, ETAG, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE},
};

use crate::{
    ask::Pass,
    error::HeaderError,
    guard::{Forbidden, Guard},
    source::{Location, shown},
};

/// Bytes of a refusal that are read.
const MAX_REFUSAL: usize = 8 << 10;

/// The first bytes of a file.
pub struct Prefix<'a> {
    client: &'a Client,
    location: &'a Location,
    pass: &'a Pass,
    limit: u64,
    /// The bytes so far.
    pub bytes: Vec<u8>,
    /// The version that they are of, where the server tells.
    pub etag: Option<String>,
    /// Whether the file ends here.
    ended: bool,
    /// The whole file's stream, where the server knows no ranges.
    stream: Option<Response>,
}

/// Everything that a request needs.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    pub client: &'a Client,
    pub guard: &'a Guard,
    pub pass: &'a Pass,
    pub limit: u64,
}

impl<'a> Prefix<'a> {
    /// Asks for the first bytes; with an ETag, `None` where the file is still that version.
    pub async fn open(
        access: Access<'a>,
        location: &'a Location,
        first: u64,
        known: Option<&str>,
    ) -> Result<Option<Self>, HeaderError> {
        let host = location.url.host_str().unwrap_or_default();
        access
            .guard
            .check_literal(host)
            .map_err(|source| HeaderError::Forbidden { url: shown(&location.url), source })?;
        let Access { client, pass, limit, .. } = access;
        let mut prefix =
            Self { client, location, pass, limit, bytes: Vec::new(), etag: None, ended: false, stream: None };
        let response = prefix.request(first, known).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        prefix.take(response, first).await?;
        Ok(Some(prefix))
    }

    /// Reads on until there are this many bytes.
    ///
    /// # Errors
    ///
    /// The file ends before, the limit is reached, or the server failed.
    pub async fn grow(&mut self, wanted: u64) -> Result<(), HeaderError> {
        if wanted > self.limit {
            return Err(HeaderError::TooLong { url: shown(&self.location.url), limit: self.limit });
        }
        if !self.ended && (self.bytes.len() as u64) < wanted {
            match self.stream.take() {
                Some(response) => self.read(response, wanted).await?,
                None => {
                    let response = self.request(wanted, None).await?;
                    self.take(response, wanted).await?;
                }
            }
        }
        if (self.bytes.len() as u64) < wanted {
            let bytes = self.bytes.len() as u64;
            return Err(HeaderError::Truncated { url: shown(&self.location.url), bytes });
        }
        Ok(())
    }

    /// Reads on until there are at least `needed` bytes, and as far as `wanted` where file and limit allow it.
    ///
    /// # Errors
    ///
    /// As [`Prefix::grow`], about `needed`.
    pub async fn grow_towards(&mut self, needed: u64, wanted: u64) -> Result<(), HeaderError> {
        match self.grow(wanted.clamp(needed, self.limit.max(needed))).await {
            Err(HeaderError::Truncated { .. }) if self.bytes.len() as u64 >= needed => Ok(()),
            other => other,
        }
    }

    /// Everything of a small file.
    pub async fn read_to_end(&mut self) -> Result<(), HeaderError> {
        while !self.ended {
            let next = (self.bytes.len() as u64).saturating_mul(2).max(1 << 16);
            match self.grow(next).await {
                Ok(()) | Err(HeaderError::Truncated { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn request(&self, wanted: u64, known: Option<&str>) -> Result<Response, HeaderError> {
        let begin = self.bytes.len();
        let url = match (self.pass, &self.location.object) {
            (Pass::S3(credentials), Some(object)) => {
                credentials.sign(Verb::Get, object, jiff::Timestamp::now())
            }
            _ => self.location.url.clone(),
        };
        let range = format!("bytes={begin}-{}", wanted.saturating_sub(1));
        let mut request = self.client.get(url).header(RANGE, range);
        if let Pass::Token(token) = self.pass
            && self.location.on_hub
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, known);
        }
        // Weak ETags cannot vouch for bytes (RFC 9110, section 13.1.5).
        if let Some(etag) = self.etag.as_ref().filter(|etag| begin > 0 && etag.starts_with('"')) {
            // Buckets know nothing of If-Range.
            let condition = if self.location.object.is_some() { IF_MATCH } else { IF_RANGE };
            request = request.header(condition, etag);
        }
        request.send().await.map_err(|error| self.failed(&error))
    }

    /// Takes an answer's bytes to the ones there are.
    async fn take(&mut self, response: Response, wanted: u64) -> Result<(), HeaderError> {
        let url = || shown(&self.location.url);
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        let changed = self.etag.is_some() && etag.is_some() && self.etag != etag;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
                let (begin, total) = range.and_then(read_content_range).unwrap_or((u64::MAX, None));
                if changed || begin != self.bytes.len() as u64 {
                    return Err(HeaderError::Changed { url: url() });
                }
                self.etag = etag;
                self.read(response, wanted).await?;
                self.stream = None;
                self.ended = total.is_some_and(|total| self.bytes.len() as u64 >= total);
                Ok(())
            }
            StatusCode::OK => {
                if changed {
                    return Err(HeaderError::Changed { url: url() });
                }
                self.bytes.clear();
                self.etag = etag;
                self.read(response, wanted).await
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.ended = true;
                Ok(())
            }
            StatusCode::PRECONDITION_FAILED => Err(HeaderError::Changed { url: url() }),
            status => {
                let hint = self.explain(response).await;
                Err(HeaderError::Refused { url: url(), status: status.as_u16(), hint })
            }
        }
    }

    /// Reads a body until there are enough bytes, and keeps the rest of it for later.
    async fn read(&mut self, mut response: Response, wanted: u64) -> Result<(), HeaderError> {
        while (self.bytes.len() as u64) < wanted {
            match response.chunk().await.map_err(|error| self.failed(&error))? {
                Some(chunk) => self.bytes.extend_from_slice(&chunk),
                None => {
                    self.ended = true;
                    return Ok(());
                }
            }
        }
        self.stream = Some(response);
        Ok(())
    }

    /// Cause and remedy of a refusal.
    async fn explain(&self, response: Response) -> String {
        let status = response.status().as_u16();
        if let Some(object) = &self.location.object {
            let region = response.headers().get(BUCKET_REGION_HEADER);
            let region = region.and_then(|region| region.to_str().ok()).map(str::to_owned);
            let body = read_refusal(response).await;
            let (signed, bucket_region) = (matches!(self.pass, Pass::S3(_)), region.as_deref());
            return Refusal { status, bucket_region, body: &body, signed, region: object.region() }.explain();
        }
        let hint = match status {
            401 | 403 if self.location.on_hub && matches!(self.pass, Pass::Token(_)) => {
                ": the token may not read this repository; accept its terms with the token's account"
            }
            401 | 403 if self.location.on_hub => {
                ": a private or gated repository needs a token: name a Secret with HF_TOKEN in credentialsSecret"
            }
            401 | 403 => ": the server wants credentials",
            404 | 410 => ": check the source for a mistake",
            429 => ": too many requests",
            _ => "",
        };
        hint.to_owned()
    }

    fn failed(&self, error: &reqwest::Error) -> HeaderError {
        failed(&self.location.url, error)
    }
}

/// The beginning of a refusal's body; what does not come is not needed, since the status stands for itself.
async fn read_refusal(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= MAX_REFUSAL {
            body.truncate(MAX_REFUSAL);
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// What a failed request means: the guard's word where it stopped it.
pub fn failed(url: &reqwest::Url, error: &reqwest::Error) -> HeaderError {
    let url = shown(url);
    let mut cause: &dyn Error = error;
    loop {
        if let Some(forbidden) = cause.downcast_ref::<Forbidden>() {
            return HeaderError::Forbidden { url, source: forbidden.clone() };
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return HeaderError::Unreachable { url, reason: cause.to_string() },
        }
    }
}

/// Begin and, where it is known, the total of `bytes 0-99/1234`.
fn read_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}
