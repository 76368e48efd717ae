//! The stand-in for libamdhip64, built once a checkout, and a root folder with a card's files.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Bytes of memory that the driver tells of the simulated card.
pub const VRAM_BYTES: u64 = 25_753_026_560;

/// The stand-in's file, compiled where it is not there yet. `kernels` is the folder of this crate, `folder` takes it.
pub fn standin(compiler: &str, kernels: &Path, folder: &Path) -> PathBuf {
    let (sources, modules) = (kernels.join("tests/standin"), kernels.join("hip"));
    let mut hasher = DefaultHasher::new();
    compiler.hash(&mut hasher);
    FLAGS.hash(&mut hasher);
    for file in files(&sources).chain(files(&modules)) {
        file.hash(&mut hasher);
        fs::read(&file).unwrap().hash(&mut hasher);
    }
    fs::create_dir_all(folder).unwrap();
    let lock = File::create(folder.join("standin.lock")).unwrap();
    lock.lock().unwrap();
    let built = folder.join(format!("standin-{:016x}", hasher.finish()));
    let library = built.join("libamdhip64.so.6");
    if library.exists() {
        return library;
    }
    let building = folder.join("standin-building");
    let _ = fs::remove_dir_all(&building);
    fs::create_dir_all(&building).unwrap();
    let compile = |object: String, source: PathBuf, define: Option<String>| {
        let mut command = Command::new(compiler);
        command.args(FLAGS).arg("-I").arg(&sources).args(define).arg("-c").arg(source);
        check(command.arg("-o").arg(building.join(&object)));
        building.join(object)
    };
    let kernels: Vec<PathBuf> =
        files(&modules).filter(|file| file.extension().is_some_and(|end| end == "hip")).collect();
    // Two at a time: the slow ones are few.
    let (left, right): (Vec<_>, Vec<_>) =
        kernels.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    let all = |half: Vec<(usize, PathBuf)>| -> Vec<PathBuf> {
        half.into_iter()
            .map(|(index, file)| {
                let define = format!("-DKERNEL_FILE=\"{}\"", file.display());
                compile(format!("kernels{index}.o"), sources.join("kernels.cpp"), Some(define))
            })
            .collect()
    };
    let mut objects = thread::scope(|scope| {
        let right = scope.spawn(|| all(right));
        let mut objects = all(left);
        objects.extend(right.join().unwrap());
        objects
    });
    for name in ["fibers", "runtime"] {
        objects.push(compile(format!("{name}.o"), sources.join(format!("{name}.cpp")), None));
    }
    let linked = building.join("libamdhip64.so.6");
    check(Command::new(compiler).args(["-shared", "-pthread", "-o"]).arg(linked).args(objects));
    fs::rename(&building, &built).unwrap();
    library
}

/// A copy of the stand-in of its own, with settings (see runtime.cpp), in a folder that goes with the value.
pub fn standin_with(library: &Path, settings: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("libamdhip64.so.6");
    fs::copy(library, &copy).unwrap();
    fs::write(folder.path().join("standin.conf"), settings).unwrap();
    let path = copy.to_str().unwrap().to_owned();
    (folder, path)
}

/// No contraction, as on the card; instructions that every x86 machine of the last ten years has.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-missing-braces",
    #[cfg(target_arch = "x86_64")]
    "-march=x86-64-v3",
];

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter()
}

fn check(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A root folder with the files of one card.
pub fn root(gfx_version: u32, vram_bytes: u64) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let node = "sys/class/kfd/kfd/topology/nodes/1";
    let properties =
        format!("gfx_target_version {gfx_version}\nlocation_id 768\ndomain 0\ndrm_render_minor 128\n");
    let card = "sys/bus/pci/devices/0000:03:00.0";
    for (path, text) in [
        (format!("{node}/properties"), properties),
        (format!("{node}/mem_banks/0/properties"), format!("size_in_bytes {vram_bytes}\n")),
        (format!("{card}/mem_info_vram_total"), format!("{vram_bytes}\n")),
        (format!("{card}/mem_info_vram_used"), "1073741824\n".to_owned()),
        (format!("{card}/gpu_busy_percent"), "42\n".to_owned()),
        (format!("{card}/hwmon/hwmon0/temp2_input"), "61000\n".to_owned()),
        (format!("{card}/hwmon/hwmon0/power1_average"), "212000000\n".to_owned()),
        ("dev/kfd".to_owned(), String::new()),
        ("dev/dri/renderD128".to_owned(), String::new()),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}
