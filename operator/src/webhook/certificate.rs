//! The webhook's certificates: made, judged and written as a Secret's data, without any IO.
//!
//! Each renewal has an authority of its own, whose key is thrown away once it has signed the one certificate.
//! The authorities of the last and the present certificate are both trusted, so that replicas may change at different
//! times.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// How long a certificate is valid.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// When it is renewed.
const RENEWAL: Duration = Duration::from_secs(60 * 24 * 3600);
/// Clocks of API servers may be behind.
const BACKDATED: Duration = Duration::from_secs(3600);
/// Authorities that are trusted at once: the present one and its predecessor.
const AUTHORITIES: usize = 2;

const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const RENEW_AFTER: &str = "renew-after";
const NAMES: &str = "names";

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A name is no DNS name or address.
    #[error("a certificate for {names} could not be made")]
    Make {
        /// The names.
        names: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The clock shows a time that certificates cannot have.
    #[error("the clock shows {now}, which certificates cannot have")]
    Clock {
        /// The time.
        now: Timestamp,
    },
}

/// A certificate with its key and the authorities that vouch for it and for its predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// PEM of the authorities, the present one first.
    pub authorities: String,
    /// PEM of the certificate.
    pub certificate: String,
    /// PEM of its key.
    pub key: String,
    /// When the next one is due.
    pub renew_after: Timestamp,
    /// What it is valid for.
    pub names: Vec<String>,
}

impl Certificate {
    /// Makes one; `previous` is what is trusted until now.
    ///
    /// # Errors
    ///
    /// A name is none, or the clock is far off.
    pub fn issue(
        names: &[String],
        previous: Option<&Self>,
        now: Timestamp,
    ) -> Result<Self, CertificateError> {
        let failed = |source| CertificateError::Make { names: names.join(", "), source };
        let clock = || CertificateError::Clock { now };
        let second = |at: Option<Timestamp>| {
            time::OffsetDateTime::from_unix_timestamp(at.ok_or_else(clock)?.as_second()).map_err(|_| clock())
        };
        let (begin, end) =
            (second(now.checked_sub(BACKDATED).ok())?, second(now.checked_add(LIFETIME).ok())?);
        let renew_after = now.checked_add(RENEWAL).map_err(|_| clock())?;

        let mut authority = CertificateParams::default();
        authority.distinguished_name = rcgen::DistinguishedName::new();
        authority
            .distinguished_name
            .push(DnType::CommonName, format!("atlas-operator-webhook-{}", now.as_second()));
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (authority.not_before, authority.not_after) = (begin, end);
        let authority_key = KeyPair::generate().map_err(failed)?;
        let authority = CertifiedIssuer::self_signed(authority, authority_key).map_err(failed)?;

        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "atlas-operator-webhook");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (begin, end);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &authority).map_err(failed)?;

        let mut authorities = vec![authority.pem()];
        authorities.extend(previous.iter().flat_map(|previous| split_pem(&previous.authorities)));
        authorities.truncate(AUTHORITIES);
        Ok(Self {
            authorities: authorities.concat(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            renew_after,
            names: names.to_vec(),
        })
    }

    /// Whether another one has to be made.
    #[must_use]
    pub fn is_due(&self, names: &[String], now: Timestamp) -> bool {
        now >= self.renew_after || self.names != names
    }

    /// Reads a Secret's data; `None` where it holds no whole certificate.
    #[must_use]
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let text =
            |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok().filter(|text| !text.is_empty());
        Some(Self {
            authorities: text(CA)?,
            certificate: text(CERTIFICATE)?,
            key: text(KEY)?,
            renew_after: text(RENEW_AFTER)?.parse().ok()?,
            names: text(NAMES)?.split(',').map(str::to_owned).collect(),
        })
    }

    /// The data of its Secret.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        let Self { authorities, certificate, key, renew_after, names } = self;
        [
            (CA, authorities.clone()),
            (CERTIFICATE, certificate.clone()),
            (KEY, key.clone()),
            (RENEW_AFTER, renew_after.to_string()),
            (NAMES, names.join(",")),
        ]
        .into_iter()
        .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
        .collect()
    }
}

/// The blocks of a PEM text, one a string.
fn split_pem(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END)
        .filter(|block| block.contains("-----BEGIN"))
        .map(|block| format!("{}\n", block.trim_start()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Vec<String> {
        vec![name.to_owned(), format!("{name}.cluster.local")]
    }

    #[test]
    fn a_certificate_survives_its_secret_and_is_renewed_in_time() {
        let now: Timestamp = "2026-11-25T00:00:00Z".parse().unwrap();
        let made = Certificate::issue(&names("w.atlas.svc"), None, now).unwrap();
        assert_eq!(Certificate::from_data(&made.to_data()).as_ref(), Some(&made));
        let days = |days: i64| now.checked_add(Duration::from_secs(days.unsigned_abs() * 86400)).unwrap();
        let check =
            |name: &str, at, expected| assert_eq!(made.is_due(&names(name), at), expected, "{name} {at}");
        check("w.atlas.svc", days(59), false);
        check("w.atlas.svc", days(60), true);
        check("w.other.svc", days(1), true);
    }

    #[test]
    fn half_a_secret_is_no_certificate() {
        let made = Certificate::issue(&names("w"), None, Timestamp::UNIX_EPOCH).unwrap().to_data();
        for key in made.keys() {
            let mut data = made.clone();
            data.insert(key.clone(), ByteString(Vec::new()));
            assert_eq!(Certificate::from_data(&data), None, "{key}");
            data.remove(key);
            assert_eq!(Certificate::from_data(&data), None, "{key}");
        }
    }

    #[test]
    fn the_present_and_the_last_authority_are_trusted_and_no_older_one() {
        let mut last: Option<Certificate> = None;
        let mut own = Vec::new();
        for second in 0..4 {
            let now = Timestamp::from_second(1_800_000_000 + second).unwrap();
            let made = Certificate::issue(&names("w"), last.as_ref(), now).unwrap();
            own.push(split_pem(&made.authorities)[0].clone());
            last = Some(made);
        }
        let trusted = split_pem(&last.unwrap().authorities);
        assert_eq!(trusted, [own[3].clone(), own[2].clone()]);
    }
}
