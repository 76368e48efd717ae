//! What the API server says to GpuProfiles.

use crate::cases::{Case, MEMORY, accepted, refused};

/// A card, with what has no default.
const PROFILE: &str = "
apiVersion: atlas.gillsystems.com/v1alpha1
kind: GpuProfile
metadata: {name: rx-7900-xtx}
spec:
  product: Radeon RX 7900 XTX
  gfxTarget: gfx1100
  vram: 24560Mi
  match: {vramClass: 24G, computeUnits: 96}
";

/// GpuProfiles.
pub const CASES: &[Case] = &[
    accepted(
        PROFILE,
        "the least there can be gets every default",
        &[],
        &[
            ("/spec/backend", "Hip"),
            ("/spec/reservedVram", "2560Mi"),
            ("/spec/maxBatch", "4"),
            ("/spec/allocation", "DevicePlugin"),
            ("/spec/resourceName", "amd.com/gpu"),
            ("/spec/supplementalGroups", "[44, 109]"),
            ("/spec/modelCache", "{}"),
        ],
    ),
    accepted(
        PROFILE,
        "the CPU needs no card",
        &[("/spec/backend", "Cpu"), ("/spec/gfxTarget", "null"), ("/spec/match", "null")],
        &[],
    ),
    accepted(
        PROFILE,
        "memory as a plain number",
        &[("/spec/vram", "25753026560")],
        &[("/spec/vram", "25753026560")],
    ),
    accepted(PROFILE, "nothing reserved", &[("/spec/reservedVram", "0")], &[]),
    accepted(
        PROFILE,
        "an explicit null takes the default",
        &[("/spec/reservedVram", "~")],
        &[("/spec/reservedVram", "2560Mi")],
    ),
    accepted(
        PROFILE,
        "a claim as the cache",
        &[("/spec/modelCache", "{claim: {claimName: models}}")],
        &[("/spec/modelCache/claim/fsGroup", "65532")],
    ),
    refused(PROFILE, "no memory named", &[("/spec/vram", "null")], &["spec.vram: Required value"]),
    refused(
        PROFILE,
        "memory that is a word",
        &[("/spec/vram", "banana")],
        &["spec.vram", "\"banana\"", MEMORY],
    ),
    refused(PROFILE, "negative memory", &[("/spec/vram", "-1Gi")], &["spec.vram", "\"-1Gi\"", MEMORY]),
    refused(PROFILE, "no memory at all", &[("/spec/vram", "0")], &["spec.vram", MEMORY]),
    refused(PROFILE, "empty memory", &[("/spec/vram", "''")], &["spec.vram", MEMORY]),
    refused(PROFILE, "memory in thousandths", &[("/spec/vram", "24000m")], &["spec.vram", MEMORY]),
    refused(
        PROFILE,
        "a reserve that is a word",
        &[("/spec/reservedVram", "some")],
        &["spec.reservedVram", "\"some\"", "expected an amount of memory, such as 2560Mi, 2Gi or 0"],
    ),
    refused(
        PROFILE,
        "everything reserved",
        &[("/spec/reservedVram", "24560Mi")],
        &["reservedVram must be less than vram: nothing would be left for a model"],
    ),
    refused(
        PROFILE,
        "a HIP card without a target",
        &[("/spec/gfxTarget", "null")],
        &["gfxTarget is required with backend Hip, for example gfx1100 for a Radeon RX 7900 XTX"],
    ),
    refused(
        PROFILE,
        "a HIP card that no node can match",
        &[("/spec/match", "null")],
        &["match is required with backend Hip: set match.vramClass and match.computeUnits"],
    ),
    refused(
        PROFILE,
        "a marketing name as the target",
        &[("/spec/gfxTarget", "navi31")],
        &[
            "spec.gfxTarget",
            "\"navi31\"",
            "expected the compiler's name of the instruction set, such as gfx1100",
        ],
    ),
    refused(
        PROFILE,
        "a class that is not the label's",
        &[("/spec/match/vramClass", "24Gi")],
        &["spec.match.vramClass", "expected the value of the node label amd.com/gpu.vram, such as 24G"],
    ),
    refused(
        PROFILE,
        "a resource without a domain",
        &[("/spec/resourceName", "gpu")],
        &["spec.resourceName", "expected an extended resource, such as amd.com/gpu"],
    ),
    refused(
        PROFILE,
        "two caches",
        &[("/spec/modelCache", "{emptyDir: {}, hostPath: {path: /models}}")],
        &["modelCache takes one of emptyDir, claim and hostPath"],
    ),
    refused(
        PROFILE,
        "a folder above",
        &[("/spec/modelCache", "{hostPath: {path: /models/../etc}}")],
        &["modelCache.hostPath.path must not lead upwards: write it without .."],
    ),
    refused(
        PROFILE,
        "a group below zero",
        &[("/spec/supplementalGroups", "[44, -1]")],
        &["spec.supplementalGroups[1]", "greater than or equal to 0"],
    ),
    refused(
        PROFILE,
        "a toleration of any value with a value",
        &[("/spec/tolerations", "[{key: a, operator: Exists, value: b}]")],
        &["tolerations: one with operator Exists takes no value"],
    ),
    refused(
        PROFILE,
        "a toleration of nothing",
        &[("/spec/tolerations", "[{value: b}]")],
        &["and any other needs a key"],
    ),
    refused(
        PROFILE,
        "an unknown backend",
        &[("/spec/backend", "Cuda")],
        &["spec.backend: Unsupported value: \"Cuda\": supported values: \"Hip\", \"Cpu\""],
    ),
    refused(
        PROFILE,
        "no compute units",
        &[("/spec/match/computeUnits", "0")],
        &["spec.match.computeUnits", "greater than or equal to 1"],
    ),
    refused(PROFILE, "no product", &[("/spec/product", "''")], &["spec.product", "at least 1 chars"]),
];
