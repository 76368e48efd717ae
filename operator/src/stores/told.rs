//! The statuses that this process wrote last, so that an event tells whether somebody else has changed one.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

/// A hash of each object's status, by uid.
#[derive(Debug, Default)]
pub struct ToldStatuses(Mutex<HashMap<String, u64>>);

impl ToldStatuses {
    /// Notes what an object's status is meant to be.
    pub fn note(&self, uid: Option<&str>, status: &impl Serialize) {
        let Some(uid) = uid else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), hash(status));
    }

    /// Forgets an object.
    pub fn forget(&self, uid: Option<&str>) {
        if let Some(uid) = uid {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        }
    }

    /// Whether a status is another one than was noted; where none was, nobody has a status to lose yet.
    #[must_use]
    pub fn is_foreign(&self, uid: Option<&str>, status: Option<&impl Serialize>) -> bool {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = uid.and_then(|uid| told.get(uid)).copied();
        drop(told);
        noted.is_some_and(|noted| status.is_none_or(|status| hash(status) != noted))
    }
}

fn hash(status: &impl Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    // A status is plain data: it always has a form.
    serde_json::to_vec(status).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_that_differs_from_what_was_told_is_foreign() {
        let told = ToldStatuses::default();
        assert!(!told.is_foreign(Some("u"), Some(&1)));
        told.note(Some("u"), &1);
        assert!(!told.is_foreign(Some("u"), Some(&1)));
        assert!(told.is_foreign(Some("u"), Some(&2)) && told.is_foreign(Some("u"), None::<&i32>));
        assert!(!told.is_foreign(Some("v"), Some(&2)) && !told.is_foreign(None, Some(&2)));
        told.forget(Some("u"));
        assert!(!told.is_foreign(Some("u"), Some(&2)));
    }
}
