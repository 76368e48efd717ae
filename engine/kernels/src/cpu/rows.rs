//! Work on the rows of a buffer, shared out over the compute threads.

use crate::pool::Pool;

/// Elements below which waking threads costs more than it saves.
const SMALL: usize = 1 << 13;
/// Items a thread.
const ITEMS_PER_THREAD: usize = 2;

/// The rows of a buffer, written to by several threads.
struct Buffer(*mut f32);

// SAFETY: each row is handed to one call alone, and nobody reads before all are done.
unsafe impl Sync for Buffer {}

/// Calls `work` once with each row of `out` and its index, in any order and on any thread.
///
/// # Panics
/// `out` is no whole number of rows, or `work` panics.
pub(crate) fn for_rows(
    pool: &Pool,
    out: &mut [f32],
    columns: usize,
    work: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    assert!(columns > 0 && out.len().is_multiple_of(columns), "rows of {columns} in {}", out.len());
    let rows = out.len() / columns;
    if out.len() < SMALL {
        return out.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| work(row, out));
    }
    let buffer = Buffer(out.as_mut_ptr());
    let height = rows.div_ceil(pool.threads() * ITEMS_PER_THREAD).max(1);
    pool.run(rows.div_ceil(height), &|item| {
        let buffer = &buffer;
        for row in item * height..((item + 1) * height).min(rows) {
            // SAFETY: the row lies inside `out`, which outlives this call, and belongs to this item alone.
            let out = unsafe { std::slice::from_raw_parts_mut(buffer.0.add(row * columns), columns) };
            work(row, out);
        }
    });
}

/// What is done with a row of each of two buffers.
type OnTwo<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// The same with each row of two buffers.
///
/// # Panics
/// The buffers are no whole number of rows, differ in length, or `work` panics.
pub(crate) fn for_rows_of_two(
    pool: &Pool,
    first: &mut [f32],
    second: &mut [f32],
    columns: usize,
    work: &OnTwo<'_>,
) {
    assert_eq!(first.len(), second.len(), "rows of both buffers");
    let buffer = Buffer(first.as_mut_ptr());
    for_rows(pool, second, columns, &|row, second| {
        let buffer = &buffer;
        // SAFETY: the row lies inside `first`, which is as long as `second` and outlives this call, and belongs to
        // this call alone.
        let first = unsafe { std::slice::from_raw_parts_mut(buffer.0.add(row * columns), columns) };
        work(row, first, second);
    });
}

/// Three ranges of one buffer, the last two to be written.
///
/// # Panics
/// They overlap or lie outside: a memory plan never lets buffers that live together do so.
pub(crate) fn three(
    scratch: &mut [f32],
    read: std::ops::Range<usize>,
    first: std::ops::Range<usize>,
    second: std::ops::Range<usize>,
) -> (&[f32], &mut [f32], &mut [f32]) {
    let apart = |a: &std::ops::Range<usize>, b: &std::ops::Range<usize>| {
        a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
    };
    assert!(
        apart(&read, &first) && apart(&read, &second) && apart(&first, &second),
        "buffers {read:?}, {first:?} and {second:?} overlap"
    );
    let length = scratch.len();
    assert!([&read, &first, &second].iter().all(|range| range.start <= range.end && range.end <= length));
    let at = scratch.as_mut_ptr();
    // SAFETY: three ranges inside the buffer that do not overlap.
    unsafe {
        (
            std::slice::from_raw_parts(at.add(read.start), read.len()),
            std::slice::from_raw_parts_mut(at.add(first.start), first.len()),
            std::slice::from_raw_parts_mut(at.add(second.start), second.len()),
        )
    }
}

/// Two ranges of one buffer, the second to be written.
///
/// # Panics
/// They overlap: a memory plan never lets buffers that live together do so.
pub(crate) fn two(
    scratch: &mut [f32],
    read: std::ops::Range<usize>,
    write: std::ops::Range<usize>,
) -> (&[f32], &mut [f32]) {
    if read.end <= write.start {
        let (front, back) = scratch.split_at_mut(write.start);
        (&front[read], &mut back[..write.end - write.start])
    } else {
        assert!(write.end <= read.start, "buffers {read:?} and {write:?} overlap");
        let (front, back) = scratch.split_at_mut(read.start);
        (&back[..read.end - read.start], &mut front[write])
    }
}
