//! What the API server says to AtlasModels.

use crate::cases::{Case, MEMORY, accepted, refused};

/// Two tiers, with what has no default.
const MODEL: &str = "
apiVersion: atlas.gillsystems.com/v1alpha1
kind: AtlasModel
metadata: {name: code, namespace: default}
spec:
  tiers:
  - name: primary
    gpuProfile: rx-7900-xtx
    model: {source: 'hf://TheBloke/CodeLlama-13B-Instruct-GGUF/codellama-13b-instruct.Q4_K_M.gguf'}
  - name: fallback
    gpuProfile: rx-7600
    model: {source: 'hf://TheBloke/Mistral-7B-Instruct-v0.2-GGUF/mistral-7b-instruct-v0.2.Q4_K_M.gguf'}
";

const SHA: &str = "/spec/tiers/0/model/sha256";
const A_SUM: &str = "'0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'";
const SOURCE: &str = "/spec/tiers/0/model/source";
const POSITIVE_DURATION: &str = "expected a duration above 0, such as 500ms, 60s or 5m";
const HF: &str = "source: expected hf://OWNER/REPO or hf://OWNER/REPO/FILE, optionally with @REVISION";
const DNS_NAME: &str = "metadata.name becomes the name of a Service: at most 63 lower-case letters, digits and '-', starting with a letter";
const SHA_FORM: &str = "sha256: expected 64 lower-case hex digits, as sha256sum prints them";

/// AtlasModels.
pub const CASES: &[Case] = &[
    accepted(
        MODEL,
        "the least there can be gets every default",
        &[],
        &[
            ("/spec/replicas", "1"),
            ("/spec/suspend", "false"),
            ("/spec/tiers/0/contextTokens", "4096"),
            ("/spec/tiers/0/maxBatch", "1"),
            ("/spec/tiers/0/kvCacheType", "F16"),
            ("/spec/tiers/0/cpuOffloadLayers", "0"),
            ("/spec/tiers/0/replicas", "null"),
            ("/spec/tiers/1/standby", "Hot"),
            ("/spec/tiers/1/replicas", "null"),
            ("/spec/failover", "{mode: Auto, unhealthyAfter: 1s, failbackAfter: 60s}"),
            ("/spec/rollout", "{strategy: ShiftThenRecreate, drainTimeout: 300s, readyTimeout: 3600s}"),
            ("/spec/requests", "{timeout: 300s, queue: 64, maxBodyBytes: 8Mi, clientPriority: false}"),
            ("/spec/resume", "{acrossModels: false}"),
            ("/spec/expose", "{type: ClusterIP}"),
            ("/spec/access", "null"),
        ],
    ),
    accepted(
        MODEL,
        "every field at once",
        &[
            ("/spec/aliases", "[gpt-patch, org/model:7b]"),
            ("/spec/replicas", "2"),
            ("/spec/suspend", "true"),
            (SHA, "'00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff'"),
            ("/spec/tiers/0/kvCacheType", "Q8_0"),
            ("/spec/tiers/0/maxVram", "21Gi"),
            (
                "/spec/tiers/0/engine",
                "{image: 'x/y:1', extraArgs: [--threads, '2'], resources: {limits: {memory: 8Gi}}}",
            ),
            ("/spec/tiers/1/replicas", "1"),
            ("/spec/tiers/1/standby", "Warm"),
            ("/spec/failover", "{mode: Pinned, pinnedTier: fallback}"),
            ("/spec/access", "{apiKeysSecret: atlas-keys}"),
            ("/spec/resume", "{acrossModels: true}"),
            ("/spec/expose", "{type: HTTPRoute}"),
        ],
        &[("/spec/failover/unhealthyAfter", "1s"), ("/spec/tiers/0/engine/resources/limits/memory", "8Gi")],
    ),
    accepted(MODEL, "a repository of safetensors", &[(SOURCE, "'hf://o/r@v1'"), (SHA, "null")], &[]),
    accepted(MODEL, "a folder of safetensors", &[(SOURCE, "'https://h/m/'"), (SHA, "null")], &[]),
    accepted(MODEL, "a revision of a repository", &[(SOURCE, "'hf://o/r/dir/f.gguf@v1'")], &[]),
    accepted(MODEL, "a file over HTTP", &[(SOURCE, "'http://models.atlas.test:8089/a.gguf'")], &[]),
    accepted(MODEL, "an object in a bucket", &[(SOURCE, "'s3://bucket/dir/a.gguf'")], &[]),
    accepted(
        MODEL,
        "a bucket of one's own, with its keys",
        &[
            (SOURCE, "'s3://bucket/dir/a.gguf'"),
            ("/spec/tiers/0/model/credentialsSecret", "bucket-keys"),
            (
                "/spec/tiers/0/model/s3",
                "{endpoint: 'http://minio.storage:9000', region: eu-west-1, pathStyle: false}",
            ),
        ],
        &[],
    ),
    accepted(
        MODEL,
        "a private repository",
        &[(SOURCE, "'hf://o/r/f.gguf'"), ("/spec/tiers/0/model/credentialsSecret", "hub")],
        &[],
    ),
    accepted(MODEL, "a file in the cache", &[(SOURCE, "'file:///models/a.gguf'")], &[]),
    accepted(MODEL, "memory as a plain number", &[("/spec/tiers/0/maxVram", "22548578304")], &[]),
    accepted(
        MODEL,
        "durations of several parts, and failback at once",
        &[("/spec/failover", "{unhealthyAfter: 1m30s, failbackAfter: 0s}")],
        &[("/spec/failover/unhealthyAfter", "1m30s")],
    ),
    accepted(
        MODEL,
        "an explicit null takes the default",
        &[("/spec/requests", "{maxBodyBytes: ~, timeout: ~}")],
        &[("/spec/requests/maxBodyBytes", "8Mi"), ("/spec/requests/timeout", "300s")],
    ),
    refused(MODEL, "no tiers", &[("/spec/tiers", "null")], &["spec.tiers: Required value"]),
    refused(
        MODEL,
        "an empty list of tiers",
        &[("/spec/tiers", "[]")],
        &["spec.tiers", "should have at least 1 items"],
    ),
    refused(
        MODEL,
        "two tiers of one name",
        &[("/spec/tiers/1/name", "primary")],
        &["spec.tiers[1]: Duplicate value: {\"name\":\"primary\"}"],
    ),
    refused(
        MODEL,
        "replicas on the first tier",
        &[("/spec/tiers/0/replicas", "2")],
        &[
            "tiers[0].replicas: the first tier is scaled by spec.replicas (kubectl scale needs one path): set that and remove this",
        ],
    ),
    refused(
        MODEL,
        "a tier's name in capitals",
        &[("/spec/tiers/0/name", "Primary")],
        &["spec.tiers[0].name", "\"Primary\"", "expected lower-case letters, digits and '-'"],
    ),
    refused(
        MODEL,
        "a tier without a card",
        &[("/spec/tiers/0/gpuProfile", "null")],
        &["spec.tiers[0].gpuProfile: Required value"],
    ),
    refused(
        MODEL,
        "a tier without a model",
        &[("/spec/tiers/0/model", "null")],
        &["spec.tiers[0].model: Required value"],
    ),
    refused(
        MODEL,
        "an unknown scheme",
        &[(SOURCE, "'ftp://host/a.gguf'")],
        &[
            "spec.tiers[0].model",
            "source has no known scheme: use hf://, https://, http://, s3:// or file:///",
        ],
    ),
    refused(MODEL, "a bare file name", &[(SOURCE, "model.gguf")], &["source has no known scheme"]),
    refused(MODEL, "an empty source", &[(SOURCE, "''")], &["spec.tiers[0].model.source", "at least 1 chars"]),
    refused(
        MODEL,
        "an owner without a repository",
        &[(SOURCE, "'hf://owner'")],
        &["spec.tiers[0].model", HF],
    ),
    refused(
        MODEL,
        "the sum of a repository",
        &[(SOURCE, "'hf://owner/repo@main'"), (SHA, A_SUM)],
        &["sha256 is the sum of one file, and source is a folder of safetensors"],
    ),
    refused(
        MODEL,
        "the sum of a folder's file",
        &[(SOURCE, "'https://h/m/model.safetensors?sig=1'"), (SHA, A_SUM)],
        &["sha256 is the sum of one file"],
    ),
    refused(MODEL, "an empty revision", &[(SOURCE, "'hf://owner/repo/f.gguf@'")], &[HF]),
    refused(
        MODEL,
        "a relative file",
        &[(SOURCE, "'file://models/a.gguf'")],
        &["source: expected file:///ABSOLUTE/PATH"],
    ),
    refused(
        MODEL,
        "a host without a path",
        &[(SOURCE, "'https://host'")],
        &["source: expected https://HOST/PATH"],
    ),
    refused(MODEL, "a bucket without a key", &[(SOURCE, "'s3://bucket'")], &["s3://BUCKET/KEY"]),
    refused(
        MODEL,
        "credentials for a file over HTTP",
        &[(SOURCE, "'https://h/a.gguf'"), ("/spec/tiers/0/model/credentialsSecret", "keys")],
        &["credentialsSecret is for hf:// and s3:// sources: remove it"],
    ),
    refused(
        MODEL,
        "a Secret's name in capitals",
        &[(SOURCE, "'hf://o/r/f.gguf'"), ("/spec/tiers/0/model/credentialsSecret", "Keys")],
        &["expected the name of a Secret"],
    ),
    refused(
        MODEL,
        "a bucket's place for a repository",
        &[(SOURCE, "'hf://o/r/f.gguf'"), ("/spec/tiers/0/model/s3", "{region: eu-west-1}")],
        &["s3 is for s3:// sources: remove it"],
    ),
    refused(
        MODEL,
        "an endpoint with a path",
        &[(SOURCE, "'s3://b/k'"), ("/spec/tiers/0/model/s3", "{endpoint: 'https://h/b'}")],
        &["expected http(s)://HOST or http(s)://HOST:PORT, without a path"],
    ),
    refused(
        MODEL,
        "a region in capitals",
        &[(SOURCE, "'s3://b/k'"), ("/spec/tiers/0/model/s3", "{region: EU}")],
        &["expected the name of a region"],
    ),
    refused(MODEL, "an empty checksum", &[(SHA, "''")], &["spec.tiers[0].model", SHA_FORM]),
    refused(MODEL, "a checksum of another kind", &[(SHA, "d41d8cd98f00b204e9800998ecf8427e")], &[SHA_FORM]),
    refused(
        MODEL,
        "a checksum in capitals",
        &[(SHA, "'00112233445566778899AABBCCDDEEFF00112233445566778899AABBCCDDEEFF'")],
        &[SHA_FORM],
    ),
    refused(
        MODEL,
        "a context of nothing",
        &[("/spec/tiers/0/contextTokens", "0")],
        &["spec.tiers[0].contextTokens", "greater than or equal to 256"],
    ),
    refused(
        MODEL,
        "a batch of nothing",
        &[("/spec/tiers/0/maxBatch", "0")],
        &["spec.tiers[0].maxBatch", "greater than or equal to 1"],
    ),
    refused(
        MODEL,
        "an unknown cache type",
        &[("/spec/tiers/0/kvCacheType", "Q4_0")],
        &["spec.tiers[0].kvCacheType: Unsupported value: \"Q4_0\": supported values: \"F16\", \"Q8_0\""],
    ),
    refused(
        MODEL,
        "memory that is a word",
        &[("/spec/tiers/0/maxVram", "banana")],
        &["spec.tiers[0].maxVram", "\"banana\"", MEMORY],
    ),
    refused(
        MODEL,
        "negative memory",
        &[("/spec/tiers/0/maxVram", "-1Gi")],
        &["spec.tiers[0].maxVram", MEMORY],
    ),
    refused(
        MODEL,
        "no body at all",
        &[("/spec/requests", "{maxBodyBytes: 0}")],
        &["spec.requests.maxBodyBytes", MEMORY],
    ),
    refused(
        MODEL,
        "negative replicas",
        &[("/spec/replicas", "-1")],
        &["spec.replicas", "greater than or equal to 0"],
    ),
    refused(
        MODEL,
        "a duration without a unit",
        &[("/spec/failover", "{unhealthyAfter: '5'}")],
        &["spec.failover.unhealthyAfter", "\"5\"", POSITIVE_DURATION],
    ),
    refused(
        MODEL,
        "no time to answer",
        &[("/spec/failover", "{unhealthyAfter: 0s}")],
        &["spec.failover.unhealthyAfter", POSITIVE_DURATION],
    ),
    refused(
        MODEL,
        "a negative duration",
        &[("/spec/rollout", "{drainTimeout: -5s}")],
        &["spec.rollout.drainTimeout", "expected a duration such as 500ms, 60s or 5m"],
    ),
    refused(
        MODEL,
        "no time to become ready",
        &[("/spec/rollout", "{readyTimeout: 0s}")],
        &["spec.rollout.readyTimeout", POSITIVE_DURATION],
    ),
    refused(
        MODEL,
        "pinned to nothing",
        &[("/spec/failover", "{mode: Pinned}")],
        &["failover.pinnedTier is required with failover.mode Pinned: name the tier to pin"],
    ),
    refused(
        MODEL,
        "a pinned tier in mode Auto",
        &[("/spec/failover", "{pinnedTier: primary}")],
        &["failover.pinnedTier has no meaning with failover.mode Auto: remove it, or set mode Pinned"],
    ),
    refused(
        MODEL,
        "pinned to a tier that is not there",
        &[("/spec/failover", "{mode: Pinned, pinnedTier: third}")],
        &["failover.pinnedTier names no tier: use a name from spec.tiers[].name"],
    ),
    refused(
        MODEL,
        "an alias twice",
        &[("/spec/aliases", "[a, a]")],
        &["spec.aliases[1]: Duplicate value: \"a\""],
    ),
    refused(
        MODEL,
        "an alias that is the name",
        &[("/spec/aliases", "[code]")],
        &["spec.aliases repeats metadata.name, which is a model id already: remove it"],
    ),
    refused(
        MODEL,
        "an alias with a blank",
        &[("/spec/aliases", "['my model']")],
        &["spec.aliases[0]", "\"my model\""],
    ),
    refused(MODEL, "a name that is no Service's", &[("/metadata/name", "'13b'")], &[DNS_NAME]),
    refused(MODEL, "a name with a dot", &[("/metadata/name", "code.v2")], &[DNS_NAME]),
    refused(
        MODEL,
        "a name of 64 characters",
        &[("/metadata/name", "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijkl")],
        &[DNS_NAME],
    ),
    refused(
        MODEL,
        "the gateway's name",
        &[("/metadata/name", "atlas-gateway")],
        &["metadata.name 'atlas-gateway' is the gateway's own: choose another name"],
    ),
    refused(
        MODEL,
        "a misspelt field",
        &[("/spec/tiers/0/contextToken", "4096")],
        &["unknown field \"spec.tiers[0].contextToken\""],
    ),
    refused(
        MODEL,
        "an unknown exposure",
        &[("/spec/expose", "{type: Ingress}")],
        &["spec.expose.type: Unsupported value: \"Ingress\"", "\"NodePort\""],
    ),
    refused(
        MODEL,
        "access without a Secret",
        &[("/spec/access", "{}")],
        &["spec.access.apiKeysSecret: Required value"],
    ),
];
