//! The predictions as Markdown: what `selftest --model-only` prints and docs/hardware.md carries.

use super::{
    CardLimits, GAP_MICROSECONDS, H200, HOST_GIGABYTES_PER_SECOND, Llama, Mix, OWN, PUBLISHED, Prediction,
    RX_7600, RX_7900_XTX, STREAM, predict, predict_split,
};
use std::fmt::Write;

/// What is predicted, with the project's goal in tokens a second.
const CASES: [(CardLimits, Llama, u32, u32, f64); 6] = [
    (RX_7900_XTX, Llama::B13, 512, 1, 75.0),
    (RX_7900_XTX, Llama::B13, 512, 4, 220.0),
    (RX_7900_XTX, Llama::B13, 4096, 1, 55.0),
    (RX_7900_XTX, Llama::B13, 4096, 4, 117.0),
    (RX_7600, Llama::MISTRAL, 512, 1, 40.0),
    (RX_7600, Llama::MISTRAL, 4096, 1, 0.0),
];

fn mix(mix: Mix) -> &'static str {
    match mix {
        Mix::Q4_0 => "Q4_0",
        Mix::Q4KM => "Q4_K_M",
        Mix::Q5KM => "Q5_K_M",
    }
}

/// Four tables: published runs, own runs, predictions, and the kernels of two of them.
#[must_use]
pub fn report() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text);
    text
}

fn write(text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "Published runs of llama.cpp on the RX 7900 XTX (ROCm, one sequence), and what the model says:\n"
    )?;
    writeln!(
        text,
        "| model | context | published, tokens/s | model | difference | source | taken from it |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for run in PUBLISHED {
        let (model, predicted) = (run.model, run.predicted());
        let difference = 100.0 * (predicted / run.middle() - 1.0);
        let (low, high) = run.found;
        let gives = if run.gives.is_empty() { "nothing" } else { run.gives };
        writeln!(
            text,
            "| {} {} | {} | {low:.1} to {high:.1} | {predicted:.1} | {difference:+.1} % | {} | {gives} |",
            model.name,
            mix(model.mix),
            run.context,
            run.source
        )?;
    }
    writeln!(text, "\nOwn runs of the same sources on the {}, and what the model says:\n", H200.name)?;
    writeln!(
        text,
        "| model | context, batch | measured, tokens/s | model | difference | bound | taken from it |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for run in OWN {
        let gives = if run.gives.is_empty() { "nothing" } else { run.gives };
        writeln!(
            text,
            "| {} {} | {}, {} | {:.1} | {:.1} | {:+.1} % | {:.0} | {gives} |",
            run.model.name,
            mix(run.model.mix),
            run.context,
            run.batch,
            run.found,
            run.predicted(),
            100.0 * run.difference(),
            predict(&H200, &run.model, run.context, run.batch).bound()
        )?;
    }
    writeln!(
        text,
        "\nPredictions for this build's kernels with an f16 cache; no run on a card stands behind them:\n"
    )?;
    writeln!(
        text,
        "| model | card | context, batch | bound, tokens/s | predicted | with the H200's cycles | fraction | goal |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    for (card, model, context, batch, goal) in CASES {
        let step = predict(&card, &model, context, batch);
        let (bound, predicted) = (step.bound(), step.tokens_per_second());
        let dear = CardLimits { cycles_per_instruction: H200.cycles_per_instruction, ..card };
        let dear = predict(&dear, &model, context, batch).tokens_per_second();
        let goal = if goal > 0.0 { format!("{goal:.0}") } else { "none".to_owned() };
        writeln!(
            text,
            "| {} {} | {} | {context}, {batch} | {bound:.0} | {predicted:.0} | {dear:.0} | {:.2} | {goal} |",
            model.name,
            mix(model.mix),
            card.name,
            predicted / bound
        )?;
    }
    writeln!(
        text,
        "\nLarger models on the {}, one sequence, with their first layers on the processor where it says so, whose \
         memory is assumed to give {HOST_GIGABYTES_PER_SECOND:.0} GB/s:\n",
        RX_7900_XTX.name
    )?;
    writeln!(text, "| model | layers on the processor | context | predicted, tokens/s |")?;
    writeln!(text, "|---|---|---|---|")?;
    for (model, layers, context) in [(Llama::B34, 0, 512), (Llama::B34, 0, 4096), (Llama::B70, 42, 512)] {
        let predicted = predict_split(&RX_7900_XTX, &model, context, layers);
        let name = format!("{} {}", model.name, mix(model.mix));
        writeln!(text, "| {name} | {layers} of {} | {context} | {predicted:.1} |", model.layers)?;
    }
    for (card, model, context, batch, _) in [CASES[0], CASES[1], CASES[4]] {
        let name = format!("{} {} on the {}", model.name, mix(model.mix), card.name);
        writeln!(text, "\n{name}, {context} tokens of context, batch {batch}, a step kernel by kernel:\n")?;
        kernels(text, &predict(&card, &model, context, batch))?;
    }
    let gaps = "milliseconds include them";
    writeln!(
        text,
        "\nStreams at {STREAM} of the data sheet's bandwidth, gaps of {GAP_MICROSECONDS} microseconds; {gaps}."
    )
}

fn kernels(text: &mut String, step: &Prediction) -> std::fmt::Result {
    writeln!(text, "| kernel | launches | MB | roofline, ms | waves a SIMD | predicted, ms | fraction |")?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for row in &step.rows {
        writeln!(
            text,
            "| {} | {} | {:.1} | {:.3} | {} | {:.3} | {:.2} |",
            row.kernel,
            row.launches,
            row.bytes / 1e6,
            row.roofline,
            row.waves,
            row.milliseconds,
            row.roofline / row.milliseconds
        )?;
    }
    Ok(())
}
