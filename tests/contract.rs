//! docs/contracts.md from both sides: what the operator says and expects against what the engine takes and answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

#[path = "../engine/tests/support/hub.rs"]
mod hub;

use anyhow::{Context, Result, ensure};
use atlas_crds::{ModelSource, status::HeaderStatus};
use atlas_engine_core::ExitCode;
use atlas_headers::{Guard, HeaderReader, Limits, Options};
use atlas_operator_core::engine_contract::EngineExit;
use atlas_operator_core::vram::{
    GGUF_ARCHITECTURES, LayerShape, MODEL_TYPES, ModelShape, read_safetensors_header,
};
use atlas_tests::{assets::cache_folder, lab::MODEL_FILE, support::binary};

/// The engine's codes; a new one does not compile until it is listed.
fn engine_codes() -> BTreeSet<(i32, String)> {
    let codes = [
        ExitCode::Internal,
        ExitCode::Usage,
        ExitCode::ModelUnavailable,
        ExitCode::ModelInvalid,
        ExitCode::ChecksumMismatch,
        ExitCode::DoesNotFit,
        ExitCode::PortInUse,
        ExitCode::WrongCard,
        ExitCode::NoPermission,
        ExitCode::NoRuntime,
        ExitCode::Hang,
        ExitCode::Lost,
        ExitCode::OutOfMemory,
    ];
    for code in codes {
        match code {
            ExitCode::Success
            | ExitCode::Internal
            | ExitCode::Usage
            | ExitCode::ModelUnavailable
            | ExitCode::ModelInvalid
            | ExitCode::ChecksumMismatch
            | ExitCode::DoesNotFit
            | ExitCode::PortInUse
            | ExitCode::WrongCard
            | ExitCode::NoPermission
            | ExitCode::NoRuntime
            | ExitCode::Hang
            | ExitCode::Lost
            | ExitCode::OutOfMemory => {}
        }
    }
    codes.iter().map(|code| (i32::from(code.number()), format!("{code:?}"))).collect()
}

/// Rows of the document's table of exit codes that name one.
fn documented_codes(text: &str) -> BTreeSet<(i32, String)> {
    let section = text.split("## Engine exit codes").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        Some((cells.next()?.parse().ok()?, cells.next()?.to_owned()))
    });
    rows.filter(|(code, _)| *code != 0).collect()
}

fn read(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[test]
fn exit_codes_mean_the_same_to_the_engine_the_operator_and_the_reader() -> Result<()> {
    let operator = EngineExit::ALL.iter().map(|exit| (exit.code(), format!("{exit:?}"))).collect();
    let documented = documented_codes(&read("docs/contracts.md")?);
    ensure!(engine_codes() == operator, "engine {:?}, operator {operator:?}", engine_codes());
    ensure!(documented == operator, "document {documented:?}, operator {operator:?}");
    Ok(())
}

#[test]
fn the_engine_takes_every_flag_that_the_operator_renders() -> Result<()> {
    let rendered = read(
        "operator/src/desired/snapshots/atlas_operator__desired__tests__Deployment-code-t-primary.snap",
    )?;
    let flags: BTreeSet<&str> =
        rendered.lines().filter_map(|line| line.trim().strip_prefix("- \"--")?.strip_suffix('"')).collect();
    ensure!(flags.len() > 10, "only {flags:?}: does the snapshot still hold the engine's arguments?");
    let help = Command::new(binary("atlas-engine")?).args(["serve", "--help"]).output()?;
    let help = String::from_utf8(help.stdout)?;
    let taken: BTreeSet<&str> =
        help.split_whitespace().filter_map(|word| word.trim_end_matches("...").strip_prefix("--")).collect();
    let unknown: Vec<_> = flags.difference(&taken).collect();
    ensure!(unknown.is_empty(), "atlas-engine serve does not take {unknown:?}");
    Ok(())
}

/// A model of two layers with all its tensors, as bf16 zeros; the answer is the elements of its vectors.
fn write_small_folder(folder: &Path, config: &serde_json::Value) -> Result<u64> {
    let (hidden, feed, kv, vocabulary) = (64_u64, 96_u64, 32_u64, 40_u64);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("lm_head.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![feed, hidden]),
            ("mlp.up_proj", vec![feed, hidden]),
            ("mlp.down_proj", vec![hidden, feed]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let (mut entries, mut offset, mut vectors) = (serde_json::Map::new(), 0, 0);
    for (name, shape) in tensors {
        let elements: u64 = shape.iter().product();
        vectors += if shape.len() == 1 { elements } else { 0 };
        let end = offset + 2 * elements;
        entries.insert(
            name,
            serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let text = serde_json::Value::Object(entries).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len() + usize::try_from(offset)?, 0);
    std::fs::write(folder.join("model.safetensors"), bytes)?;
    std::fs::write(folder.join("config.json"), config.to_string())?;
    std::fs::write(folder.join("tokenizer.json"), "{}")?;
    Ok(vectors)
}

#[test]
fn a_folder_has_the_same_bytes_for_the_planner_and_the_engine() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = serde_json::json!({"model_type": "mistral", "num_hidden_layers": 2, "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 40,
        "max_position_embeddings": 128, "tie_word_embeddings": false});
    let vectors = write_small_folder(folder.path(), &config)?;
    let header = read_safetensors_header(&std::fs::read(folder.path().join("model.safetensors"))?)?;
    let bytes = header.map_err(|needed| anyhow::anyhow!("{needed} bytes are needed"))?;
    let planned = ModelShape::from_config(&config, bytes)?;
    let output = Command::new(binary("atlas-engine")?).arg("inspect").arg(folder.path()).output()?;
    let text = String::from_utf8(output.stdout)?;
    // Norms are kept in f32, which is twice their bytes.
    let weights = format!(" tensors of {} bytes", planned.weight_bytes() + 2 * vectors);
    ensure!(
        text.contains(&weights),
        "{weights:?} is missing:\n{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let elements: u64 = planned.layers.iter().map(|layer| layer.key_elements + layer.value_elements).sum();
    let cache = format!("KV cache   {} bytes a token in f16", 2 * elements);
    ensure!(text.contains(&cache), "{cache:?} is missing:\n{text}");
    Ok(())
}

/// What an engine leaves behind that needs more memory than there is, as the operator reads it.
fn report_of(model: &Path, folder: &Path) -> Result<(ModelShape, String)> {
    let (log, source) = (folder.join("termination-log"), format!("file://{}", model.display()));
    std::fs::write(&log, "")?;
    let output = Command::new(binary("atlas-engine")?)
        .args(["serve", "--model", &source, "--served-model-name", "m", "--backend", "cpu"])
        .args(["--host", "127.0.0.1", "--port", "0", "--internal-port", "0"])
        .args([
            "--context-tokens",
            "64",
            "--max-batch",
            "1",
            "--kv-cache-tokens",
            "60000000000",
            "--termination-log",
        ])
        .arg(&log)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(EngineExit::DoesNotFit.code()), "{}: {said}", output.status);
    let text = std::fs::read_to_string(&log)?;
    ensure!(text.len() < 4096, "Kubernetes cuts a message of {} bytes", text.len());
    let (message, header) = text.split_once("\nheader: ").with_context(|| text.clone())?;
    let report: HeaderStatus = serde_json::from_str(header.trim())?;
    ensure!(report.source == source, "{report:?}");
    Ok((ModelShape::from_report(&report).context("no shape")?, message.to_owned()))
}

#[test]
fn an_engine_reports_what_the_planner_would_read_in_the_header() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let model = cache_folder().join("models").join(MODEL_FILE);
    let (reported, message) = report_of(&model, folder.path())?;
    ensure!(message.contains("the model does not fit"), "{message}");
    let read = ModelShape { bytes_by_type: BTreeMap::new(), ..atlas_headers::read_file(&model)? };
    ensure!(reported == read, "{reported:?} where the header says {read:?}");

    let config = serde_json::json!({"model_type": "mistral", "num_hidden_layers": 2, "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 40,
        "max_position_embeddings": 128, "tie_word_embeddings": false});
    let vectors = write_small_folder(folder.path(), &config)?;
    let (reported, _) = report_of(folder.path(), folder.path())?;
    let header = read_safetensors_header(&std::fs::read(folder.path().join("model.safetensors"))?)?;
    let read = ModelShape::from_config(&config, header.map_err(|needed| anyhow::anyhow!("{needed}"))?)?;
    // Norms are kept in f32, which is twice their bytes; which layer's they are the planner does not know.
    ensure!(reported.weight_bytes() == read.weight_bytes() + 2 * vectors, "{reported:?} {read:?}");
    let layers = read
        .layers
        .iter()
        .zip(&reported.layers)
        .map(|(read, reported)| LayerShape { weight_bytes: reported.weight_bytes, ..*read });
    let read = ModelShape {
        layers: layers.collect(),
        other_weight_bytes: reported.other_weight_bytes,
        bytes_by_type: BTreeMap::new(),
        ..read
    };
    ensure!(reported == read, "{reported:?} where the folder says {read:?}");
    Ok(())
}

/// Splits a folder's file of weights into two behind an index.
fn split_in_two(folder: &Path) -> Result<()> {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path)?;
    let header = atlas_format::Safetensors::parse_file(&bytes)?;
    let (mut weight_map, mut total) = (serde_json::Map::new(), 0);
    for (part, tensors) in header.tensors().chunks(header.tensors().len().div_ceil(2)).enumerate() {
        let name = format!("model-{:05}-of-00002.safetensors", part + 1);
        let first = tensors.first().context("no tensors")?.bytes.start;
        let mut entries = serde_json::Map::new();
        for tensor in tensors {
            let offsets = [tensor.bytes.start - first, tensor.bytes.end - first];
            let entry = serde_json::json!({"dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": offsets});
            entries.insert(tensor.name.clone(), entry);
            weight_map.insert(tensor.name.clone(), name.clone().into());
        }
        let last = tensors.last().context("no tensors")?.bytes.end;
        let text = serde_json::Value::Object(entries).to_string();
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.as_bytes());
        file.extend(&bytes[usize::try_from(first)?..usize::try_from(last)?]);
        total += last - first;
        std::fs::write(folder.join(name), file)?;
    }
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
    Ok(std::fs::remove_file(path)?)
}

#[tokio::test]
async fn planner_and_engine_read_the_same_folder_behind_the_same_source() -> Result<()> {
    let (folder, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let config = serde_json::json!({"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 40,
        "max_position_embeddings": 128, "tie_word_embeddings": false});
    let vectors = write_small_folder(folder.path(), &config)?;
    let one = hub::Hub::of(folder.path());
    split_in_two(folder.path())?;
    let two = hub::Hub::of(folder.path());
    for (hub, files) in [(&one, "model.safetensors"), (&two, "model-00002-of-00002.safetensors")] {
        let sources = ["hf://acme/model".to_owned(), "hf://acme/model@main".to_owned()];
        let others = [format!("{}/plain/", hub.url), format!("hf://acme/model/{files}")];
        for source in sources.iter().chain(&others) {
            let options = Options {
                hub: hub.url.clone(),
                token: None,
                guard: Guard { allowed: ["127.0.0.0/8".parse()?].into() },
                limits: Limits::default(),
            };
            let planned = HeaderReader::new(options)?.read(&source.parse::<ModelSource>()?.into()).await?;
            let engine = binary("atlas-engine")?;
            let mut fetch = Command::new(&engine);
            fetch.args(["fetch", "--model", source, "--cache-dir"]).arg(cache.path());
            let fetched = fetch.env("HF_ENDPOINT", &hub.url).output()?;
            ensure!(fetched.status.success(), "{source}: {}", String::from_utf8_lossy(&fetched.stderr));
            let path = String::from_utf8(fetched.stdout)?;
            let inspected = Command::new(&engine).args(["inspect", path.trim()]).output()?;
            let text = String::from_utf8(inspected.stdout)?;
            // Norms are kept in f32, which is twice their bytes.
            let weights = format!(" tensors of {} bytes", planned.shape.weight_bytes() + 2 * vectors);
            ensure!(text.contains(&weights), "{source}: {weights:?} is missing:\n{text}");
        }
    }
    Ok(())
}

#[test]
fn the_planner_plans_the_architectures_that_the_engine_serves() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let others = ["gemma2", "gemma3", "deepseek2", "mamba", "phi3", "qwen2moe", "qwen3moe", "mistral"];
    for architecture in GGUF_ARCHITECTURES.into_iter().chain(others) {
        let path = folder.path().join(format!("{architecture}.gguf"));
        let header = atlas_format::HeaderWriter::default().text("general.architecture", architecture);
        std::fs::write(&path, header.finish())?;
        let output = Command::new(binary("atlas-engine")?).arg("inspect").arg(&path).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("cannot be served"), "{architecture}: {said}");
        let refused = said.contains(&format!("architecture is \"{architecture}\""));
        ensure!(refused != GGUF_ARCHITECTURES.contains(&architecture), "{architecture}: {said}");
    }
    let others = ["gemma2", "mixtral", "phi3", "qwen2_moe", "qwen3_moe", "deepseek_v2"];
    for model_type in MODEL_TYPES.into_iter().chain(others) {
        let path = folder.path().join(model_type);
        std::fs::create_dir(&path)?;
        let config = serde_json::json!({"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 64,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 40,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 64});
        write_small_folder(&path, &config)?;
        let output = Command::new(binary("atlas-engine")?).arg("inspect").arg(&path).output()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let refused = said.contains(&format!("model_type {model_type:?}"));
        ensure!(refused != MODEL_TYPES.contains(&model_type), "{model_type}: {said}");
        let planned = ModelShape::from_config(&config, BTreeMap::new()).err().map(|error| error.to_string());
        let told = planned.is_some_and(|why| why.contains("its architecture is") && why.contains("mistral"));
        ensure!(
            told != MODEL_TYPES.contains(&model_type),
            "{model_type} is planned otherwise than it is served"
        );
    }
    Ok(())
}
