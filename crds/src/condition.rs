//! Condition types of both kinds.
//!
//! Reasons belong to whoever computes a condition; the types are part of the API and live here.

use std::fmt;

macro_rules! condition_types {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// Every condition type of the kind, in the order in which `kubectl describe` shows them.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The type as it stands in `status.conditions[].type`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant)),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

condition_types! {
    /// Conditions of an `AtlasModel`.
    ModelCondition {
        /// The specification is valid, its profiles exist, its names are free, and every field in it is acted on.
        Accepted,
        /// Every tier's weights, KV cache and overhead fit its card.
        VramFits,
        /// Every wanted pod has a node with a free card.
        Scheduled,
        /// The weights are on the nodes, with the checksum that was asked for.
        ModelCached,
        /// Some tier serves.
        Available,
        /// A tier serves, but not the first one.
        Degraded,
        /// A change is being rolled out or a tier is loading.
        Progressing,
        /// Same as `Available`: what `kubectl wait --for=condition=Ready` waits for.
        Ready,
    }
}

condition_types! {
    /// Conditions of a `GpuProfile`.
    ProfileCondition {
        /// At least one node carries the card.
        NodesMatched,
        /// Every matched node takes engine pods: ready, not cordoned, no taint in the way, a card that others leave free.
        NodesUsable,
        /// No matched node is claimed by another profile or carries another kind of card as well.
        Unambiguous,
        /// Labels and counts of the matched nodes agree with each other.
        LabelsConsistent,
        /// No card is left alone because it failed again and again.
        CardsHealthy,
        /// The matched nodes run drivers that the card was validated with.
        DriverValidated,
    }
}
