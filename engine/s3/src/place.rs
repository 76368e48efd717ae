//! From bucket, key and place to an address.

use rusty_s3::{Bucket, UrlStyle};
use url::Url;

/// The region of buckets that name none, and what servers other than Amazon's usually call theirs.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Where buckets are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// `http(s)://HOST[:PORT]` of a server; Amazon's of the region where absent.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: Option<String>,
    /// Whether the bucket's name stands in the path and not before the host; by default with an endpoint of one's own.
    pub path_style: Option<bool>,
}

/// Why an object has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The endpoint is none.
    #[error("the S3 endpoint {endpoint:?} is no address: write http(s)://HOST or http(s)://HOST:PORT")]
    Endpoint {
        /// As it was written.
        endpoint: String,
    },
    /// The bucket's name cannot be part of an address.
    #[error("the bucket's name {bucket:?} may hold letters, digits, '.', '-' and '_' alone")]
    Bucket {
        /// As it was written.
        bucket: String,
    },
    /// HTTP clients resolve such a path before they send it, and its signature would not hold.
    #[error("the object's key {key:?} has a part that is \".\" or \"..\": rename the object")]
    Key {
        /// As it was written.
        key: String,
    },
}

/// An object of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub(crate) bucket: Bucket,
    pub(crate) key: String,
}

impl Object {
    /// Finds an object's address.
    ///
    /// # Errors
    ///
    /// The endpoint, the bucket or the key cannot be part of an address.
    pub fn locate(bucket: &str, key: &str, place: &Place) -> Result<Self, PlaceError> {
        let wrong_bucket = || PlaceError::Bucket { bucket: bucket.to_owned() };
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if bucket.is_empty() || !bucket.chars().all(allowed) || bucket.starts_with(['.', '-']) {
            return Err(wrong_bucket());
        }
        if key.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(PlaceError::Key { key: key.to_owned() });
        }
        let region = place.region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let endpoint = match &place.endpoint {
            Some(endpoint) => parse_endpoint(endpoint)?,
            None => parse_endpoint(&format!("https://s3.{region}.amazonaws.com"))?,
        };
        // A certificate for all buckets does not hold for names with dots.
        let by_default = place.endpoint.is_some() || bucket.contains('.');
        let style = match place.path_style.unwrap_or(by_default) {
            true => UrlStyle::Path,
            false => UrlStyle::VirtualHost,
        };
        let bucket = Bucket::new(endpoint, style, bucket.to_owned(), region).map_err(|_| wrong_bucket())?;
        Ok(Self { bucket, key: key.to_owned() })
    }

    /// The object's address, which holds no secret.
    #[must_use]
    pub fn url(&self) -> String {
        self.bucket.object_url(&self.key).into()
    }

    /// The object beside this one.
    #[must_use]
    pub fn beside(&self, name: &str) -> Self {
        let folder = self.key.rfind('/').map_or("", |slash| &self.key[..=slash]);
        Self { key: format!("{folder}{name}"), ..self.clone() }
    }

    /// The region that requests are signed for.
    #[must_use]
    pub fn region(&self) -> &str {
        self.bucket.region()
    }
}

/// An address with scheme, host and port alone.
fn parse_endpoint(endpoint: &str) -> Result<Url, PlaceError> {
    let is_plain = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && (url.username(), url.password()) == ("", None)
            && (url.path(), url.query(), url.fragment()) == ("/", None, None)
    };
    let wrong = || PlaceError::Endpoint { endpoint: endpoint.to_owned() };
    Url::parse(endpoint).ok().filter(is_plain).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(endpoint: &str, region: &str, path_style: Option<bool>) -> Place {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Place { endpoint: given(endpoint), region: given(region), path_style }
    }

    #[test]
    fn every_place_has_its_address() {
        for (place, bucket, key, expected) in [
            (Place::default(), "b", "k.gguf", "https://b.s3.us-east-1.amazonaws.com/k.gguf"),
            (place("", "eu-west-1", None), "b", "d/k", "https://b.s3.eu-west-1.amazonaws.com/d/k"),
            (Place::default(), "a.b", "k", "https://s3.us-east-1.amazonaws.com/a.b/k"),
            (place("", "", Some(true)), "b", "k", "https://s3.us-east-1.amazonaws.com/b/k"),
            (place("http://minio:9000", "", None), "b", "k", "http://minio:9000/b/k"),
            (place("http://minio:9000", "", Some(false)), "b", "k", "http://b.minio:9000/k"),
            (place("https://S3.Example:443/", "", None), "b", "k", "https://s3.example/b/k"),
            (
                Place::default(),
                "b",
                "a b/ü+%.gguf",
                "https://b.s3.us-east-1.amazonaws.com/a%20b/%C3%BC%2B%25.gguf",
            ),
        ] {
            let object = Object::locate(bucket, key, &place);
            assert_eq!(object.map(|object| object.url()).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        let check = |endpoint: &str, bucket: &str, key: &str, says: &str| {
            let error = Object::locate(bucket, key, &place(endpoint, "", None)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        for endpoint in [
            "minio:9000",
            "ftp://h",
            "http://",
            "http://h/path",
            "http://u:p@h",
            "http://h:99999",
            "http://h?a",
        ] {
            check(endpoint, "b", "k", endpoint);
        }
        check("", "b/c", "k", "bucket's name \"b/c\"");
        check("", "", "k", "bucket's name \"\"");
        check("", "b", "a/../k", "\"a/../k\"");
        // No host begins with a bucket's name and goes on with numbers.
        let numbers = Place { path_style: Some(false), ..place("http://10.0.0.1:9000", "", None) };
        assert_eq!(Object::locate("b", "k", &numbers), Err(PlaceError::Bucket { bucket: "b".to_owned() }));
    }

    #[test]
    fn an_object_beside_keeps_bucket_and_folder() {
        let object = Object::locate("b", "d/model.safetensors", &place("http://h:1", "", None)).unwrap();
        assert_eq!(object.beside("config.json").url(), "http://h:1/b/d/config.json");
    }
}
