//! What the tour shows on the terminal while it runs, and leaves in `target/run/tour.json`.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::client::Answer;

/// One step and how long it took.
#[derive(Debug, Serialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub ms: u64,
}

/// An answer and where in the tour it was given.
#[derive(Debug, Serialize)]
pub struct TourAnswer {
    /// `before`, `after` or `failback`.
    pub when: &'static str,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Everything the tour measured; written as `tour.json`.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether every step held.
    pub ok: bool,
    /// What went wrong, if something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// The answers before the fault, after it, and after failback.
    pub answers: Vec<TourAnswer>,
    /// From the fault to the end of the next whole answer through the URL.
    pub failover_ms: Option<u64>,
    /// From the node's return to the first answer of the preferred tier.
    pub failback_ms: Option<u64>,
    /// Requests of the load that got no answer.
    pub lost: Option<u64>,
    /// Requests of the load that got one.
    pub answered: u64,
}

impl Report {
    /// Writes the report as JSON.
    ///
    /// # Errors
    ///
    /// The folder or file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }
}

/// Prints steps, with colour where a person looks.
pub struct Screen {
    colour: bool,
}

impl Default for Screen {
    fn default() -> Self {
        Self { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }
}

impl Screen {
    /// Paints `text`, or leaves it plain where nobody would see the colour.
    #[must_use]
    pub fn paint(&self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// A line in bold, with space above.
    pub fn heading(&self, text: &str) {
        println!("\n{}", self.paint(Style::new().bold(), text));
    }

    /// A line of detail.
    pub fn detail(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("    {}", self.paint(Style::new().dimmed(), line));
        }
    }

    /// A step that held, with its time.
    pub fn done(&self, name: &str, took: Duration) {
        let mark = self.paint(AnsiColor::Green.on_default().bold(), "✓");
        println!("{mark} {name:<58} {:>7} ms", took.as_millis());
    }

    /// A step that did not hold.
    pub fn failed(&self, name: &str, why: &str) {
        let mark = self.paint(AnsiColor::Red.on_default().bold(), "✗");
        println!("{mark} {name}\n    {why}");
    }

    /// A piece of streamed text, shown as it comes.
    pub fn stream(&self, text: &str) {
        print!("{}", self.paint(AnsiColor::Cyan.on_default(), &text.replace('\n', "\n    ")));
        // The terminal shows the text late, at worst, if this flush fails.
        drop(std::io::stdout().flush());
    }
}

/// Runs one step: shows it, times it, and notes it in the report.
///
/// # Errors
///
/// Those of the step, with its name in front.
pub async fn step<T>(
    screen: &Screen,
    report: &mut Report,
    name: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let outcome = work.await;
    let took = began.elapsed();
    match outcome {
        Ok(value) => {
            screen.done(name, took);
            report.steps.push(Step { name: name.to_owned(), ms: u64::try_from(took.as_millis())? });
            Ok(value)
        }
        Err(error) => {
            let why = format!("{error:#}");
            screen.failed(name, &why);
            Err(error.context(name.to_owned()))
        }
    }
}
