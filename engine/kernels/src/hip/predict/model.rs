//! The weights of a Llama-like model in llama.cpp's mixtures of formats, without a file.

/// How a weight is stored; the few formats that the mixtures use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Bytes of so many weights.
    pub(super) fn bytes(self, weights: u32) -> f64 {
        let (elements, bytes) = match self {
            Self::Q4_0 => (32.0, 18.0),
            Self::Q4K => (256.0, 144.0),
            Self::Q5K => (256.0, 176.0),
            Self::Q6K => (256.0, 210.0),
        };
        f64::from(weights) * bytes / elements
    }
}

/// A matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Weight {
    pub(super) format: Format,
    pub(super) rows: u32,
    pub(super) columns: u32,
}

impl Weight {
    pub(super) fn bytes(&self) -> f64 {
        f64::from(self.rows) * self.format.bytes(self.columns)
    }
}

/// llama.cpp's mixtures: which tensor has which format (its `llama_tensor_get_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Q4_0, and the head in Q6_K.
    Q4_0,
    /// Q4_K, with values and down projections of every second layer or so, and the head, in Q6_K.
    Q4KM,
    /// The same with Q5_K for Q4_K.
    Q5KM,
}

/// The numbers of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama {
    /// Its name, without the mixture.
    pub name: &'static str,
    /// The formats of its weights.
    pub mix: Mix,
    /// Layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the feed-forward part.
    pub feed_forward: u32,
    /// Query heads.
    pub heads: u32,
    /// Key heads.
    pub kv_heads: u32,
    /// Elements a head.
    pub head_size: u32,
    /// Rows of embedding and head.
    pub vocabulary: u32,
}

impl Llama {
    /// Llama 2 and CodeLlama 13B.
    pub const B13: Self = Self {
        name: "CodeLlama 13B",
        mix: Mix::Q4KM,
        layers: 40,
        hidden: 5120,
        feed_forward: 13_824,
        heads: 40,
        kv_heads: 40,
        head_size: 128,
        vocabulary: 32_016,
    };
    /// CodeLlama 34B.
    pub const B34: Self = Self {
        name: "CodeLlama 34B",
        layers: 48,
        hidden: 8192,
        feed_forward: 22_016,
        heads: 64,
        kv_heads: 8,
        vocabulary: 32_000,
        ..Self::B13
    };
    /// Llama 3.1 70B.
    pub const B70: Self =
        Self { name: "Llama 3.1 70B", layers: 80, feed_forward: 28_672, vocabulary: 128_256, ..Self::B34 };
    /// Llama 7B.
    pub const B7: Self = Self {
        name: "Llama 7B",
        layers: 32,
        hidden: 4096,
        feed_forward: 11_008,
        heads: 32,
        kv_heads: 32,
        vocabulary: 32_000,
        ..Self::B13
    };
    /// Mistral 7B.
    pub const MISTRAL: Self = Self { name: "Mistral 7B", feed_forward: 14_336, kv_heads: 8, ..Self::B7 };
    /// Llama 3.1 8B.
    pub const B8: Self = Self { name: "Llama 3.1 8B", vocabulary: 128_256, ..Self::MISTRAL };
    /// Qwen 2.5 7B.
    pub const QWEN7: Self = Self {
        name: "Qwen 2.5 7B",
        layers: 28,
        hidden: 3584,
        feed_forward: 18_944,
        heads: 28,
        kv_heads: 4,
        vocabulary: 152_064,
        ..Self::B13
    };

    /// The same in another mixture.
    #[must_use]
    pub const fn with(self, mix: Mix) -> Self {
        Self { mix, ..self }
    }

    fn base(&self) -> Format {
        match self.mix {
            Mix::Q4_0 => Format::Q4_0,
            Mix::Q4KM => Format::Q4K,
            Mix::Q5KM => Format::Q5K,
        }
    }

    /// The format of values and down projections.
    fn finer(&self, layer: u32) -> Format {
        let n = self.layers;
        let more = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
        if more && self.mix != Mix::Q4_0 { Format::Q6K } else { self.base() }
    }

    pub(super) fn qkv_rows(&self) -> u32 {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    /// Queries, keys and values, joined where their formats are the same.
    pub(super) fn qkv(&self, layer: u32) -> Vec<Weight> {
        let (finer, base) = (self.finer(layer), self.base());
        let weight = |format, rows| Weight { format, rows, columns: self.hidden };
        let values = self.kv_heads * self.head_size;
        if finer == base {
            vec![weight(base, self.qkv_rows())]
        } else {
            vec![weight(base, self.qkv_rows() - values), weight(finer, values)]
        }
    }

    pub(super) fn output(&self) -> Weight {
        Weight { format: self.base(), rows: self.hidden, columns: self.heads * self.head_size }
    }

    pub(super) fn gate_up(&self) -> Weight {
        Weight { format: self.base(), rows: 2 * self.feed_forward, columns: self.hidden }
    }

    pub(super) fn down(&self, layer: u32) -> Weight {
        Weight { format: self.finer(layer), rows: self.hidden, columns: self.feed_forward }
    }

    pub(super) fn head(&self) -> Weight {
        Weight { format: Format::Q6K, rows: self.vocabulary, columns: self.hidden }
    }

    /// Bytes of a layer's matrices.
    pub(super) fn layer_bytes(&self, layer: u32) -> f64 {
        let qkv: f64 = self.qkv(layer).iter().map(Weight::bytes).sum();
        qkv + self.output().bytes() + self.gate_up().bytes() + self.down(layer).bytes()
    }

    /// Bytes of weights that every step reads: all but the embedding.
    #[must_use]
    pub fn read_bytes(&self) -> f64 {
        (0..self.layers).map(|layer| self.layer_bytes(layer)).sum::<f64>() + self.head().bytes()
    }

    /// Bytes of the embedding's rows.
    #[must_use]
    pub fn embedding_bytes(&self) -> f64 {
        f64::from(self.vocabulary) * self.base().bytes(self.hidden)
    }

    /// Bytes of keys and values of one position in one layer, in f16.
    pub(super) fn cache_bytes_per_layer(&self) -> f64 {
        f64::from(self.kv_heads * self.head_size) * 4.0
    }
}
