//! Manifests that the API server must accept or refuse, as data: a base, edits by JSON pointer, and the outcome.

/// What the API server has to say.
pub enum Outcome {
    /// Stored; the JSON pointers on the left then hold the YAML on the right, defaults included.
    Accepted(&'static [(&'static str, &'static str)]),
    /// Refused, with every one of these in the message that the user reads.
    Refused(&'static [&'static str]),
}

/// One row of the table.
pub struct Case {
    /// What is tried.
    pub name: &'static str,
    /// The manifest that the edits start from.
    pub base: &'static str,
    /// JSON pointer and the YAML to put there; `null` removes.
    pub edits: &'static [(&'static str, &'static str)],
    /// The answer.
    pub outcome: Outcome,
}

/// What any amount of memory that is none is answered with.
pub const MEMORY: &str = "expected an amount of memory above 0, such as 24560Mi, 21Gi or 8000000000";

/// A row that is stored.
pub const fn accepted(
    base: &'static str,
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
    holds: &'static [(&'static str, &'static str)],
) -> Case {
    Case { name, base, edits, outcome: Outcome::Accepted(holds) }
}

/// A row that is refused.
pub const fn refused(
    base: &'static str,
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
) -> Case {
    Case { name, base, edits, outcome: Outcome::Refused(says) }
}
