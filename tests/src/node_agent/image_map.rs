//! From container images to programs of this machine: the one place where the local cluster differs from a card node.
//!
//! Pure. An image is known by the last segment of its name; its registry, tag and digest do not matter, and nothing
//! is ever pulled. The manifests stay exactly what a card node gets: `engine_on_cpu` alone swaps the backend.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The program that stands for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The program on this machine.
    pub binary: PathBuf,
    /// Where the container sees it, which is also the image's entrypoint.
    pub entrypoint: String,
    /// The image's user; a pod's `runAsUser` goes before it.
    pub user: u32,
    /// Whether the image needs a card, which no simulated node has: then `engine_on_cpu` rewrites its arguments.
    pub needs_card: bool,
}

impl Image {
    /// An image whose entrypoint is `/usr/local/bin/NAME` with the binary's own name, run as root.
    pub fn of(binary: impl Into<PathBuf>) -> Self {
        let binary = binary.into();
        let name = binary.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { binary, entrypoint: format!("/usr/local/bin/{name}"), user: 0, needs_card: false }
    }
}

/// Images by the last segment of their name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageMap {
    images: BTreeMap<String, Image>,
}

impl ImageMap {
    /// A map without images.
    pub fn new() -> Self {
        Self::default()
    }

    /// The project's three images: the operator and one engine that serves both engine images.
    pub fn atlas(operator: impl Into<PathBuf>, engine: impl Into<PathBuf>) -> Self {
        let operator = Image { entrypoint: "/usr/local/bin/atlas-operator".into(), ..Image::of(operator) };
        let engine = Image { entrypoint: "/usr/local/bin/atlas-engine".into(), ..Image::of(engine) };
        Self::new()
            .with("atlas-operator", operator)
            .with("atlas-engine-cpu", engine.clone())
            .with("atlas-engine-hip", Image { needs_card: true, ..engine })
    }

    /// Adds an image under its last name segment.
    #[must_use]
    pub fn with(mut self, name: &str, image: Image) -> Self {
        self.images.insert(name.to_owned(), image);
        self
    }

    /// The program for an image reference such as `registry.example/atlas-engine-hip:1.0`.
    pub fn resolve(&self, reference: &str) -> Option<&Image> {
        self.images.get(last_segment(reference))
    }

    /// The names it knows, for messages.
    pub fn names(&self) -> String {
        self.images.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

fn last_segment(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

/// The arguments that make the card's engine run on this machine: `--backend hip` becomes `--backend cpu`, and every
/// `--expect-*` flag goes with its value, since there is no card to compare with. Nothing else changes.
pub fn engine_on_cpu(arguments: &[String]) -> Vec<String> {
    let mut rewritten = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--backend=hip" => rewritten.push("--backend=cpu".to_owned()),
            "--backend" => {
                rewritten.push(argument.clone());
                rewritten.extend(
                    rest.next().map(|value| if value == "hip" { "cpu".into() } else { value.clone() }),
                );
            }
            expectation if expectation.starts_with("--expect-") => {
                if !expectation.contains('=') {
                    rest.next();
                }
            }
            _ => rewritten.push(argument.clone()),
        }
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_rewrite(input: &str, expected: &str) {
        let arguments: Vec<String> = input.split_whitespace().map(str::to_owned).collect();
        assert_eq!(engine_on_cpu(&arguments).join(" "), expected);
    }

    #[test]
    fn only_the_backend_and_the_expectations_change() {
        check_rewrite("serve --backend hip --port 8000", "serve --backend cpu --port 8000");
        check_rewrite("serve --backend=hip --port=8000", "serve --backend=cpu --port=8000");
        check_rewrite(
            "serve --expect-gfx-target gfx1100 --expect-vram-bytes=25753026560 --max-batch 4",
            "serve --max-batch 4",
        );
        check_rewrite("serve --served-model-name hip --backend", "serve --served-model-name hip --backend");
        check_rewrite("serve --backend cpu --expect-gfx-target", "serve --backend cpu");
    }

    #[test]
    fn the_last_name_segment_finds_an_image() {
        let map = ImageMap::atlas("/b/atlas-operator", "/b/atlas-engine");
        for reference in [
            "atlas-engine-hip",
            "atlas-engine-hip:1.0",
            "ghcr.io/org/atlas-engine-hip:1.0",
            "localhost:5000/atlas-engine-hip",
            "localhost:5000/org/atlas-engine-hip:1@sha256:00",
        ] {
            let image = map.resolve(reference).unwrap_or_else(|| panic!("{reference} is known"));
            assert!(image.needs_card, "{reference}");
            assert_eq!(image.entrypoint, "/usr/local/bin/atlas-engine");
        }
        assert!(!map.resolve("x/atlas-engine-cpu:1").expect("known").needs_card);
        assert_eq!(map.resolve("x/atlas-engine:1"), None);
    }
}
