//! The sweep against a real HTTP server that streams as an engine does.

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};

use super::*;
use crate::args::{Cli, Command};
use clap::Parser;

const ANSWER: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n\
data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\ndata: [DONE]\n\n";

async fn sweep(status: StatusCode) -> BenchReport {
    let app =
        Router::new().route("/v1/models", get(|| async { r#"{"data":[{"id":"code"}]}"# })).route(
            "/v1/chat/completions",
            post(move || async move {
                (status, [("x-atlas-tier", "primary")], Body::from(ANSWER)).into_response()
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let words = ["kubectl-atlas", "bench", &url, "--concurrency", "1,3", "--requests", "5"];
    let Command::Bench(args) = Cli::try_parse_from(words).unwrap().command else { panic!("bench") };
    let asker = Arc::new(Asker::new(&args).unwrap());
    let model = asker.find_model(None).await.unwrap();
    let mut levels = Vec::new();
    for concurrency in &args.concurrency {
        levels.push(run_level(&asker, &model, *concurrency, &args).await);
    }
    server.abort();
    BenchReport { url, model, max_tokens: args.max_tokens, levels }
}

#[tokio::test]
async fn every_level_asks_as_often_as_it_should() {
    let report = sweep(StatusCode::OK).await;
    assert_eq!(report.model, "code");
    let counts: Vec<_> =
        report.levels.iter().map(|level| (level.concurrency, level.answered, level.failed)).collect();
    assert_eq!(counts, [(1, 5, 0), (3, 5, 0)]);
    assert_eq!(report.levels[0].tiers, [("primary".to_owned(), 5)].into());
    assert!(report.levels.iter().all(|level| level.inter_token_millis.is_some()));
    let text = crate::render::render_bench(&report, &Terminal::plain(100));
    assert!(text.contains("tokens/s") && text.contains("code"), "{text}");
}

#[tokio::test]
async fn failures_are_counted_and_shown() {
    let report = sweep(StatusCode::TOO_MANY_REQUESTS).await;
    assert_eq!((report.levels[1].answered, report.levels[1].failed), (0, 5));
    let text = crate::render::render_bench(&report, &Terminal::plain(100));
    assert!(text.contains("429"), "{text}");
}
