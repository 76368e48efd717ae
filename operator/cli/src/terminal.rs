//! The terminal: colours where they are wanted, and its width.

use std::{fmt::Write as _, io::IsTerminal};

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
        Self { color, width: width.max(MIN_WIDTH) }
    }

    /// A terminal of fixed width without colours.
    #[cfg(test)]
    pub const fn plain(width: u16) -> Self {
        Self { color: false, width }
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

/// An answer for programs.
pub fn print_value(value: &impl Serialize, output: Output) -> Result<(), CliError> {
    let text = match output {
        Output::Yaml => serde_yaml_ng::to_string(value).map_err(CliError::Yaml)?,
        Output::Json | Output::Table => serde_json::to_string_pretty(value).map_err(CliError::Json)? + "\n",
    };
    print!("{text}");
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
