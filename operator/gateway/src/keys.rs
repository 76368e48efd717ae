//! API keys as the Secret holds them, hashed, and what each key may do.
//!
//! A Secret's entry is a caller: its name is the entry's, the first line of its value is the key, and further lines may
//! limit it: `max-concurrent: 4`, `requests-per-minute: 60`. Pure.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// The keys of one Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    callers: Vec<Caller>,
}

/// Who holds a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The entry's name.
    pub name: String,
    /// What it may do.
    pub limits: Limits,
    hash: [u8; 32],
}

/// Limits of one caller, over all models of a gateway that name its Secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests at once.
    pub max_concurrent: Option<u32>,
    /// Requests a minute, with a burst of as many.
    pub requests_per_minute: Option<u32>,
}

impl Keys {
    /// Reads a Secret's data. An entry with an empty key is nobody's; a line that is not understood closes its entry, so
    /// that a misspelt limit is noticed and never lifted.
    #[must_use]
    pub fn read<'d>(data: impl IntoIterator<Item = (&'d String, &'d [u8])>) -> Self {
        let callers = data.into_iter().filter_map(|(name, value)| {
            let text = std::str::from_utf8(value).ok()?;
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let hash = Sha256::digest(lines.next()?).into();
            let mut limits = Limits::default();
            for line in lines {
                let (field, value) = line.split_once(':')?;
                let value = Some(value.trim().parse().ok()?);
                match field.trim() {
                    "max-concurrent" => limits.max_concurrent = value,
                    "requests-per-minute" => limits.requests_per_minute = value,
                    _ => return None,
                }
            }
            Some(Caller { name: name.clone(), limits, hash })
        });
        Self { callers: callers.collect() }
    }

    /// Whose key it is. Takes as long whichever it is, and whether it is any.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&Caller> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        for caller in &self.callers {
            let difference = caller.hash.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
            if difference == 0 {
                found = Some(caller);
            }
        }
        found
    }
}

/// The keys of every Secret that a model names; one that is missing has none.
pub type KeyRing = BTreeMap<String, std::sync::Arc<Keys>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(entries: &[(&str, &str)]) -> Keys {
        let data: Vec<(String, &[u8])> =
            entries.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes())).collect();
        Keys::read(data.iter().map(|(name, value)| (name, *value)))
    }

    #[test]
    fn a_key_is_found_by_its_value_only() {
        let keys = keys(&[("alice", "sk-a\n"), ("bob", "  sk-b"), ("empty", " \n")]);
        let name = |key: &str| keys.find(key).map(|caller| caller.name.as_str());
        assert_eq!((name("sk-a"), name("sk-b")), (Some("alice"), Some("bob")));
        for key in ["", "sk-", "sk-a ", "alice", "SK-A"] {
            assert_eq!(name(key), None, "{key:?}");
        }
    }

    #[test]
    fn limits_are_read_and_a_line_that_is_not_understood_closes_its_entry() {
        let keys = keys(&[
            ("a", "k1\nmax-concurrent: 4\nrequests-per-minute: 60\n"),
            ("b", "k2\nmax-concurent: 4"),
            ("c", "k3\nmax-concurrent: many"),
        ]);
        let limits = Limits { max_concurrent: Some(4), requests_per_minute: Some(60) };
        assert_eq!(keys.find("k1").map(|caller| caller.limits), Some(limits));
        assert_eq!((keys.find("k2"), keys.find("k3")), (None, None));
    }
}
