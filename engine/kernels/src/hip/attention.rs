//! Launches of the attention kernels: rotary embedding with the cache's write, decode and prefill.

use super::arena::Span;
use super::device::{Address, Device};
use super::error::HipError;
use super::kernels::{Cache, Kernels};
use super::products::Blocks;

/// Positions that one workgroup of decode attention reads.
pub const PARTITION: u32 = atlas_engine_core::program::PARTITION_TOKENS as u32;

/// One layer's attention, as the kernels see it.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Layer {
    pub cache: Cache,
    /// Keys and values of the layer, `[blocks, kv heads]` heads of 16 positions.
    pub keys: Span,
    pub values: Span,
    pub blocks: u32,
    pub query_heads: u32,
    pub kv_heads: u32,
    pub size: u32,
}

impl Layer {
    fn columns(&self) -> u32 {
        (self.query_heads + 2 * self.kv_heads) * self.size
    }

    fn caches(&self) -> Result<(Address, Address), HipError> {
        let head = self.cache.head_bytes(self.size as usize) as u64;
        let bytes = head * u64::from(self.blocks) * u64::from(self.kv_heads);
        Ok((self.keys.at_least("cached keys", bytes)?, self.values.at_least("cached values", bytes)?))
    }
}

/// Where each row stands; the contents are the caller's to check.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Rows {
    /// `[T]`: positions, and the sequence of each.
    pub positions: Span,
    pub sequences: Span,
    /// `[S, table_stride]`.
    pub tables: Span,
    pub table_stride: u32,
    /// T.
    pub count: u32,
}

#[repr(C)]
struct RopeKvArgs {
    qkv: Address,
    angles: Address,
    slots: Address,
    keys: Address,
    values: Address,
    query_heads: u32,
    kv_heads: u32,
    size: u32,
    pairs: u32,
    halves: u32,
    zero: u32,
}

#[repr(C)]
struct AttendArgs {
    qkv: Address,
    keys: Address,
    values: Address,
    positions: Address,
    sequences: Address,
    tables: Address,
    rows: Address,
    partials: Address,
    columns: u32,
    query_heads: u32,
    kv_heads: u32,
    size: u32,
    table_stride: u32,
    partitions: u32,
    scale: f32,
    zero: u32,
}

#[repr(C)]
struct MergeArgs {
    partials: Address,
    positions: Address,
    rows: Address,
    out: Address,
    q: Address,
    scales: Address,
    query_heads: u32,
    size: u32,
    partitions: u32,
    zero: u32,
}

#[repr(C)]
struct PrefillArgs {
    qkv: Address,
    keys: Address,
    values: Address,
    positions: Address,
    sequences: Address,
    tables: Address,
    tiles: Address,
    out: Address,
    columns: u32,
    query_heads: u32,
    kv_heads: u32,
    table_stride: u32,
    scale: f32,
    zero: u32,
}

/// Operands of [`Kernels::rope_kv`].
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct RopeKv {
    pub qkv: Span,
    /// `[T, pairs]` of cosine and sine.
    pub angles: Span,
    /// `[T]`.
    pub slots: Span,
    pub pairs: u32,
    pub halves: bool,
    pub rows: u32,
}

/// Operands of [`Kernels::attend`].
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Attend {
    pub qkv: Span,
    /// `[count]`: the rows that it is for.
    pub list: Span,
    pub count: u32,
    /// `[count, query heads, partitions, size + 2]`.
    pub partials: Span,
    /// Partitions that partials have room for, and those that this step needs.
    pub partitions: u32,
    pub used: u32,
    pub scale: f32,
    /// `[T, query heads * size]`.
    pub out: Span,
    pub blocks: Option<Blocks>,
}

/// Operands of [`Kernels::prefill`].
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Prefill {
    pub qkv: Span,
    /// `[count]{first row, rows}`, at most 16 rows of one sequence each.
    pub tiles: Span,
    pub count: u32,
    pub scale: f32,
    /// `[T, query heads * size]`.
    pub out: Span,
}

fn words(count: u32) -> u64 {
    u64::from(count) * 4
}

impl Kernels {
    /// Turns queries and keys in place and writes keys and values to the cache; the slots are inside it.
    ///
    /// # Errors
    /// An operand is too small, or the launch fails.
    pub fn rope_kv(&self, device: &Device, layer: Layer, operands: RopeKv) -> Result<(), HipError> {
        let RopeKv { qkv, angles, slots, pairs, halves, rows } = operands;
        let (keys, values) = layer.caches()?;
        let needed = u64::from(layer.size);
        if layer.size > 256 || pairs * 2 > layer.size {
            return Err(HipError::Bounds { what: "a head", found: 256, needed });
        }
        let arguments = RopeKvArgs {
            qkv: qkv.at_least("queries, keys and values", words(rows) * u64::from(layer.columns()))?,
            angles: angles.at_least("angles", words(rows) * u64::from(pairs) * 2)?,
            slots: slots.at_least("slots", words(rows))?,
            keys,
            values,
            query_heads: layer.query_heads,
            kv_heads: layer.kv_heads,
            size: layer.size,
            pairs,
            halves: halves.into(),
            zero: 0,
        };
        let grid = [layer.query_heads + 2 * layer.kv_heads, rows, 1];
        // SAFETY: the operands have the kernel's shapes (rope_kv.hip).
        unsafe { device.launch(self.attention(layer.cache).rope_kv, grid, &arguments) }
    }

    /// Attention of single rows, in partitions.
    ///
    /// # Errors
    /// An operand is too small, or a launch fails.
    pub fn attend(
        &self,
        device: &Device,
        layer: Layer,
        rows: Rows,
        operands: Attend,
    ) -> Result<(), HipError> {
        let Attend { qkv, list, count, partials, partitions, used, scale, out, blocks } = operands;
        let (keys, values) = layer.caches()?;
        let Layer { query_heads, kv_heads, size, .. } = layer;
        let part = u64::from(query_heads) * u64::from(partitions) * u64::from(size + 2);
        let partials = partials.at_least("partial sums", words(count) * part)?;
        let positions = rows.positions.at_least("positions", words(rows.count))?;
        let list = list.at_least("rows to attend", words(count))?;
        let kernels = self.attention(layer.cache);
        let (kernel, chunks) = kernels.attend_for(query_heads / kv_heads);
        let arguments = AttendArgs {
            qkv: qkv.at_least("queries", words(rows.count) * u64::from(layer.columns()))?,
            keys,
            values,
            positions,
            sequences: rows.sequences.at_least("sequences", words(rows.count))?,
            tables: rows.tables.at_least("block tables", words(rows.table_stride))?,
            rows: list,
            partials,
            columns: layer.columns(),
            query_heads,
            kv_heads,
            size,
            table_stride: rows.table_stride,
            partitions,
            scale,
            zero: 0,
        };
        // SAFETY: the operands have the kernels' shapes (attend.hip).
        unsafe { device.launch(kernel, [used.min(partitions), kv_heads * chunks, count], &arguments)? };
        let width = u64::from(query_heads) * u64::from(size);
        let (q, scales) = match blocks {
            Some(Blocks { elements, scales }) => (
                elements.at_least("activation blocks", u64::from(rows.count) * width)?,
                scales.at_least("activation scales", u64::from(rows.count) * width / 32 * 8)?,
            ),
            None => (Address::NULL, Address::NULL),
        };
        let arguments = MergeArgs {
            partials,
            positions,
            rows: list,
            out: out.at_least("attended rows", words(rows.count) * width)?,
            q,
            scales,
            query_heads,
            size,
            partitions,
            zero: 0,
        };
        // SAFETY: as above.
        unsafe { device.launch(kernels.merge, [query_heads, count, 1], &arguments) }
    }

    /// Attention of tiles of rows.
    ///
    /// # Errors
    /// An operand is too small, the head's size has no kernel, or the launch fails.
    pub fn prefill(
        &self,
        device: &Device,
        layer: Layer,
        rows: Rows,
        operands: Prefill,
    ) -> Result<(), HipError> {
        let Prefill { qkv, tiles, count, scale, out } = operands;
        let (keys, values) = layer.caches()?;
        let kernels = self.attention(layer.cache).prefill;
        let kernel = kernels.iter().find(|(size, _)| *size == layer.size as usize);
        let unknown = HipError::Bounds { what: "a head", found: layer.size.into(), needed: 256 };
        let &(_, kernel) = kernel.ok_or(unknown)?;
        let width = u64::from(layer.query_heads) * u64::from(layer.size);
        let arguments = PrefillArgs {
            qkv: qkv.at_least("queries", words(rows.count) * u64::from(layer.columns()))?,
            keys,
            values,
            positions: rows.positions.at_least("positions", words(rows.count))?,
            sequences: rows.sequences.at_least("sequences", words(rows.count))?,
            tables: rows.tables.at_least("block tables", words(rows.table_stride))?,
            tiles: tiles.at_least("tiles", words(count) * 2)?,
            out: out.at_least("attended rows", words(rows.count) * width)?,
            columns: layer.columns(),
            query_heads: layer.query_heads,
            kv_heads: layer.kv_heads,
            table_stride: rows.table_stride,
            scale,
            zero: 0,
        };
        // Two waves share a head of more than 128 elements.
        let heads = if layer.size > 128 { 2 } else { 4 };
        let grid = [count, layer.query_heads.div_ceil(heads), 1];
        // SAFETY: the operands have the kernel's shapes (prefill.hip).
        unsafe { device.launch(kernel, grid, &arguments) }
    }
}
