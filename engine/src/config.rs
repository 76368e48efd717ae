//! The command line: the operator's contract, checked once.

mod values;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;
use values::{duration, http_url, name_of, patience, sha256, thread_count};

/// OpenAI-compatible server for models in GGUF and safetensors.
#[derive(Debug, Parser)]
#[command(name = "atlas-engine", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP until SIGTERM.
    Serve(Box<Serve>),
    /// Show a model's header, tensors and tokenizer.
    Inspect(Inspect),
    /// Download a model into a cache folder, or check the one that is there.
    Fetch(Fetch),
    /// Check every kernel on the machine's AMD card and measure its memory; takes a minute.
    #[command(name = "selftest")]
    SelfTest(SelfTest),
    /// Measure prefill and decode, beside what the processor or the card could do at best.
    Bench(Bench),
    /// Compute the logits at every position of given tokens, to compare engines and devices with.
    Logits(Logits),
}

/// Show a file.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A GGUF file, or a folder of safetensors.
    pub file: PathBuf,
    /// List every tensor too.
    #[arg(long)]
    pub tensors: bool,
}

/// Download a file.
#[derive(Debug, Args)]
pub struct Fetch {
    /// hf://OWNER/REPO/FILE[@REVISION], hf://OWNER/REPO[@REVISION], http(s)://..., s3://BUCKET/KEY, file:///PATH
    /// or a path.
    #[arg(long, value_name = "URI")]
    pub model: String,
    /// Where buckets are.
    #[command(flatten)]
    pub buckets: Buckets,
    /// Folder that keeps downloaded models.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: PathBuf,
    /// Expected sha256 of the file, in hex.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    /// Once the file is there, read it, so that memory holds as much of it as there is room for, and stay until SIGTERM.
    #[arg(long)]
    pub hold: bool,
    /// Where the last error goes too, for Kubernetes to show.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
}

/// Where the buckets of s3:// sources are. Credentials are taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
/// AWS_SESSION_TOKEN of the environment; without them a bucket has to be public.
#[derive(Debug, Clone, Args)]
pub struct Buckets {
    /// With s3://: the server, as http(s)://HOST or http(s)://HOST:PORT; Amazon's by default.
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// With s3://: the bucket's region; us-east-1 by default.
    #[arg(long, value_name = "REGION")]
    pub s3_region: Option<String>,
    /// With s3://: whether the bucket's name stands in the path and not before the host; by default where an endpoint
    /// is given.
    #[arg(long, value_name = "BOOL")]
    pub s3_path_style: Option<bool>,
}

impl Buckets {
    /// The same as a place.
    pub fn place(&self) -> atlas_s3::Place {
        let Self { s3_endpoint, s3_region, s3_path_style } = self.clone();
        atlas_s3::Place { endpoint: s3_endpoint, region: s3_region, path_style: s3_path_style }
    }
}

/// Check a card.
#[derive(Debug, Args)]
pub struct SelfTest {
    /// Leave the measurements out.
    #[arg(long)]
    pub checks_only: bool,
    /// Print what decoding should take on cards, predicted from the compiled kernels; needs no card.
    #[arg(long, conflicts_with = "checks_only")]
    pub model_only: bool,
    /// Seed of the random shapes that are checked besides the tables'.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Distinct weights to measure with, in MiB; 400 by default, which is beyond every card's cache.
    #[arg(long, value_name = "MIB")]
    pub megabytes: Option<u64>,
    /// Where the card and its runtime are.
    #[command(flatten)]
    pub hip: HipFiles,
}

/// Where the card and its runtime are.
#[derive(Debug, Clone, Args)]
pub struct HipFiles {
    /// The HIP runtime's library; found as libamdhip64.so by default.
    #[arg(long, value_name = "FILE")]
    pub hip_library: Option<String>,
    /// Where dev and sys are; another folder is for tests.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub system_root: PathBuf,
}

/// The one device that computes.
#[derive(Debug, Args)]
pub struct Compute {
    /// What computes.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub backend: Backend,
    /// Threads that compute; all available cores by default.
    #[arg(long, value_parser = thread_count)]
    pub threads: Option<NonZeroUsize>,
    /// With the hip backend: where the card and its runtime are.
    #[command(flatten)]
    pub hip: HipFiles,
}

impl Compute {
    /// Threads that compute.
    pub fn thread_count(&self) -> usize {
        threads(self.threads)
    }
}

/// Measure a model.
#[derive(Debug, Args)]
pub struct Bench {
    /// A GGUF file, which needs no tokenizer, or a folder of safetensors.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The device.
    #[command(flatten)]
    pub compute: Compute,
    /// What to measure, as JSON: `[{"kind": "prefill" or "decode", "depth": N, "sequences": N, "tokens": N}, ...]`.
    /// Prefill of 512 tokens, and decode after 128 and 2048 and of 4 and 16 sequences, by default.
    #[arg(long, value_name = "JSON", value_parser = crate::bench::parse_tests)]
    pub tests: Option<crate::bench::Tests>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Measure a test for each line of standard input that holds its index, or the machine for `peaks`, and answer each
    /// by a line of JSON, after a first one once the model is loaded: for comparisons that take turns.
    #[arg(long)]
    pub turns: bool,
}

/// Compute logits.
#[derive(Debug, Args)]
pub struct Logits {
    /// A GGUF file, which needs no tokenizer, or a folder of safetensors.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The device.
    #[command(flatten)]
    pub compute: Compute,
    /// On the processor, with f32 products and an f32 cache, several times slower: what the others are compared with.
    #[arg(long, conflicts_with = "backend")]
    pub exact: bool,
}

/// As many as asked for, else one a core.
fn threads(asked: Option<NonZeroUsize>) -> usize {
    let available = || std::thread::available_parallelism().ok();
    asked.or_else(available).map_or(1, NonZeroUsize::get)
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The processor.
    Cpu,
    /// An AMD card.
    Hip,
}

/// The KV cache's element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheType {
    /// 16-bit floats.
    #[value(name = "F16")]
    F16,
    /// 8-bit blocks.
    #[value(name = "Q8_0")]
    Q8,
}

/// Serve a model.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// The model: hf://OWNER/REPO/FILE[@REVISION], hf://OWNER/REPO[@REVISION], http(s)://..., s3://BUCKET/KEY,
    /// file:///PATH or a path, of a GGUF file or of a folder of safetensors.
    #[arg(long, value_name = "URI")]
    pub model: String,
    /// Where buckets are.
    #[command(flatten)]
    pub buckets: Buckets,
    /// A model id that clients may ask for; may be given several times; the file's, folder's or repository's name by
    /// default. Answers carry the id that was asked for.
    #[arg(long = "served-model-name", value_name = "NAME")]
    pub served_model_names: Vec<String>,
    /// What computes.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub backend: Backend,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub host: IpAddr,
    /// Port of the API; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Port of probes, metrics and status, served by a thread of its own; 0 takes a free one.
    #[arg(long, default_value_t = 8001)]
    pub internal_port: u16,
    /// Tokens of prompt and answer together, at most.
    #[arg(long, value_name = "N", default_value = "2048")]
    pub context_tokens: NonZeroUsize,
    /// Requests computed at the same time, at most.
    #[arg(long, value_name = "N", default_value = "4")]
    pub max_batch: NonZeroUsize,
    /// Expected sha256 of the model file, in hex.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    /// Folder that keeps downloaded models.
    #[arg(long, value_name = "DIR", default_value = "/models")]
    pub cache_dir: PathBuf,
    /// A Jinja file that takes the place of the model's own chat template.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Requests that may wait; one more is answered 429.
    #[arg(long, default_value_t = 64)]
    pub queue: usize,
    /// Longest time from a request to its last token, such as 300s or 5m.
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = patience)]
    pub request_timeout: Duration,
    /// Largest request body; a larger one is answered 413.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    pub max_body_bytes: usize,
    /// Requests answered at a time, those in the queue included; one more is answered 503.
    #[arg(long, value_name = "N", default_value = "256")]
    pub max_concurrent_requests: NonZeroUsize,
    /// Connections at a time; further ones wait.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroUsize,
    /// Time for a request's headers, and for a connection to idle between requests. Clients that keep idle connections
    /// should give them up earlier: the gateway does after 90 s.
    #[arg(long, value_name = "TIME", default_value = "100s", value_parser = patience)]
    pub header_timeout: Duration,
    /// Time in which a client must read some of its answer.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = patience)]
    pub write_timeout: Duration,
    /// File with API keys, one a line, read again when it changes; without it, no key is asked for.
    #[arg(long, value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,
    /// A web origin whose pages may use the API, such as https://example.org, or *; may be given several times.
    #[arg(long = "cors-allow-origin", value_name = "ORIGIN")]
    pub cors_allow_origins: Vec<String>,
    /// Longest time that running requests get after SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value = "F16")]
    pub kv_cache_type: KvCacheType,
    /// Tokens of KV cache that all requests share; --context-tokens times --max-batch by default. With fewer, requests
    /// that do not fit beside others wait or are computed again.
    #[arg(long, value_name = "N")]
    pub kv_cache_tokens: Option<NonZeroUsize>,
    /// Whether to guess tokens that repeat earlier ones; answers are the same with and without.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub speculate: bool,
    /// Threads that compute; all available cores by default.
    #[arg(long, value_parser = thread_count)]
    pub threads: Option<NonZeroUsize>,
    /// With the hip backend: the card's gfx target must be this one.
    #[arg(long, value_name = "GFX")]
    pub expect_gfx_target: Option<String>,
    /// With the hip backend: the card must have this much VRAM.
    #[arg(long, value_name = "BYTES")]
    pub expect_vram_bytes: Option<u64>,
    /// Experimental, with the hip backend: the first so many layers, and the embedding, are computed by the processor,
    /// for models that exceed the card. Every token then waits for the machine's memory.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub cpu_layers: usize,
    /// With the hip backend: where the card and its runtime are.
    #[command(flatten)]
    pub hip: HipFiles,
    /// Send spans of requests to this OpenTelemetry collector (OTLP over HTTP), such as http://collector:4318; none are
    /// sent by default.
    #[arg(long, value_name = "URL", value_parser = http_url)]
    pub otlp_endpoint: Option<String>,
    /// File that gets the error that ends the process.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
}

impl Serve {
    /// The model ids that clients may ask for; one at least.
    pub fn names(&self) -> Vec<String> {
        if self.served_model_names.is_empty() {
            vec![name_of(&self.model)]
        } else {
            self.served_model_names.clone()
        }
    }

    /// Threads that compute.
    pub fn thread_count(&self) -> usize {
        threads(self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_model_without_a_name_is_called_as_its_file_is() {
        for (model, expected) in [
            ("/models/code.Q4_K_M.gguf", "code.Q4_K_M"),
            ("code.gguf", "code"),
            ("/models/folder/", "folder"),
            ("hf://owner/repo/file.gguf@v1.0", "file"),
            ("hf://owner/repo@main", "repo"),
            ("https://host/a/b.gguf?download=true", "b"),
            ("s3://bucket/deep/key.gguf", "key"),
            ("file:///", "model"),
        ] {
            let read = Arguments::try_parse_from(["atlas-engine", "serve", "--model", model]).unwrap();
            let Command::Serve(serve) = read.command else { panic!("{model} is served") };
            assert_eq!(serve.names(), [expected], "{model}");
        }
    }
}
