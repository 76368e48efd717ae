//! From a source to a served model: fetch, check, load, warm up.

use crate::config::{Backend, KvCacheType, Serve};
use crate::error::Fatal;
use crate::fetch::fetch;
use crate::model::{Llama, ModelConfig, ModelError};
use crate::runtime::{Worker, WorkerSettings};
use crate::server::{App, Engine};
use crate::status::Phase;
use crate::text::grammar::GrammarCompiler;
use crate::text::{ChatTemplate, TextTokenizer};
use atlas_engine_core::Limits;
use atlas_format::Gguf;
use atlas_kernels::MappedFile;
use std::path::Path;
use std::sync::Arc;

/// Refuses what this build cannot do, before anything is fetched.
///
/// # Errors
/// The backend is not in this build.
pub fn check_backend(arguments: &Serve) -> Result<(), Fatal> {
    let (Backend::Cpu, KvCacheType::F16 | KvCacheType::Q8) = (arguments.backend, arguments.kv_cache_type)
    else {
        return Err(Fatal::NoHip);
    };
    for (flag, given) in [
        ("--expect-gfx-target", arguments.expect_gfx_target.is_some()),
        ("--expect-vram-bytes", arguments.expect_vram_bytes.is_some()),
    ] {
        if given {
            tracing::warn!(flag, "the cpu backend has no card to compare with; the flag is not checked");
        }
    }
    Ok(())
}

/// Gets the model and loads it; the answer is the worker, ready to run.
///
/// # Errors
/// The file cannot be had, or is no model that this engine serves.
pub async fn load(arguments: &Serve, app: &Arc<App>) -> Result<Worker, Fatal> {
    let path =
        fetch(&arguments.model, &arguments.cache_dir, arguments.sha256.as_deref(), &app.status.download)
            .await?;
    app.status.enter(Phase::Loading);
    let settings = |end_tokens| WorkerSettings {
        max_batch: arguments.max_batch.get(),
        queue_limit: arguments.queue,
        end_tokens,
        status: app.status.clone(),
        metrics: app.metrics.clone(),
    };
    let context_tokens = arguments.context_tokens.get();
    let (max_batch, threads) = (arguments.max_batch.get(), arguments.thread_count());
    let chat_template = match &arguments.chat_template {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|source| Fatal::ChatTemplateFile { path: path.clone(), source })?,
        ),
        None => None,
    };
    let read = move || read(&path, context_tokens, max_batch, threads, chat_template);
    let loaded = tokio::task::spawn_blocking(read).await;
    let Loaded { model, tokenizer, template, grammars } =
        loaded.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    let limits = Limits { context_tokens, vocabulary: model.config().vocabulary };
    let (mut worker, handle) = Worker::new(model, settings(tokenizer.end_tokens().to_vec()));
    app.status.enter(Phase::WarmingUp);
    let warm = tokio::task::spawn_blocking(move || worker.warm_up().map(|()| worker)).await;
    let worker = warm.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    // Set once, here.
    let tokenizer = Arc::new(tokenizer);
    let _ = app.engine.set(Engine { handle, tokenizer, template, grammars: Arc::new(grammars), limits });
    Ok(worker)
}

struct Loaded {
    model: Llama,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    grammars: GrammarCompiler,
}

fn read(
    path: &Path,
    context_tokens: usize,
    max_batch: usize,
    threads: usize,
    chat_template: Option<String>,
) -> Result<Loaded, Fatal> {
    let began = std::time::Instant::now();
    let file = MappedFile::open(path).map_err(|source| Fatal::Open { path: path.to_owned(), source })?;
    let file = Arc::new(file);
    let header = Gguf::parse_file(&file).map_err(ModelError::from)?;
    let config = ModelConfig::from_gguf(&header)?;
    if context_tokens > config.trained_context {
        return Err(Fatal::Context { asked: context_tokens, trained: config.trained_context });
    }
    check_memory(&config, file.len() as u64, context_tokens, max_batch)?;
    let tokenizer = TextTokenizer::from_gguf(&header)?;
    if tokenizer.vocabulary() != config.vocabulary {
        return Err(Fatal::Vocabulary { tokens: tokenizer.vocabulary(), rows: config.vocabulary });
    }
    let (bos, eos) = tokenizer.special_texts();
    let template = header.str("tokenizer.chat_template").map_err(ModelError::from)?;
    let template = chat_template.as_deref().or(template);
    let template = template.map(|source| ChatTemplate::compile(source, bos, eos)).transpose()?;
    let grammars = GrammarCompiler::new(&tokenizer)?;
    let model = Llama::load(&header, &file, threads)?;
    tracing::info!(
        model = config.name,
        layers = config.layers,
        weight_bytes = model.weight_bytes(),
        tokenizer = tokenizer.label(),
        milliseconds = began.elapsed().as_millis(),
        "loaded"
    );
    Ok(Loaded { model, tokenizer, template, grammars })
}

/// Refuses what exceeds the machine's or the container's memory, before it is killed for it.
fn check_memory(config: &ModelConfig, weights: u64, context: usize, batch: usize) -> Result<(), Fatal> {
    let kv = config.kv_bytes_per_token().saturating_mul(context as u64).saturating_mul(batch as u64);
    match memory_bytes() {
        Some(available) if weights.saturating_add(kv) > available => {
            Err(Fatal::DoesNotFit { weights, kv, context, batch, available })
        }
        _ => Ok(()),
    }
}

/// Memory of the container, else of the machine.
fn memory_bytes() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    });
    limit.into_iter().chain(machine).min()
}
