//! A step: the batch goes up, the launches follow, the results come back.

use super::compile::{Launch, Program, StepResult};
use super::inputs::Counts;
use super::{HipBackend, shape};
use crate::hip::arena::Span;
use crate::hip::attention::{Attend, Prefill, RopeKv, Rows as AttentionRows};
use crate::hip::device::{Device, Pinned};
use crate::hip::error::HipError;
use crate::hip::kernels::Kernels;
use crate::hip::products::Blocks;
use crate::hip::rows::Norm;
use atlas_engine_core::backend::{Batch, DeviceError, StepOut};
use atlas_engine_core::program::Rows;

/// Graphs that a program keeps; a step of yet other counts is launched kernel by kernel.
const GRAPHS: usize = 64;

impl HipBackend {
    pub(super) fn run_step(
        &mut self,
        program: atlas_engine_core::backend::ProgramId,
        batch: &Batch<'_>,
        handoff: Option<&[f32]>,
        out: &mut StepOut,
    ) -> Result<(), DeviceError> {
        let Self { programs, kernels, device, kv, use_graphs, .. } = self;
        let known = programs.len();
        let program = programs.get_mut(program.0 as usize);
        let program = program.ok_or(shape("a program's id", known, known))?;
        device.bind()?;
        let blocks = kv.as_ref().map_or(u32::MAX / 16, |kv| kv.spec.blocks);
        let counts = program.inputs.fill(device, batch, program.vocabulary, blocks)?;
        match (&mut program.input, handoff) {
            (None, None) => {}
            (Some((input, host)), Some(values)) => {
                let bytes = floats(values.len());
                if values.len() != batch.rows() * input.columns as usize {
                    let expected = batch.rows() * input.columns as usize;
                    return Err(shape("elements of a handoff", values.len(), expected));
                }
                put_floats(host, values);
                device.upload_pinned(host, bytes, input.span.at_least("a handoff", bytes as u64)?)?;
            }
            (input, _) => {
                return Err(shape(
                    "handoffs of a step",
                    usize::from(handoff.is_some()),
                    input.is_some().into(),
                ));
            }
        }
        if !(*use_graphs && counts.tiles == 0 && replay(program, device, kernels, counts)?) {
            launch_all(program, device, kernels, counts)?;
        }
        collect(program, device, counts, out)
    }
}

/// Replays the step's graph, after capturing it where there is none. False where the step has to be launched.
fn replay(
    program: &mut Program,
    device: &Device,
    kernels: &Kernels,
    counts: Counts,
) -> Result<bool, DeviceError> {
    // Partitions beyond a row's end are left at once, so few graphs cover all contexts.
    let partitions = counts.partitions.next_power_of_two().min(program.max_partitions);
    let counts = Counts { partitions, ..counts };
    if !program.graphs.contains_key(&counts) {
        if program.graphs.len() >= GRAPHS {
            return Ok(false);
        }
        // A runtime that cannot capture this is no error: it is asked once and then left alone.
        let captured = device.capture(|device| launch_all(program, device, kernels, counts));
        program.graphs.insert(counts, captured.ok());
    }
    match program.graphs.get(&counts) {
        Some(Some(graph)) => {
            device.replay(graph)?;
            program.replayed += 1;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn launch_all(program: &Program, device: &Device, kernels: &Kernels, counts: Counts) -> Result<(), HipError> {
    let inputs = &program.inputs;
    let of = |rows: Rows| match rows {
        Rows::Tokens => counts.rows,
        Rows::Logits => counts.logit_rows,
        Rows::Hidden => counts.hidden_rows,
    };
    let attention = AttentionRows {
        positions: inputs.positions(),
        sequences: inputs.sequences(),
        tables: inputs.tables(),
        table_stride: inputs.table_stride(),
        count: counts.rows,
    };
    let blocks_if = |wanted: bool| wanted.then_some(program.blocks);
    for launch in &program.launches {
        match *launch {
            Launch::Embed { w, out } => kernels.embed(device, w, inputs.ids(), counts.rows, out)?,
            Launch::Norm { x, add, weight, epsilon, out, blocks, d, rows } => {
                let operands = Norm { x, add, weight, epsilon, out, blocks: blocks_if(blocks), d };
                kernels.norm(device, operands, of(rows))?;
            }
            Launch::Quantize { after_tiles: true, .. } if counts.tiles == 0 => {}
            Launch::Quantize { x, k, rows, .. } => {
                kernels.quantize_q8(device, x, of(rows), k, program.blocks)?
            }
            Launch::Halve { rows, .. } if Counts::is_few(of(rows)) => {}
            Launch::Halve { x, k, rows } => kernels.quantize_h16(device, x, of(rows), k, program.halves)?,
            Launch::Product { w, x, out, rows } => {
                let rows = of(rows);
                let integer = w.format.is_integer();
                match (Counts::is_few(rows), integer) {
                    (_, _) if rows == 0 => {}
                    (true, true) => kernels.matvec(device, w, program.blocks, rows, out)?,
                    (true, false) => {
                        let x = Blocks { elements: x, scales: x };
                        kernels.matvec(device, w, x, rows, out)?;
                    }
                    (false, true) => kernels.matmul(device, w, program.blocks, rows, out)?,
                    (false, false) => kernels.matmul(device, w, program.halves, rows, out)?,
                }
            }
            Launch::HeadNorm { x, weight, size, heads, stride, epsilon } => {
                kernels.head_norm(device, x, weight, [size, heads, stride, counts.rows], epsilon)?;
            }
            Launch::RopeKv { qkv, rope, halves, layer } => {
                let Some((angles, pairs)) = inputs.angles(rope) else { continue };
                let slots = inputs.slots();
                let operands = RopeKv { qkv, angles, slots, pairs, halves, rows: counts.rows };
                kernels.rope_kv(device, layer, operands)?;
            }
            Launch::Attend { qkv, layer, scale, out, blocks } => {
                if counts.listed > 0 {
                    let operands = Attend {
                        qkv,
                        list: inputs.list(),
                        count: counts.listed,
                        partials: program.partials,
                        partitions: program.max_partitions,
                        used: counts.partitions,
                        scale,
                        out,
                        blocks: blocks_if(blocks && counts.tiles == 0),
                    };
                    kernels.attend(device, layer, attention, operands)?;
                }
                if counts.tiles > 0 {
                    let tiles = inputs.tiles();
                    let operands = Prefill { qkv, tiles, count: counts.tiles, scale, out };
                    kernels.prefill(device, layer, attention, operands)?;
                }
            }
            Launch::Swiglu { x, out, f, rows, blocks } => {
                kernels.swiglu(device, x, out, blocks_if(blocks), [of(rows), f])?;
            }
            Launch::Add { x, out, columns, rows } => {
                kernels.add(device, x, out, u64::from(of(rows)) * u64::from(columns))?;
            }
            Launch::Gather { x, out, d, rows } => {
                let list = match rows {
                    Rows::Hidden => inputs.hidden_rows(),
                    Rows::Logits | Rows::Tokens => inputs.logit_rows(),
                };
                kernels.gather(device, x, list, out, [of(rows), d])?;
            }
        }
    }
    Ok(())
}

/// Brings the results back and waits for them.
fn collect(
    program: &mut Program,
    device: &Device,
    counts: Counts,
    out: &mut StepOut,
) -> Result<(), DeviceError> {
    let wanted = |result: Option<StepResult>, rows: u32| {
        result.map_or((Span::EMPTY, 0), |result| (result.span, rows as usize * result.columns as usize))
    };
    let results = [
        (wanted(program.logits, counts.logit_rows), &mut out.logits),
        (wanted(program.hidden, counts.hidden_rows), &mut out.hidden),
        (wanted(program.output, counts.rows), &mut out.handoff),
    ];
    let mut at = 0;
    for ((span, count), _) in &results {
        let bytes = floats(*count);
        let from = span.at_least("a step's results", bytes as u64)?;
        device.download_pinned(from, bytes, &mut program.results_host, at)?;
        at += bytes;
    }
    device.finish()?;
    let mut words = program.results_host.bytes().as_chunks::<4>().0;
    for ((_, count), out) in results {
        let (now, later) = words.split_at(count);
        out.clear();
        out.extend(now.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        words = later;
    }
    Ok(())
}

fn floats(count: usize) -> usize {
    count * 4
}

fn put_floats(host: &mut Pinned, values: &[f32]) {
    for (word, value) in host.bytes_mut().as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *word = value.to_le_bytes();
    }
}
