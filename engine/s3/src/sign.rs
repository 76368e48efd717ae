//! Signatures of version 4: a GET or HEAD with its headers, and nothing else.
//!
//! In headers and not in the address, so that an address may be shown and kept.

use std::fmt;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::Object;

/// Name of the variable, and of the Secret's key, that holds the access key's id.
pub const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
/// Name of the variable, and of the Secret's key, that holds the secret access key.
pub const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
/// Name of the variable, and of the Secret's key, that holds the session's token, where credentials are temporary.
pub const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

/// Who asks. Its text shows no secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Id of the access key.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: String,
    /// The session's token.
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// A part of the credentials is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is missing beside the other key")]
pub struct MissingKey(pub &'static str);

impl Credentials {
    /// Reads credentials by the names of their parts; none where there is neither key.
    ///
    /// # Errors
    ///
    /// One key is there and the other is not.
    pub fn read(mut lookup: impl FnMut(&str) -> Option<String>) -> Result<Option<Self>, MissingKey> {
        let mut part = |name: &str| {
            let value = lookup(name)?;
            let value = value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        match (part(ACCESS_KEY_ID), part(SECRET_ACCESS_KEY)) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(MissingKey(ACCESS_KEY_ID)),
            (Some(_), None) => Err(MissingKey(SECRET_ACCESS_KEY)),
            (Some(access_key_id), Some(secret_access_key)) => {
                Ok(Some(Self { access_key_id, secret_access_key, session_token: part(SESSION_TOKEN) }))
            }
        }
    }

    /// The headers that a request for an object, `GET` or `HEAD`, needs besides its own.
    #[must_use]
    pub fn sign(&self, method: &str, object: &Object, now: Timestamp) -> Vec<(&'static str, String)> {
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut headers =
            vec![("x-amz-content-sha256", hex::encode(Sha256::digest(b""))), ("x-amz-date", time.clone())];
        if let Some(token) = &self.session_token {
            headers.push(("x-amz-security-token", token.clone()));
        }
        let mut signed: Vec<(&str, &str)> = vec![("host", &object.host)];
        signed.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
        let authorization = self.authorize(method, object, &signed, &time);
        headers.push(("authorization", authorization));
        headers
    }

    /// The `Authorization` header over these headers, which are in order of their names.
    fn authorize(&self, method: &str, object: &Object, headers: &[(&str, &str)], time: &str) -> String {
        let lines: String =
            headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let payload = hex::encode(Sha256::digest(b""));
        let request = format!("{method}\n{}\n\n{lines}\n{names}\n{payload}", object.path);
        let day = &time[..8];
        let scope = format!("{day}/{}/s3/aws4_request", object.region);
        let digest = hex::encode(Sha256::digest(request.as_bytes()));
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}");
        let mut key = format!("AWS4{}", self.secret_access_key).into_bytes();
        for part in [day, &object.region, "s3", "aws4_request"] {
            key = keyed_hash(&key, part);
        }
        let signature = hex::encode(keyed_hash(&key, &to_sign));
        let id = &self.access_key_id;
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}")
    }
}

/// HMAC-SHA256 (RFC 2104).
fn keyed_hash(key: &[u8], text: &str) -> Vec<u8> {
    let mut block = [0; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let padded = |pad: u8| Sha256::new_with_prefix(block.map(|byte| byte ^ pad));
    let inner = padded(0x36).chain_update(text.as_bytes()).finalize();
    padded(0x5c).chain_update(inner).finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;

    /// The example of Amazon's documentation, "Authenticating Requests: Using the Authorization Header", GET Object.
    #[test]
    fn the_documentations_example_comes_out() {
        let credentials = Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        };
        let endpoint = Some("https://s3.amazonaws.com".to_owned());
        let place = Place { endpoint, region: None, path_style: Some(false) };
        let object = Object::locate("examplebucket", "test.txt", &place).unwrap();
        let empty = hex::encode(Sha256::digest(b""));
        let headers = [
            ("host", object.host.as_str()),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", empty.as_str()),
            ("x-amz-date", "20130524T000000Z"),
        ];
        let header = credentials.authorize("GET", &object, &headers, "20130524T000000Z");
        assert_eq!(
            header,
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// RFC 4231, test cases 2 and 6.
    #[test]
    fn keyed_hashes_are_those_of_the_standard() {
        let check = |key: &[u8], text: &str, expected: &str| {
            assert_eq!(hex::encode(keyed_hash(key, text)), expected, "{text}");
        };
        check(
            b"Jefe",
            "what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        );
        check(
            &[0xaa; 131],
            "Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        );
    }

    #[test]
    fn a_session_signs_its_token_and_the_time_is_utc() {
        let session_token = Some("t".to_owned());
        let credentials =
            Credentials { access_key_id: "a".into(), secret_access_key: "s".into(), session_token };
        let object = Object::locate("b", "k", &Place::default()).unwrap();
        let headers = credentials.sign("GET", &object, Timestamp::from_second(0).unwrap());
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["x-amz-content-sha256", "x-amz-date", "x-amz-security-token", "authorization"]);
        assert_eq!(headers[1].1, "19700101T000000Z");
        assert!(
            headers[3].1.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,")
        );
    }

    #[test]
    fn credentials_are_whole_or_none_and_never_shown() {
        let read = |there: &[(&str, &str)]| {
            Credentials::read(|name| {
                there.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[(ACCESS_KEY_ID, " "), (SECRET_ACCESS_KEY, "")]), Ok(None));
        assert_eq!(read(&[(ACCESS_KEY_ID, "a")]), Err(MissingKey(SECRET_ACCESS_KEY)));
        assert_eq!(read(&[(SECRET_ACCESS_KEY, "s")]), Err(MissingKey(ACCESS_KEY_ID)));
        let whole =
            read(&[(ACCESS_KEY_ID, "ident\n"), (SECRET_ACCESS_KEY, "hush"), (SESSION_TOKEN, "quiet")]);
        let whole = whole.unwrap().unwrap();
        assert_eq!((whole.access_key_id.as_str(), whole.session_token.as_deref()), ("ident", Some("quiet")));
        let shown = format!("{whole:?}");
        assert!(shown.contains("ident") && !shown.contains("hush") && !shown.contains("quiet"), "{shown}");
    }
}
