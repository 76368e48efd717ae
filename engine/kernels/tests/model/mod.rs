//! A model of two layers with weights of many formats, for any backend, and the steps of its sequences.

#![allow(clippy::unwrap_used)]

use atlas_engine_core::DeviceError;
use atlas_engine_core::backend::{
    Backend, Batch, KvSpec, KvType, ProgramId, RawTensor, SharedBytes, StepOut,
};
use atlas_engine_core::program::{
    BLOCK_TOKENS, Buf, Heads, MaxShape, Op, Pairing, Rope, Rows, Segment, WeightId,
};
use atlas_format::TensorType;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

const WIDTH: usize = 256;
const FEED: usize = 512;
const VOCABULARY: usize = 96;
const HEADS: Heads = Heads { query: 4, kv: 2, size: 64 };
const LAYERS: u16 = 2;
const BLOCKS: u32 = 24;
const EPSILON: f32 = 1e-5;

/// Blocks a sequence may have.
const TABLE: usize = 8;
const MAX: MaxShape =
    MaxShape { rows: 48, sequences: 3, logit_rows: 4, hidden_rows: 4, blocks_per_sequence: TABLE };

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A tensor of zeros with so many bytes a row.
pub fn tensor(name: &str, number: u32, rows: usize, columns: usize, row_bytes: usize) -> RawTensor {
    let bytes = SharedBytes::new(Arc::new(vec![0_u8; rows * row_bytes]), 0..rows * row_bytes).unwrap();
    RawTensor { name: name.to_owned(), tensor_type: TensorType::from_number(number), rows, columns, bytes }
}

fn raw(number: u32, rows: usize, columns: usize, bytes: Vec<u8>) -> RawTensor {
    let range = 0..bytes.len();
    let bytes = SharedBytes::new(Arc::new(bytes), range).unwrap();
    RawTensor { name: "w".into(), tensor_type: TensorType::from_number(number), rows, columns, bytes }
}

fn matrix(dtype: GgmlDType, number: u32, rows: usize, columns: usize, seed: u64) -> RawTensor {
    let scale = 1.5 / (columns as f32).sqrt();
    let values: Vec<f32> = values(rows * columns, seed).iter().map(|value| value * scale).collect();
    let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
    let bytes = QTensor::quantize(&tensor, dtype).unwrap().data().unwrap().into_owned();
    raw(number, rows, columns, bytes)
}

fn vector(length: usize, seed: u64) -> RawTensor {
    let bytes = values(length, seed).iter().flat_map(|value| (value * 0.3 + 1.0).to_le_bytes()).collect();
    raw(0, length, 1, bytes)
}

/// One sequence: its prompt, repeated for ever, and the blocks of its cache.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub ids: Vec<u32>,
    pub blocks: Vec<u32>,
    computed: usize,
}

impl Sequence {
    pub fn new(ids: &[u32]) -> Self {
        Self { ids: ids.to_vec(), blocks: Vec::new(), computed: 0 }
    }
}

/// A model on one or two devices.
pub struct Runner<'a> {
    devices: Vec<(&'a mut dyn Backend, ProgramId)>,
    next_block: u32,
}

impl<'a> Runner<'a> {
    /// All of it on one device.
    pub fn whole(device: &'a mut dyn Backend, kv_type: KvType) -> Self {
        let program = compile(device, 0..LAYERS, kv_type);
        Self { devices: vec![(device, program)], next_block: 0 }
    }

    /// The embedding and the first layer on one, the rest and the head on the other.
    pub fn split(lower: &'a mut dyn Backend, upper: &'a mut dyn Backend, kv_type: KvType) -> Self {
        let first = compile(lower, 0..1, kv_type);
        let second = compile(upper, 1..LAYERS, kv_type);
        Self { devices: vec![(lower, first), (upper, second)], next_block: 0 }
    }

    pub fn step(&mut self, chunks: &mut [(&mut Sequence, usize)]) -> StepOut {
        self.try_step(chunks).unwrap()
    }

    pub fn copy(&mut self, pairs: &[(u32, u32)]) {
        for (device, _) in &mut self.devices {
            device.copy_blocks(pairs).unwrap();
        }
    }

    /// Computes so many further tokens of each sequence; logits and hidden states are those of the last rows.
    pub fn try_step(&mut self, chunks: &mut [(&mut Sequence, usize)]) -> Result<StepOut, DeviceError> {
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let (mut seq_start, mut context, mut last) = (vec![0], Vec::new(), Vec::new());
        let mut blocks = vec![u32::MAX; chunks.len() * TABLE];
        for (index, (sequence, count)) in chunks.iter_mut().enumerate() {
            for position in sequence.computed..sequence.computed + *count {
                if position / BLOCK_TOKENS == sequence.blocks.len() {
                    // Not in ascending order, and never block 0 first.
                    sequence.blocks.push((self.next_block * 5 + 3) % BLOCKS);
                    self.next_block += 1;
                }
                ids.push(sequence.ids[position % sequence.ids.len()]);
                positions.push(position as u32);
                let block = sequence.blocks[position / BLOCK_TOKENS];
                slots.push(block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32);
            }
            sequence.computed += *count;
            seq_start.push(ids.len() as u32);
            context.push(sequence.computed as u32);
            last.push(ids.len() as u32 - 1);
            let used = sequence.blocks.len().min(TABLE);
            blocks[index * TABLE..][..used].copy_from_slice(&sequence.blocks[..used]);
        }
        let batch = Batch {
            ids: &ids,
            positions: &positions,
            slots: &slots,
            seq_start: &seq_start,
            context: &context,
            blocks: &blocks,
            blocks_per_sequence: TABLE,
            logit_rows: &last,
            hidden_rows: &last[..1],
        };
        let mut out = StepOut::default();
        let mut handoff = None;
        for (device, program) in &mut self.devices {
            device.run(*program, &batch, handoff.as_deref(), &mut out)?;
            handoff = Some(out.handoff.clone());
        }
        Ok(out)
    }
}

fn compile(device: &mut dyn Backend, layers: Range<u16>, kv_type: KvType) -> ProgramId {
    let mut segment = Segment { layers: layers.clone(), ..Segment::default() };
    let frequencies = (0..32).map(|pair| 10_000_f32.powf(-f32::from(pair as u8) / 32.0)).collect();
    segment.ropes.push(Rope { frequencies, pairing: Pairing::Interleaved });
    let x = segment.buffer(Rows::Tokens, WIDTH);
    if layers.start == 0 {
        let weight = device.load(&[matrix(GgmlDType::Q5_0, 6, VOCABULARY, WIDTH, 1)]).unwrap();
        segment.push(Op::Embed { weight, out: x });
    } else {
        segment.input = Some(x);
    }
    let mut add = None;
    for layer in layers.clone() {
        add = Some(push_layer(device, &mut segment, layer, x, add));
    }
    if layers.end < LAYERS {
        segment.push(Op::Add { x: add.unwrap(), out: x });
        segment.output = Some(x);
    } else {
        push_head(device, &mut segment, x, add);
    }
    let spec = KvSpec { layers, kv_heads: HEADS.kv, head_size: HEADS.size, kv_type, blocks: BLOCKS };
    device.allocate_kv(&spec).unwrap();
    device.compile(&segment, &MAX).unwrap()
}

fn push_layer(device: &mut dyn Backend, segment: &mut Segment, layer: u16, x: Buf, add: Option<Buf>) -> Buf {
    let seed = 100 * u64::from(layer) + 10;
    let mut load = |parts: &[RawTensor]| -> WeightId { device.load(parts).unwrap() };
    let normed = segment.buffer(Rows::Tokens, WIDTH);
    let weight = load(&[vector(WIDTH, seed)]);
    segment.push(Op::Norm { x, add, weight, epsilon: EPSILON, out: normed });
    let qkv = segment.buffer(Rows::Tokens, HEADS.qkv_columns());
    // Three formats in one weight, as Q4_K_M files have them.
    let width = HEADS.kv * HEADS.size;
    let weight = load(&[
        matrix(GgmlDType::Q4K, 12, HEADS.query * HEADS.size, WIDTH, seed + 1),
        matrix(GgmlDType::Q8_0, 8, width, WIDTH, seed + 2),
        matrix(GgmlDType::Q6K, 14, width, WIDTH, seed + 3),
    ]);
    let bias = load(&[vector(HEADS.qkv_columns(), seed + 4)]);
    segment.push(Op::Linear { x: normed, weight, bias: Some(bias), out: qkv });
    let weight = load(&[vector(HEADS.size, seed + 5)]);
    let heads = 0..HEADS.query + HEADS.kv;
    segment.push(Op::HeadNorm { x: qkv, weight, heads, size: HEADS.size, epsilon: EPSILON });
    segment.push(Op::RopeKv { qkv, rope: 0, layer, heads: HEADS });
    let attended = segment.buffer(Rows::Tokens, HEADS.query * HEADS.size);
    segment.push(Op::Attend { qkv, layer, heads: HEADS, scale: 0.125, out: attended });
    let projected = segment.buffer(Rows::Tokens, WIDTH);
    let weight = load(&[matrix(GgmlDType::Q5K, 13, WIDTH, HEADS.query * HEADS.size, seed + 6)]);
    segment.push(Op::Linear { x: attended, weight, bias: None, out: projected });
    let normed = segment.buffer(Rows::Tokens, WIDTH);
    let weight = load(&[vector(WIDTH, seed + 7)]);
    segment.push(Op::Norm { x, add: Some(projected), weight, epsilon: EPSILON, out: normed });
    let gate_up = segment.buffer(Rows::Tokens, 2 * FEED);
    let weight = load(&[
        matrix(GgmlDType::Q4_0, 2, FEED, WIDTH, seed + 8),
        matrix(GgmlDType::F16, 1, FEED, WIDTH, seed + 9),
    ]);
    segment.push(Op::Linear { x: normed, weight, bias: None, out: gate_up });
    let gated = segment.buffer(Rows::Tokens, FEED);
    segment.push(Op::SwiGlu { x: gate_up, out: gated });
    let down = segment.buffer(Rows::Tokens, WIDTH);
    let weight = load(&[matrix(GgmlDType::Q4_1, 3, WIDTH, FEED, seed + 10)]);
    segment.push(Op::Linear { x: gated, weight, bias: None, out: down });
    down
}

fn push_head(device: &mut dyn Backend, segment: &mut Segment, x: Buf, add: Option<Buf>) {
    let normed = segment.buffer(Rows::Tokens, WIDTH);
    let weight = device.load(&[vector(WIDTH, 3)]).unwrap();
    segment.push(Op::Norm { x, add, weight, epsilon: EPSILON, out: normed });
    let (wanted, hidden) = (segment.buffer(Rows::Logits, WIDTH), segment.buffer(Rows::Hidden, WIDTH));
    segment.push(Op::Gather { x: normed, out: wanted });
    segment.push(Op::Gather { x: normed, out: hidden });
    let weight = device.load(&[matrix(GgmlDType::Q6K, 14, VOCABULARY, WIDTH, 4)]).unwrap();
    segment.push(Op::Logits { x: wanted, weight });
    segment.push(Op::Hidden { x: hidden });
}

/// Root mean square of the difference over that of the expected values.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let difference: f64 =
        found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = expected.iter().map(|value| square(f64::from(*value))).sum();
    (difference / size.max(1e-30)).sqrt()
}
