//! Kubernetes quantities as numbers of bytes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Suffixes of the resource quantity grammar (apimachinery `resource.Quantity`) that make sense for memory.
const SUFFIXES: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("m", 0),
    ("", 1),
];

/// Reads a memory quantity such as `24560Mi`, `21Gi`, `1.5Gi` or `8000000000`.
///
/// Returns `None` for what is not a whole, non-negative number of bytes that fits in 64 bits.
#[must_use]
pub fn parse_bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let (suffix, unit) = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix))?;
    let number = text.strip_suffix(suffix)?;
    if *unit == 0 {
        return None;
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !whole.chars().chain(fraction.chars()).all(|c| c.is_ascii_digit())
        || whole.is_empty()
        || fraction.len() > 9
    {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(*unit)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(*unit) / scale;
    whole.checked_add(u64::try_from(part).ok()?)
}

/// Writes bytes the way the manifests do: in the largest binary unit that loses nothing.
#[must_use]
pub fn format_bytes(bytes: u64) -> Quantity {
    for (suffix, unit) in [("Gi", 1u64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return Quantity(format!("{}{suffix}", bytes / unit));
        }
    }
    Quantity(bytes.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(parse_bytes(&Quantity(text.into())), bytes, "{text}");
        };
        check("24560Mi", Some(25_753_026_560));
        check("21Gi", Some(21 << 30));
        check("1.5Gi", Some(3 << 29));
        check("8000000000", Some(8_000_000_000));
        check("8G", Some(8_000_000_000));
        check("0", Some(0));
        check("-1Gi", None);
        check("100m", None);
        check("Gi", None);
        check("", None);
        check("99999999999Ti", None);
    }

    #[test]
    fn written_quantities_read_back() {
        for bytes in [0, 1, 1023, 1024, 25_753_026_560, 21 << 30, 5_888_802_816] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Some(bytes));
        }
    }
}
