//! A small model of random weights, against its definition and against itself in other company.

use super::*;
use atlas_engine_core::backend::SharedBytes;
use atlas_engine_core::program::{BLOCK_TOKENS, Buf, Heads, Op, Pairing, Rope, Rows};
use std::ops::Range;
use std::sync::Arc;

const HEADS: Heads = Heads { query: 4, kv: 2, size: 32 };
const WIDTH: usize = 40;
const FEED: usize = 48;
const VOCABULARY: usize = 50;
const LAYERS: u16 = 2;
const EPSILON: f32 = 1e-5;
const BLOCKS: u32 = 24;
const TABLE: usize = 8;

/// Numbers from -1 to 1 that look random.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensor(rows: usize, columns: usize, values: &[f32]) -> RawTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let bytes = SharedBytes::new(Arc::new(bytes), 0..rows * columns * 4).unwrap();
    RawTensor { name: "w".into(), tensor_type: TensorType::F32, rows, columns, bytes }
}

/// One layer's weights, as the definition uses them.
struct Layer {
    norm: Vec<f32>,
    qkv: Vec<f32>,
    bias: Vec<f32>,
    head_norm: Vec<f32>,
    output: Vec<f32>,
    feed_norm: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
}

struct Model {
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    rope: Rope,
}

impl Model {
    fn new() -> Self {
        let scaled =
            |count, seed, scale: f32| values(count, seed).iter().map(|value| value * scale).collect();
        let layers = (0..u64::from(LAYERS)).map(|layer| Layer {
            norm: values(WIDTH, 10 * layer + 100),
            qkv: scaled(HEADS.qkv_columns() * WIDTH, 10 * layer + 101, 0.4),
            bias: values(HEADS.qkv_columns(), 10 * layer + 102),
            head_norm: values(HEADS.size, 10 * layer + 107),
            output: scaled(WIDTH * HEADS.query * HEADS.size, 10 * layer + 103, 0.2),
            feed_norm: values(WIDTH, 10 * layer + 104),
            gate_up: scaled(2 * FEED * WIDTH, 10 * layer + 105, 0.3),
            down: scaled(WIDTH * FEED, 10 * layer + 106, 0.3),
        });
        let frequencies = (0..12).map(|pair| 10_000_f32.powf(-f32::from(pair as u8) / 12.0)).collect();
        Self {
            layers: layers.collect(),
            embedding: values(VOCABULARY * WIDTH, 1),
            norm: values(WIDTH, 2),
            rope: Rope { frequencies, pairing: Pairing::Interleaved },
        }
    }

    /// Logits of every position, in f64 and without a cache.
    fn logits(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let product = |w: &[f32], x: &[f64]| -> Vec<f64> {
            w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
        };
        let norm = |x: &[f64], w: &[f32]| -> Vec<f64> {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter().zip(w).map(|(x, w)| x / (mean + f64::from(EPSILON)).sqrt() * f64::from(*w)).collect()
        };
        let row = |id: &u32| &self.embedding[*id as usize * WIDTH..][..WIDTH];
        let mut stream: Vec<Vec<f64>> =
            ids.iter().map(|id| row(id).iter().map(|x| f64::from(*x)).collect()).collect();
        for layer in &self.layers {
            let mut cached: Vec<Vec<f64>> = Vec::new();
            for (position, x) in stream.iter_mut().enumerate() {
                let mut qkv = product(&layer.qkv, &norm(x, &layer.norm));
                qkv.iter_mut().zip(&layer.bias).for_each(|(x, bias)| *x += f64::from(*bias));
                for head in qkv[..(HEADS.query + HEADS.kv) * HEADS.size].chunks_mut(HEADS.size) {
                    head.copy_from_slice(&norm(head, &layer.head_norm));
                    for (pair, frequency) in self.rope.frequencies.iter().enumerate() {
                        let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
                        let [a, b] = [head[2 * pair], head[2 * pair + 1]];
                        (head[2 * pair], head[2 * pair + 1]) = (a * cos - b * sin, a * sin + b * cos);
                    }
                }
                cached.push(qkv.clone());
                let mut attended = Vec::new();
                for head in 0..HEADS.query {
                    let part = |row: &[f64], head: usize| row[head * HEADS.size..][..HEADS.size].to_vec();
                    let kv_head = head / HEADS.group();
                    let query = part(&qkv, head);
                    let scores: Vec<f64> = cached
                        .iter()
                        .map(|row| {
                            let key = part(row, HEADS.query + kv_head);
                            (query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * 0.2).exp()
                        })
                        .collect();
                    let total: f64 = scores.iter().sum();
                    for at in 0..HEADS.size {
                        let value = |row: &Vec<f64>| part(row, HEADS.query + HEADS.kv + kv_head)[at];
                        let sum: f64 = scores.iter().zip(&cached).map(|(s, row)| s * value(row)).sum();
                        attended.push(sum / total);
                    }
                }
                let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                add(x, product(&layer.output, &attended));
                let gate_up = product(&layer.gate_up, &norm(x, &layer.feed_norm));
                let (gate, up) = gate_up.split_at(FEED);
                let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(x, product(&layer.down, &gated));
            }
        }
        stream.iter().map(|x| product(&self.embedding, &norm(x, &self.norm))).collect()
    }

    /// The layers' ops from a residual stream `x`; the last feed-forward is still to be added to it.
    fn ops(
        &self,
        device: &mut CpuBackend,
        layers: Range<u16>,
        segment: &mut Segment,
        x: Buf,
        mut add: Option<Buf>,
    ) -> Option<Buf> {
        let rope = segment.ropes.len();
        segment.ropes.push(self.rope.clone());
        let mut load = |parts: &[RawTensor]| device.load(parts).unwrap();
        let epsilon = EPSILON;
        for layer in layers {
            let Layer { norm, qkv, bias, head_norm, output, feed_norm, gate_up, down } =
                &self.layers[usize::from(layer)];
            let [normed, qkv_out, attended, projected, normed_2, gate_up_out, gated, fed] =
                [WIDTH, HEADS.qkv_columns(), HEADS.query * HEADS.size, WIDTH, WIDTH, 2 * FEED, FEED, WIDTH]
                    .map(|columns| segment.buffer(Rows::Tokens, columns));
            let query = HEADS.query * HEADS.size;
            let (q, kv) = qkv.split_at(query * WIDTH);
            let qkv = [tensor(query, WIDTH, q), tensor(2 * HEADS.kv * HEADS.size, WIDTH, kv)];
            let weight = load(&[tensor(WIDTH, 1, norm)]);
            segment.push(Op::Norm { x, add, weight, epsilon, out: normed });
            let bias = Some(load(&[tensor(HEADS.qkv_columns(), 1, bias)]));
            segment.push(Op::Linear { x: normed, weight: load(&qkv), bias, out: qkv_out });
            let weight = load(&[tensor(HEADS.size, 1, head_norm)]);
            let heads = 0..HEADS.query + HEADS.kv;
            segment.push(Op::HeadNorm { x: qkv_out, weight, heads, size: HEADS.size, epsilon });
            segment.push(Op::RopeKv { qkv: qkv_out, rope, layer, heads: HEADS });
            segment.push(Op::Attend { qkv: qkv_out, layer, heads: HEADS, scale: 0.2, out: attended });
            let weight = load(&[tensor(WIDTH, query, output)]);
            segment.push(Op::Linear { x: attended, weight, bias: None, out: projected });
            let weight = load(&[tensor(WIDTH, 1, feed_norm)]);
            segment.push(Op::Norm { x, add: Some(projected), weight, epsilon, out: normed_2 });
            let weight = load(&[tensor(2 * FEED, WIDTH, gate_up)]);
            segment.push(Op::Linear { x: normed_2, weight, bias: None, out: gate_up_out });
            segment.push(Op::SwiGlu { x: gate_up_out, out: gated });
            let weight = load(&[tensor(WIDTH, FEED, down)]);
            segment.push(Op::Linear { x: gated, weight, bias: None, out: fed });
            add = Some(fed);
        }
        add
    }

    fn head(&self, device: &mut CpuBackend, segment: &mut Segment, x: Buf, add: Option<Buf>) {
        if let Some(add) = add {
            segment.push(Op::Add { x: add, out: x });
        }
        let [wanted, normed] = [WIDTH, WIDTH].map(|columns| segment.buffer(Rows::Logits, columns));
        segment.push(Op::Gather { x, out: wanted });
        let weight = device.load(&[tensor(WIDTH, 1, &self.norm)]).unwrap();
        segment.push(Op::Norm { x: wanted, add: None, weight, epsilon: EPSILON, out: normed });
        let weight = device.load(&[tensor(VOCABULARY, WIDTH, &self.embedding)]).unwrap();
        segment.push(Op::Logits { x: normed, weight });
    }

    fn embed(&self, device: &mut CpuBackend, segment: &mut Segment) -> Buf {
        let x = segment.buffer(Rows::Tokens, WIDTH);
        let weight = device.load(&[tensor(VOCABULARY, WIDTH, &self.embedding)]).unwrap();
        segment.push(Op::Embed { weight, out: x });
        x
    }
}

const MAX: MaxShape =
    MaxShape { rows: 128, sequences: 4, logit_rows: 128, hidden_rows: 0, blocks_per_sequence: TABLE };

fn device(threads: usize, kv_type: KvType) -> CpuBackend {
    let mut device = CpuBackend::new(threads).unwrap();
    let spec =
        KvSpec { layers: 0..LAYERS, kv_heads: HEADS.kv, head_size: HEADS.size, kv_type, blocks: BLOCKS };
    device.allocate_kv(&spec).unwrap();
    device
}

/// The whole model as one program.
fn whole(model: &Model, threads: usize, kv_type: KvType) -> (CpuBackend, ProgramId) {
    let mut device = device(threads, kv_type);
    let mut segment = Segment { layers: 0..LAYERS, ..Segment::default() };
    let x = model.embed(&mut device, &mut segment);
    let add = model.ops(&mut device, 0..LAYERS, &mut segment, x, None);
    model.head(&mut device, &mut segment, x, add);
    let program = device.compile(&segment, &MAX).unwrap();
    (device, program)
}

/// Some of a sequence's tokens, in a step.
#[derive(Clone)]
struct Chunk<'a> {
    ids: &'a [u32],
    start: usize,
    table: &'a [u32; TABLE],
}

/// A step's arrays, every row's logits wanted.
#[derive(Default)]
struct Arrays {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    seq_start: Vec<u32>,
    context: Vec<u32>,
    blocks: Vec<u32>,
    logit_rows: Vec<u32>,
}

impl Arrays {
    fn new(chunks: &[Chunk<'_>]) -> Self {
        let mut arrays = Self { seq_start: vec![0], ..Self::default() };
        for chunk in chunks {
            for (offset, id) in chunk.ids.iter().enumerate() {
                let position = chunk.start + offset;
                let block = chunk.table[position / BLOCK_TOKENS];
                arrays.logit_rows.push(arrays.ids.len() as u32);
                arrays.ids.push(*id);
                arrays.positions.push(position as u32);
                arrays.slots.push(block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32);
            }
            arrays.seq_start.push(arrays.ids.len() as u32);
            arrays.context.push((chunk.start + chunk.ids.len()) as u32);
            arrays.blocks.extend_from_slice(chunk.table);
        }
        arrays
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            ids: &self.ids,
            positions: &self.positions,
            slots: &self.slots,
            seq_start: &self.seq_start,
            context: &self.context,
            blocks: &self.blocks,
            blocks_per_sequence: TABLE,
            logit_rows: &self.logit_rows,
            hidden_rows: &[],
        }
    }
}

fn run(device: &mut CpuBackend, program: ProgramId, chunks: &[Chunk<'_>]) -> Vec<Vec<f32>> {
    let mut out = StepOut::default();
    device.run(program, &Arrays::new(chunks).batch(), None, &mut out).unwrap();
    out.logits.chunks(VOCABULARY).map(<[f32]>::to_vec).collect()
}

fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|index| (index * 7 + seed * 13 + index * index) % VOCABULARY as u32).collect()
}

const FRONT: [u32; TABLE] = [0, 1, 2, 3, 4, 5, 6, 7];
const MIXED: [u32; TABLE] = [20, 3, 17, 9, 23, 1, 12, 8];
const OTHER: [u32; TABLE] = [2, 19, 4, 22, 7, 0, 5, 11];

#[test]
fn a_program_computes_its_definition() {
    let model = Model::new();
    let ids = ids(100, 1);
    let exact = model.logits(&ids);
    for (kv_type, tolerance) in [(KvType::F32, 2e-4), (KvType::F16, 5e-3), (KvType::Q8_0, 0.1)] {
        let (mut device, program) = whole(&model, 2, kv_type);
        let logits = run(&mut device, program, &[Chunk { ids: &ids, start: 0, table: &MIXED }]);
        for (position, (logits, exact)) in logits.iter().zip(&exact).enumerate() {
            for (logit, exact) in logits.iter().zip(exact) {
                let error = (f64::from(*logit) - exact).abs();
                assert!(error < tolerance * (1.0 + exact.abs()), "{kv_type:?} {position}: {logit} {exact}");
            }
        }
    }
}

#[test]
fn a_row_is_the_same_in_every_company() {
    let model = Model::new();
    let (first, second) = (ids(100, 1), ids(90, 2));
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let (mut alone, program) = whole(&model, 1, kv_type);
        let expected: Vec<Vec<f32>> = (0..first.len())
            .flat_map(|at| {
                run(&mut alone, program, &[Chunk { ids: &first[at..at + 1], start: at, table: &FRONT }])
            })
            .collect();
        let (mut shared, program) = whole(&model, 3, kv_type);
        let mut found = Vec::new();
        for (a, b) in [(0..37, 0..1), (37..38, 1..80), (38..100, 80..90)] {
            let b = Chunk { ids: &second[b.clone()], start: b.start, table: &OTHER };
            let rows = b.ids.len();
            let a = Chunk { ids: &first[a.clone()], start: a.start, table: &MIXED };
            found.extend(run(&mut shared, program, &[b, a]).split_off(rows));
            // Some of the weights are repacked by the next step, and not all of them.
            assert!(shared.settle().unwrap() > 0);
        }
        assert!(found == expected, "{kv_type:?}");
        while shared.settle().unwrap() > 0 {}
        let again = run(&mut shared, program, &[Chunk { ids: &first, start: 0, table: &MIXED }]);
        assert!(again == expected, "{kv_type:?} after everything is repacked");
    }
}

#[test]
fn a_copied_block_serves_like_its_original() {
    let model = Model::new();
    let (mut device, program) = whole(&model, 2, KvType::F16);
    let ids = ids(40, 1);
    run(&mut device, program, &[Chunk { ids: &ids[..30], start: 0, table: &FRONT }]);
    let mut table = FRONT;
    table[1] = 21;
    device.copy_blocks(&[(1, 21)]).unwrap();
    let copied = run(&mut device, program, &[Chunk { ids: &ids[30..], start: 30, table: &table }]);
    let original = run(&mut device, program, &[Chunk { ids: &ids[30..], start: 30, table: &FRONT }]);
    assert!(copied == original);
}

#[test]
fn two_segments_with_a_handoff_are_one_program() {
    let model = Model::new();
    let ids = ids(20, 3);
    let chunks = [Chunk { ids: &ids, start: 0, table: &MIXED }];
    let (mut one, program) = whole(&model, 2, KvType::F32);
    let expected = run(&mut one, program, &chunks);

    let mut device = device(2, KvType::F32);
    let mut front = Segment { layers: 0..1, ..Segment::default() };
    let x = model.embed(&mut device, &mut front);
    let add = model.ops(&mut device, 0..1, &mut front, x, None);
    front.push(Op::Add { x: add.unwrap(), out: x });
    front.output = Some(x);
    let mut back = Segment { layers: 1..2, ..Segment::default() };
    let x = back.buffer(Rows::Tokens, WIDTH);
    back.input = Some(x);
    let add = model.ops(&mut device, 1..2, &mut back, x, None);
    model.head(&mut device, &mut back, x, add);
    let programs = [front, back].map(|segment| device.compile(&segment, &MAX).unwrap());
    let arrays = Arrays::new(&chunks);
    let (mut handoff, mut out) = (StepOut::default(), StepOut::default());
    device.run(programs[0], &arrays.batch(), None, &mut handoff).unwrap();
    assert!(handoff.logits.is_empty());
    device.run(programs[1], &arrays.batch(), Some(&handoff.handoff), &mut out).unwrap();
    assert!(out.logits == expected.concat());
}

#[test]
fn what_does_not_fit_is_refused_before_it_runs() {
    let model = Model::new();
    let (mut device, program) = whole(&model, 1, KvType::F16);
    let ids = ids(20, 1);
    let good = || Arrays::new(&[Chunk { ids: &ids, start: 0, table: &FRONT }]);
    type Spoil = fn(&mut Arrays);
    let cases: [(&str, Spoil); 8] = [
        ("positions", |arrays| arrays.positions.truncate(19)),
        ("a token id", |arrays| arrays.ids[3] = VOCABULARY as u32),
        ("a slot", |arrays| arrays.slots[3] = BLOCKS * BLOCK_TOKENS as u32),
        ("a block", |arrays| arrays.blocks[1] = BLOCKS),
        ("a context", |arrays| arrays.context[0] = 1000),
        ("a position", |arrays| arrays.positions[3] = 500),
        ("a wanted row", |arrays| arrays.logit_rows[0] = 20),
        ("the last sequence's end", |arrays| arrays.seq_start[1] = 19),
    ];
    for (expected, spoil) in cases {
        let mut arrays = good();
        spoil(&mut arrays);
        let error = device.run(program, &arrays.batch(), None, &mut StepOut::default()).unwrap_err();
        assert!(matches!(error, DeviceError::Shape { what, .. } if what == expected), "{expected}: {error}");
    }
    let mut segment = Segment::default();
    let (x, y) = (segment.buffer(Rows::Tokens, WIDTH), segment.buffer(Rows::Tokens, 2 * WIDTH));
    segment.push(Op::SwiGlu { x: y, out: x });
    assert!(device.compile(&segment, &MAX).is_err(), "reads what nobody wrote");
    let unknown = RawTensor { tensor_type: TensorType::from_number(39), ..tensor(1, 32, &[0.0; 32]) };
    assert!(matches!(device.load(&[unknown]), Err(DeviceError::TensorType { .. })));
    let short = RawTensor { rows: 2, ..tensor(1, 32, &[0.0; 32]) };
    assert!(matches!(device.load(&[short]), Err(DeviceError::Shape { what: "bytes of a weight", .. })));
}
