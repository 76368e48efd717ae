//! When a certificate ends, read from its DER (RFC 5280, section 4.1). Pure; everything else of it is rustls's.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// The version, which certificates of version 1 lack.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of a certificate's validity; none where it is not of its form.
#[must_use]
pub fn end_of(certificate: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest, VERSION)?.1;
    }
    // Serial number, algorithm of the signature, issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        rest = element(rest, tag)?.1;
    }
    let (validity, _) = element(rest, SEQUENCE)?;
    let begin = validity.first().copied().filter(is_time)?;
    let (_, rest) = element(validity, begin)?;
    let tag = rest.first().copied().filter(is_time)?;
    let (end, _) = element(rest, tag)?;
    time(tag, std::str::from_utf8(end).ok()?)
}

fn is_time(tag: &u8) -> bool {
    [UTC_TIME, GENERALIZED_TIME].contains(tag)
}

/// The content of the element that begins here, and what follows it; none where it has another tag.
fn element(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // So many bytes of length follow; four are more than any certificate has.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    (*tag == wanted).then(|| rest.split_at_checked(length)).flatten()
}

/// `YYMMDDHHMMSSZ`, with years from 1950 on, or with four digits of the year.
fn time(tag: u8, text: &str) -> Option<Timestamp> {
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = digits.split_at_checked(if tag == UTC_TIME { 2 } else { 4 })?;
    let year: i16 = year.parse().ok()?;
    let year = match (tag, year) {
        (UTC_TIME, 50..) => 1900 + year,
        (UTC_TIME, _) => 2000 + year,
        _ => year,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| rest[at..at + 2].parse::<i8>().ok();
    let at = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp())
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
            (0..whole.len() / 2).for_each(|length| assert_eq!(end_of(&whole[..length]), None, "{length}"));
        }
        for (tag, text) in [
            (UTC_TIME, "991332000000Z"),
            (UTC_TIME, "260101000000"),
            (GENERALIZED_TIME, "20260101Z"),
            (GENERALIZED_TIME, "2026+1010000Z"),
        ] {
            assert_eq!(time(tag, text), None, "{text}");
        }
    }
}
