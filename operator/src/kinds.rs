//! The kinds of objects that the operator owns.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::RoleBinding,
    resource::v1::ResourceClaimTemplate,
};
use kube::{Resource, api::ApiResource};

/// A kind of object that the operator owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Engines and gateways.
    Deployment,
    /// The URL, and one headless Service a tier.
    Service,
    /// The clients' configuration.
    ConfigMap,
    /// One budget a model, one a gateway.
    PodDisruptionBudget,
    /// Who may reach engines.
    NetworkPolicy,
    /// The gateway's identity.
    ServiceAccount,
    /// What the gateway may read.
    RoleBinding,
    /// How a pod claims its card, where a profile allocates by claims.
    ResourceClaimTemplate,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Deployment,
        Self::Service,
        Self::ConfigMap,
        Self::PodDisruptionBudget,
        Self::NetworkPolicy,
        Self::ServiceAccount,
        Self::RoleBinding,
        Self::ResourceClaimTemplate,
    ];

    /// The waves in which objects are applied, in order.
    pub const WAVES: std::ops::RangeInclusive<u8> = 0..=2;

    /// The wave of this kind: 0 is what pods need to be admitted, 1 what makes pods, 2 everything else.
    #[must_use]
    pub const fn wave(self) -> u8 {
        match self {
            // Without its account a pod is refused, and the ReplicaSet tries again later and later.
            Self::ServiceAccount | Self::RoleBinding | Self::ResourceClaimTemplate => 0,
            Self::Deployment => 1,
            Self::Service | Self::ConfigMap | Self::PodDisruptionBudget | Self::NetworkPolicy => 2,
        }
    }

    /// Group, version and plural for the client.
    #[must_use]
    pub fn api_resource(self) -> ApiResource {
        fn of<K: Resource<DynamicType = ()>>() -> ApiResource {
            ApiResource::erase::<K>(&())
        }
        match self {
            Self::Deployment => of::<Deployment>(),
            Self::Service => of::<Service>(),
            Self::ConfigMap => of::<ConfigMap>(),
            Self::PodDisruptionBudget => of::<PodDisruptionBudget>(),
            Self::NetworkPolicy => of::<NetworkPolicy>(),
            Self::ServiceAccount => of::<ServiceAccount>(),
            Self::RoleBinding => of::<RoleBinding>(),
            Self::ResourceClaimTemplate => of::<ResourceClaimTemplate>(),
        }
    }

    /// The kind's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::ConfigMap => "ConfigMap",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ServiceAccount => "ServiceAccount",
            Self::RoleBinding => "RoleBinding",
            Self::ResourceClaimTemplate => "ResourceClaimTemplate",
        }
    }

    /// Whether the cluster knows the kind: claims came with Kubernetes 1.34, everything else is older.
    #[must_use]
    pub const fn is_served(self, serves_claims: bool) -> bool {
        serves_claims || !matches!(self, Self::ResourceClaimTemplate)
    }

    /// Place of the kind in [`Kind::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}
