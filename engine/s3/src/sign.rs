//! Signatures of version 4 over requests for an object, in the address that a request goes to.
//!
//! The signed address is for the request alone: whoever sees it may read the object as long as it holds. What is shown
//! and kept is [`Object::url`].

use std::{fmt, time::Duration};

use jiff::Timestamp;
use rusty_s3::{
    Credentials as Keys, S3Action,
    actions::{GetObject, HeadObject},
};
use url::Url;

use crate::Object;

/// How long a signature holds: as far as Amazon lets clocks differ that sign headers. Every attempt is signed anew.
const HOLDS: Duration = Duration::from_secs(15 * 60);

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

    /// The address that a request for an object goes to.
    #[must_use]
    pub fn sign(&self, verb: Verb, object: &Object, now: Timestamp) -> Url {
        let Self { access_key_id, secret_access_key, session_token } = self;
        let keys = match session_token {
            Some(token) => Keys::new_with_token(access_key_id, secret_access_key, token),
            None => Keys::new(access_key_id, secret_access_key),
        };
        let Object { bucket, key } = object;
        match verb {
            Verb::Get => GetObject::new(bucket, Some(&keys), key).sign_with_time(HOLDS, &now),
            Verb::Head => HeadObject::new(bucket, Some(&keys), key).sign_with_time(HOLDS, &now),
        }
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// The object, or a range of it.
    Get,
    /// Its headers alone.
    Head,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;

    /// The example of Amazon's documentation, "Authenticating Requests: Using Query Parameters", with its signature for a
    /// day; ours hold for less, so the parts are compared that do not depend on it.
    #[test]
    fn the_documentations_example_comes_out() {
        let keys = Keys::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let endpoint = Some("https://s3.amazonaws.com".to_owned());
        let place = Place { endpoint, region: None, path_style: Some(false) };
        let object = Object::locate("examplebucket", "test.txt", &place).unwrap();
        let now: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let day = Duration::from_secs(86_400);
        let url = GetObject::new(&object.bucket, Some(&keys), &object.key).sign_with_time(day, &now);
        let signed = "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&\
            X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&\
            X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&\
            X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert_eq!(url.as_str(), signed);
        let credentials = Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        };
        let (get, head) =
            (credentials.sign(Verb::Get, &object, now), credentials.sign(Verb::Head, &object, now));
        let (begin, _) = get.as_str().split_once("X-Amz-Signature=").unwrap();
        let (known, _) = signed.split_once("X-Amz-Signature=").unwrap();
        assert_eq!(begin, known.replace("Expires=86400", "Expires=900"));
        assert_ne!(get, head, "a signature is for one verb");
    }

    #[test]
    fn a_session_signs_its_token_and_the_time_is_utc() {
        let session_token = Some("t/+".to_owned());
        let credentials =
            Credentials { access_key_id: "a".into(), secret_access_key: "s".into(), session_token };
        let object = Object::locate("b", "k", &Place::default()).unwrap();
        let url = credentials.sign(Verb::Get, &object, Timestamp::from_second(0).unwrap());
        for part in ["X-Amz-Date=19700101T000000Z&", "X-Amz-Security-Token=t%2F%2B&", "SignedHeaders=host&"] {
            assert!(url.as_str().contains(part), "{url}");
        }
        assert!(!object.url().contains('?'), "what is shown holds no signature");
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
