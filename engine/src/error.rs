//! What ends the process, and with which exit code.

use crate::checkpoint::CheckpointError;
use crate::fetch::FetchError;
use crate::model::ModelError;
use crate::text::TokenizerError;
use crate::text::chat_template::TemplateError;
use crate::text::grammar::GrammarError;
use atlas_engine_core::{DeviceError, ExitCode};
use atlas_kernels::hip::{Card, HipError};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A reason to stop.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The model file could not be had.
    #[error("cannot get the model")]
    Fetch(#[from] FetchError),
    /// The model file cannot be opened.
    #[error("cannot open the model file {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The files of a model are not what they should be.
    #[error("cannot use the model's files")]
    Checkpoint(#[source] CheckpointError),
    /// The model cannot be loaded.
    #[error("cannot load the model")]
    Model(#[from] ModelError),
    /// The device cannot be used.
    #[error("cannot use the device")]
    Device(#[from] DeviceError),
    /// The tokenizer cannot be built.
    #[error("cannot build the tokenizer")]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be compiled.
    #[error("cannot use the chat template")]
    Template(#[from] TemplateError),
    /// The chat template's file cannot be read.
    #[error("cannot read --chat-template {path}")]
    ChatTemplateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file of API keys cannot be read.
    #[error("cannot read --api-keys-file {path}")]
    ApiKeysFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The vocabulary does not suit grammars.
    #[error("cannot prepare grammars for the vocabulary")]
    Grammar(#[from] GrammarError),
    /// The tokenizer and the weights do not go together.
    #[error("the tokenizer has {tokens} tokens and the weights have {rows} rows: the file is inconsistent")]
    Vocabulary {
        /// Of the tokenizer.
        tokens: usize,
        /// Of the embedding.
        rows: usize,
    },
    /// More context is asked for than the model was trained for.
    #[error("--context-tokens {asked} is more than the {trained} that the model was trained for")]
    Context {
        /// Asked for.
        asked: usize,
        /// The model's.
        trained: usize,
    },
    /// Weights and KV cache exceed memory.
    #[error(
        "the model does not fit: {weights} bytes of weights and {kv} bytes of KV cache ({tokens} tokens) exceed the \
         {available} bytes of memory; lower --context-tokens, --max-batch or --kv-cache-tokens"
    )]
    DoesNotFit {
        /// Bytes of weights.
        weights: u64,
        /// Bytes of KV cache.
        kv: u64,
        /// Tokens of the cache.
        tokens: usize,
        /// Bytes of memory.
        available: u64,
    },
    /// A listener's port is taken or not allowed.
    #[error("cannot listen on {address} ({what}): choose another port or stop what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Which listener.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The card cannot be used.
    #[error("cannot use the card")]
    Hip(#[from] HipError),
    /// A kernel does not compute what it should.
    #[error("{failed} of {checks} checks of kernels failed: do not serve from this card")]
    SelfTest {
        /// Wrong ones.
        failed: usize,
        /// All.
        checks: usize,
    },
    /// A step does not come back.
    #[error(
        "the device hangs: a step has run for {waited} ms, and the slowest before it took {slowest} ms; the process \
         ends so that it is started anew"
    )]
    Hang {
        /// Milliseconds that the step has run.
        waited: u64,
        /// Milliseconds of the slowest step that came back.
        slowest: u64,
    },
    /// The card failed while it was used: says which one.
    #[error("card {pci_address} ({gfx_target})")]
    Card {
        /// Where it is in the node.
        pci_address: String,
        /// What it is.
        gfx_target: String,
        /// What happened.
        #[source]
        source: Box<Fatal>,
    },
    /// The worker stopped.
    #[error("the worker stopped: {reason}")]
    Worker {
        /// Its last words.
        reason: String,
    },
    /// The operating system refused something that always works.
    #[error("{what} failed")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl From<CheckpointError> for Fatal {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Open { path, source } => Self::Open { path, source },
            CheckpointError::Model(error) => Self::Model(error),
            error => Self::Checkpoint(error),
        }
    }
}

impl Fatal {
    /// The exit code of the contract.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Fetch(error) => error.exit_code(),
            Self::Open { .. } | Self::Checkpoint(CheckpointError::NoConfig { .. }) => {
                ExitCode::ModelUnavailable
            }
            Self::Model(ModelError::Device(error)) | Self::Device(error) => error.exit_code(),
            Self::Hang { .. } => ExitCode::Hang,
            Self::Card { source, .. } => source.exit_code(),
            Self::Model(_)
            | Self::Checkpoint(_)
            | Self::Tokenizer(_)
            | Self::Template(_)
            | Self::Grammar(_)
            | Self::Vocabulary { .. } => ExitCode::ModelInvalid,
            Self::Context { .. } | Self::ChatTemplateFile { .. } | Self::ApiKeysFile { .. } => {
                ExitCode::Usage
            }
            Self::DoesNotFit { .. } => ExitCode::DoesNotFit,
            Self::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                ExitCode::PortInUse
            }
            Self::Listen { .. } | Self::Worker { .. } | Self::System { .. } => ExitCode::Internal,
            Self::SelfTest { .. } => ExitCode::Internal,
            Self::Hip(error) => error.exit_code(),
        }
    }

    /// Names the card that a failure is about, where it is about one.
    #[must_use]
    pub fn on(self, card: Option<&Card>) -> Self {
        match (card, self.exit_code()) {
            (Some(card), ExitCode::Hang | ExitCode::Lost) => Self::Card {
                pci_address: card.pci_address.clone(),
                gfx_target: card.gfx_target.clone(),
                source: Box::new(self),
            },
            _ => self,
        }
    }

    /// The whole chain of causes on one line.
    pub fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        message.replace('\n', " ")
    }
}
