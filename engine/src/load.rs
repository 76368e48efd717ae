//! From a source to a served model: fetch, check, load, warm up.

use crate::backend::{card_bytes, host_bytes, offloaded_layers, select};
use crate::checkpoint::Checkpoint;
use crate::config::{Backend as Choice, KvCacheType, Serve};
use crate::error::Fatal;
use crate::fetch::{Wanted, fetch};
use crate::model::{Loading, Model, ModelConfig, ModelShape};
use crate::runtime::{Worker, WorkerSettings};
use crate::server::{App, Encoder, Engine};
use crate::status::{Phase, Status};
use crate::text::grammar::GrammarCompiler;
use crate::text::{ChatTemplate, TextTokenizer};
use atlas_engine_core::Limits;
use atlas_engine_core::backend::{KvSpec, KvType};
use atlas_engine_core::program::{BLOCK_TOKENS, MaxShape};
use atlas_engine_core::scheduler::PROMPT_ROWS;
use atlas_engine_core::speculation::MAX_DRAFT;
use atlas_format::TensorType;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of a step, at most; warming up finds out how many of them a step has time for.
const MAX_ROWS: usize = 512;
/// How often the log tells how far uploading has come.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Gets the model and loads it; the answer is the worker, ready to run.
///
/// # Errors
/// The file cannot be had, or is no model that this engine serves.
pub async fn load(arguments: &Serve, app: &Arc<App>) -> Result<Worker, Fatal> {
    let place = arguments.buckets.place();
    let wanted = Wanted { uri: &arguments.model, place: &place, sha256: arguments.sha256.as_deref() };
    let path = fetch(wanted, &arguments.cache_dir, &app.status.download).await?;
    app.status.enter(Phase::Loading);
    let shape = shape(arguments);
    let settings = |end_tokens| WorkerSettings {
        max_batch: arguments.max_batch.get(),
        max_rows: shape.max.rows,
        blocks: shape.blocks,
        queue_limit: arguments.queue,
        end_tokens,
        speculate: arguments.speculate,
        status: app.status.clone(),
        metrics: app.metrics.clone(),
    };
    let context_tokens = arguments.context_tokens.get();
    let chat_template = match &arguments.chat_template {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|source| Fatal::ChatTemplateFile { path: path.clone(), source })?,
        ),
        None => None,
    };
    let choice = arguments.clone();
    let status = app.status.clone();
    let read = move || read(&path, &choice, &shape, chat_template, &status);
    let loaded = tokio::task::spawn_blocking(read).await;
    let Loaded { model, tokenizer, template, grammars } =
        loaded.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    // A request alone may have the whole cache, and no more.
    let context_tokens = context_tokens.min(shape.blocks as usize * BLOCK_TOKENS);
    if let Some(vram) = &app.status.vram {
        vram.hold(model.last_memory_use());
    }
    let limits = Limits { context_tokens, vocabulary: model.config().vocabulary };
    let (mut worker, handle) = Worker::new(model, settings(tokenizer.end_tokens().to_vec()));
    app.status.enter(Phase::WarmingUp);
    let warm = tokio::task::spawn_blocking(move || worker.warm_up().map(|()| worker)).await;
    let worker = warm.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    let tokenizer = Arc::new(tokenizer);
    // It refuses a second value only, and a process loads one model, here.
    let (encoder, grammars) = (Encoder::new(tokenizer.clone()), Arc::new(grammars));
    let _ = app.engine.set(Engine { handle, tokenizer, encoder, template, grammars, limits });
    Ok(worker)
}

/// What the command line asks of the model's memory.
fn shape(arguments: &Serve) -> ModelShape {
    let (context, batch) = (arguments.context_tokens.get(), arguments.max_batch.get());
    let per_sequence = context.div_ceil(BLOCK_TOKENS);
    let blocks = arguments
        .kv_cache_tokens
        .map_or_else(|| per_sequence.saturating_mul(batch), |tokens| tokens.get().div_ceil(BLOCK_TOKENS));
    let max = MaxShape {
        rows: MAX_ROWS.max(batch),
        sequences: batch,
        logit_rows: (batch * (1 + MAX_DRAFT) + PROMPT_ROWS).min(MAX_ROWS.max(batch)),
        hidden_rows: MAX_ROWS.max(batch),
        blocks_per_sequence: per_sequence,
    };
    let kv_type = match arguments.kv_cache_type {
        KvCacheType::F16 => KvType::F16,
        KvCacheType::Q8 => KvType::Q8_0,
    };
    ModelShape { kv_type, blocks: u32::try_from(blocks).unwrap_or(u32::MAX), max }
}

struct Loaded {
    model: Model,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    grammars: GrammarCompiler,
}

fn read(
    path: &Path,
    arguments: &Serve,
    shape: &ModelShape,
    chat_template: Option<String>,
    status: &Status,
) -> Result<Loaded, Fatal> {
    let (began, startup) = (Instant::now(), &status.startup);
    let checkpoint = Checkpoint::open(path)?;
    // Told before anything is refused, so that whoever plans can say what would fit. It is set once: a process loads one
    // model.
    let _ = status.header.set(checkpoint.report(&arguments.model));
    let Checkpoint { config, tensors, .. } = &checkpoint;
    let own = [TensorType::NF4, TensorType::AWQ4];
    if arguments.backend == Choice::Cpu && tensors.iter().any(|(_, tensor)| own.contains(&tensor.tensor_type))
    {
        tracing::warn!(
            "the processor has no int8 kernels for AWQ, GPTQ and NF4: it multiplies them as f32, several times slower than \
             GGUF's types"
        );
    }
    let context_tokens = arguments.context_tokens.get();
    if context_tokens > config.trained_context {
        return Err(Fatal::Context { asked: context_tokens, trained: config.trained_context });
    }
    match arguments.backend {
        Choice::Cpu => check_memory(config, config.layers, tensors.byte_count(), shape)?,
        Choice::Hip => {
            let layers = offloaded_layers(arguments, config);
            check_memory(config, layers, host_bytes(tensors, layers), shape)?;
        }
    }
    let tokenizer = checkpoint.tokenizer()?;
    if tokenizer.vocabulary() != config.vocabulary {
        return Err(Fatal::Vocabulary { tokens: tokenizer.vocabulary(), rows: config.vocabulary });
    }
    let (bos, eos) = tokenizer.special_texts();
    let template = chat_template.as_deref().or(checkpoint.chat_template.as_deref());
    let template = template.map(|source| ChatTemplate::compile(source, &bos, &eos)).transpose()?;
    let grammars = GrammarCompiler::new(&tokenizer)?;
    let devices = select(arguments, tensors, config, shape)?;
    startup.set_layers(0, config.layers);
    if arguments.backend == Choice::Hip {
        startup.begin_upload(card_bytes(tensors, offloaded_layers(arguments, config)));
    }
    let mut told = Instant::now();
    let mut tell = |loading| match (arguments.backend, loading) {
        (Choice::Hip, Loading::Layers(layers)) => startup.set_layers(usize::from(layers), config.layers),
        (Choice::Hip, Loading::Bytes(bytes)) => {
            startup.count_upload(bytes);
            if told.elapsed() >= LOG_EVERY {
                told = Instant::now();
                startup.log_upload("uploading");
            }
        }
        // Nothing but the map has been made; what takes time is put off.
        (Choice::Cpu, _) => {}
    };
    let mut model = Model::load_parts(config, tensors, devices, shape, &mut tell)?;
    if arguments.backend == Choice::Hip {
        startup.log_upload("uploaded");
    }
    let mut pieces = None;
    loop {
        let left = model.settle()?;
        let all = *pieces.get_or_insert(left + 1);
        startup.set_layers(config.layers * (all - left) / all, config.layers);
        if left == 0 {
            break;
        }
    }
    let memory = model.memory_use();
    tracing::info!(
        model = config.name,
        layers = config.layers,
        weight_bytes = memory.weights,
        kv_cache_bytes = memory.kv_cache,
        scratch_bytes = memory.scratch,
        tokenizer = tokenizer.label(),
        milliseconds = began.elapsed().as_millis(),
        "loaded"
    );
    Ok(Loaded { model, tokenizer, template, grammars })
}

/// Refuses what exceeds the machine's or the container's memory, before it is killed for it.
fn check_memory(config: &ModelConfig, layers: usize, weights: u64, shape: &ModelShape) -> Result<(), Fatal> {
    let spec = config.kv_spec(shape.kv_type, shape.blocks);
    let spec = KvSpec { layers: 0..u16::try_from(layers).unwrap_or(u16::MAX), ..spec };
    let kv = spec.block_bytes().map_or(0, |bytes| bytes.saturating_mul(u64::from(shape.blocks)));
    let tokens = shape.blocks as usize * BLOCK_TOKENS;
    match memory_bytes() {
        Some(available) if weights.saturating_add(kv) > available => {
            Err(Fatal::DoesNotFit { weights, kv, tokens, available })
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
