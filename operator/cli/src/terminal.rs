//! The terminal: colours where they are wanted, and its width.

use std::{
    fmt::Write as _,
    io::{ErrorKind, IsTerminal, Write as _},
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::{
    args::{Color, Output},
    error::CliError,
};

/// Columns where nothing tells a width.
const DEFAULT_WIDTH: u16 = 100;
/// Narrower than this nothing can be drawn.
const MIN_WIDTH: u16 = 40;

/// Where the output goes.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    color: bool,
    /// Columns.
    pub width: u16,
    /// Whether somebody looks at it, so that what was drawn may be drawn over.
    pub live: bool,
}

impl Terminal {
    /// Looks at standard output.
    pub fn detect(color: Color, no_color: Option<&str>, width: Option<u16>) -> Self {
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            // The convention of no-color.org: any value but an empty one.
            Color::Auto => std::io::stdout().is_terminal() && no_color.is_none_or(str::is_empty),
        };
        let width = width.or_else(|| comfy_table::Table::new().width()).unwrap_or(DEFAULT_WIDTH);
        Self { color, width: width.max(MIN_WIDTH), live: std::io::stdout().is_terminal() }
    }

    /// A terminal of fixed width without colours.
    #[cfg(test)]
    pub const fn plain(width: u16) -> Self {
        Self { color: false, width, live: false }
    }

    /// Text in a style.
    pub fn paint(&self, style: Style, text: &str) -> String {
        if self.color { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// What is well.
    pub fn good(&self, text: &str) -> String {
        self.paint(AnsiColor::Green.on_default(), text)
    }

    /// What is not.
    pub fn bad(&self, text: &str) -> String {
        self.paint(AnsiColor::Red.on_default().bold(), text)
    }

    /// What deserves a look.
    pub fn warn(&self, text: &str) -> String {
        self.paint(AnsiColor::Yellow.on_default(), text)
    }

    /// A heading.
    pub fn strong(&self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    /// What is beside the point.
    pub fn faint(&self, text: &str) -> String {
        self.paint(Style::new().dimmed(), text)
    }

    /// Text in lines no longer than the terminal, each begun with the indent.
    pub fn wrap(&self, text: &str, indent: &str) -> String {
        let room = usize::from(self.width).saturating_sub(indent.chars().count()).max(20);
        let mut out = String::new();
        let mut line = 0;
        for word in text.split_whitespace() {
            let length = word.chars().count();
            if line > 0 && line + 1 + length > room {
                out.push('\n');
                line = 0;
            }
            // Writing to a String cannot fail.
            let _ = if line == 0 { write!(out, "{indent}{word}") } else { write!(out, " {word}") };
            line += length + usize::from(line > 0);
        }
        out.push('\n');
        out
    }
}

/// Prints at once. Where nobody reads on, as behind a pipe into `head`, there is nothing left to do.
pub fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        let closed = error.kind() == ErrorKind::BrokenPipe;
        if !closed {
            eprintln!("error: the output cannot be written: {error}");
        }
        std::process::exit(i32::from(!closed));
    }
}

/// An answer for programs.
pub fn print_value(value: &impl Serialize, output: Output) -> Result<(), CliError> {
    let text = match output {
        Output::Yaml => serde_yaml_ng::to_string(value).map_err(CliError::Yaml)?,
        Output::Json | Output::Table => serde_json::to_string_pretty(value).map_err(CliError::Json)? + "\n",
    };
    put(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_words_and_keeps_its_indent() {
        let terminal = Terminal::plain(40);
        let text = terminal.wrap("one two three four five six seven eight nine ten", "    ");
        assert_eq!(text, "    one two three four five six seven\n    eight nine ten\n");
    }
}
