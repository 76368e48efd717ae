//! A cursor over a prefix of a file: little-endian reads that never run past the end.

/// Why a read stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The prefix ends before the value does; this many bytes from the start of the file are needed at least.
    NeedMore(u64),
    /// The bytes are wrong, however many follow.
    Bad(crate::gguf::GgufError),
}

impl From<crate::gguf::GgufError> for Stop {
    fn from(error: crate::gguf::GgufError) -> Self {
        Self::Bad(error)
    }
}

/// Reads values one after another from a prefix of a file.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.at as u64
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: u64) -> Result<&'a [u8], Stop> {
        let end = self.offset().checked_add(count).ok_or(Stop::NeedMore(u64::MAX))?;
        let taken = usize::try_from(end).ok().and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Stop::NeedMore(end))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Stop> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Stop> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Stop> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn f32(&mut self) -> Result<f32, Stop> {
        self.array().map(f32::from_le_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, Stop> {
        self.array().map(f64::from_le_bytes)
    }
}
