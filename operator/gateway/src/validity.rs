//! When a certificate ends. Pure; everything else of it is rustls's.

use jiff::Timestamp;
use x509_cert::{Certificate, der::Decode};

/// The end of a certificate's validity (RFC 5280, section 4.1.2.5); none where its DER cannot be read.
#[must_use]
pub fn end_of(certificate: &[u8]) -> Option<Timestamp> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let end = certificate.tbs_certificate().validity().not_after.to_unix_duration();
    Timestamp::from_second(end.as_secs().try_into().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_read_from_either_form_of_time() {
        for (year, month, day) in [(2026, 11, 26), (2049, 12, 31), (2050, 1, 1), (1999, 2, 3)] {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(1980, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let expected = format!("{year:04}-{month:02}-{day:02}T00:00:00Z");
            assert_eq!(end_of(made.der()).map(|end| end.to_string()), Some(expected));
            // However it is cut, it is no certificate, and nothing panics.
            let whole: &[u8] = made.der();
            (0..whole.len()).for_each(|length| assert_eq!(end_of(&whole[..length]), None, "{length}"));
        }
    }
}
