//! The model against published files and runs, and the document against the model.

#![allow(clippy::unwrap_used)]

use super::*;

/// Sizes of the files on the models' pages, in GB.
#[test]
fn models_weigh_what_their_files_do() {
    for (model, expected) in [
        (Llama::B13, 7.866),
        (Llama::MISTRAL, 4.368),
        (Llama::B8, 4.921),
        (Llama::B8.with(Mix::Q5KM), 5.733),
        (Llama::B7.with(Mix::Q4_0), 3.826),
        (Llama::QWEN7, 4.683),
        (Llama::B34, 20.22),
        (Llama::B70, 42.52),
    ] {
        let found = (model.read_bytes() + model.embedding_bytes()) / 1e9;
        assert!((found / expected - 1.0).abs() < 0.005, "{model:?}: {found} GB, {expected} expected");
    }
}

#[test]
fn published_runs_come_out_within_fifteen_per_cent() {
    for run in PUBLISHED {
        let ratio = run.predicted() / run.middle();
        assert!((0.85..1.15).contains(&ratio), "{run:?}: {}", run.predicted());
    }
}

#[test]
fn own_runs_come_out_within_fifteen_per_cent() {
    for run in OWN {
        assert!(run.difference().abs() < 0.15, "{run:?}: {}", run.predicted());
    }
}

#[test]
fn every_kernel_of_a_step_has_its_figures() {
    for (card, model) in [(RX_7900_XTX, Llama::B13), (RX_7600, Llama::MISTRAL)] {
        for launch in launches(&model, 512, 4) {
            let found = figures(&launch.kernel, card.gfx_target);
            assert!(found.is_some_and(|found| found.waves > 0), "{} on {}", launch.kernel, card.name);
            if launch.kernel.starts_with("matvec") {
                assert!(found.unwrap().instructions > 50 && launch.passes > 0.0, "{}", launch.kernel);
            }
        }
    }
}

#[test]
fn nothing_is_faster_than_its_memory() {
    for (context, batch) in [(1, 1), (512, 1), (512, 4), (4096, 8)] {
        let step = predict(&RX_7900_XTX, &Llama::B13, context, batch);
        assert!(step.tokens_per_second() < STREAM * step.bound(), "{context}, {batch}");
        assert!(step.rows.iter().all(|row| row.milliseconds >= row.roofline / STREAM), "{context}, {batch}");
    }
}

/// The document carries the report as it is; `ATLAS_UPDATE=1` writes it anew.
#[test]
fn the_document_shows_the_predictions() {
    const MARKS: [&str; 2] = ["<!-- predictions: begin -->\n", "<!-- predictions: end -->\n"];
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hardware.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).unwrap();
    let (found, after) = rest.split_once(MARKS[1]).unwrap();
    let expected = format!("\n{}\n", report());
    if std::env::var_os("ATLAS_UPDATE").is_some() {
        std::fs::write(&path, [before, MARKS[0], &expected, MARKS[1], after].concat()).unwrap();
    } else {
        assert!(found == expected, "docs/hardware.md is behind: run with ATLAS_UPDATE=1");
    }
}
