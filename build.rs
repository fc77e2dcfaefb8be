//! Compiles the CUDA kernels: with nvcc into one fatbin (feature `cuda`), with the host's C++ compiler to run them
//! emulated (feature `emulate`). Without these features it does nothing.
//!
//! `INNERLOOP_CUDA_ARCHS=90a` (or a list: `80,90a`) compiles for these GPUs only, which is faster. With
//! `INNERLOOP_EMULATE_SANITIZE=1` the emulated kernels are built to check every access and for undefined behaviour (Linux,
//! GCC with its libasan).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Both at once: neither keeps two cores busy all the time.
    std::thread::scope(|scope| {
        #[cfg(feature = "cuda")]
        scope.spawn(cuda::compile);
        #[cfg(feature = "emulate")]
        scope.spawn(emulated::compile);
        let _ = scope;
    });
}

#[cfg(any(feature = "cuda", feature = "emulate"))]
mod kernels {
    use std::path::{Path, PathBuf};

    /// The folder of the kernels and the one to write to, both from cargo.
    pub fn folders() -> (PathBuf, PathBuf) {
        let variable = |name: &str| {
            PathBuf::from(std::env::var_os(name).unwrap_or_else(|| fail(&format!("cargo has not set {name}"))))
        };
        (variable("CARGO_MANIFEST_DIR").join("kernels"), variable("OUT_DIR"))
    }

    /// Ends the build with a message of its own, without a backtrace.
    pub fn fail(message: &str) -> ! {
        println!("cargo::error={message}");
        std::process::exit(1)
    }

    /// Writes one source that includes every kernel file, in order; the build runs again when one of them, or a header,
    /// changes.
    pub fn combine(root: &Path, path: &Path) {
        let mut files = Vec::new();
        for folder in [root.to_path_buf(), root.join("emulation")] {
            let listing = std::fs::read_dir(&folder);
            let listing = listing.unwrap_or_else(|e| fail(&format!("{}: cannot be read: {e}", folder.display())));
            files.extend(listing.flatten().map(|entry| entry.path()).filter(|path| path.is_file()));
        }
        for file in &files {
            println!("cargo:rerun-if-changed={}", file.display());
        }
        files.retain(|file| file.extension().is_some_and(|e| e == "cu"));
        files.sort();
        let text: String = files.iter().map(|file| format!("#include {:?}\n", file.display().to_string())).collect();
        std::fs::write(path, text).unwrap_or_else(|e| fail(&format!("{}: cannot be written: {e}", path.display())));
    }
}

#[cfg(feature = "emulate")]
mod emulated {
    use super::kernels::{combine, folders};

    pub fn compile() {
        let (root, out) = folders();
        let all = out.join("kernels.cpp");
        combine(&root, &all);
        println!("cargo:rerun-if-env-changed=INNERLOOP_EMULATE_SANITIZE");
        println!("cargo:rerun-if-env-changed=DOCS_RS");
        println!("cargo:rustc-check-cfg=cfg(sanitize_emulation)");
        if std::env::var_os("DOCS_RS").is_some() {
            // Nothing of it is run.
            return;
        }
        let mut build = cc::Build::new();
        let sanitized = std::env::var("INNERLOOP_EMULATE_SANITIZE").is_ok_and(|v| !v.is_empty() && v != "0");
        if sanitized {
            println!("cargo:rustc-cfg=sanitize_emulation");
            // Undefined behaviour traps, which takes no runtime; the address sanitizer's is linked whole, as its compiler
            // would if Rust did not ask for no default libraries.
            for flag in
                ["-fsanitize=address,undefined", "-fsanitize-undefined-trap-on-error", "-fno-omit-frame-pointer", "-g1"]
            {
                build.flag(flag);
            }
            println!(
                "cargo:rustc-link-arg=-Wl,--whole-archive,-l:libasan.a,--no-whole-archive,-ldl,-lpthread,-lrt,-lm"
            );
        }
        build
            .cpp(true)
            .std("c++17")
            // With every access checked the compiler takes longer over the second level than the tests gain by it.
            .opt_level(if sanitized { 1 } else { 2 })
            .define("INNERLOOP_EMULATE", None)
            .flag("-Wno-unknown-pragmas")
            // The kernels' numbers, not those of the host's fused instructions.
            .flag("-ffp-contract=off")
            .include(&root)
            .file(all)
            .file(root.join("emulation/emulation.cpp"))
            .compile("innerloop_emulated_kernels");
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::kernels::{combine, fail, folders};

    /// What the fatbin holds when nothing else is asked for; PTX of the last one serves what comes after it.
    const ARCHITECTURES: [&str; 5] = ["80", "89", "90a", "100", "120"];
    /// The first nvcc that knows all of them.
    const OLDEST: (u32, u32) = (12, 8);

    pub fn compile() {
        let (root, out) = folders();
        for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "INNERLOOP_CUDA_ARCHS", "DOCS_RS"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        let fatbin = out.join("kernels.fatbin");
        let hopper =
            architectures_of(&std::env::var("INNERLOOP_CUDA_ARCHS").unwrap_or_default()).contains(&"90a".into());
        println!("cargo:rustc-env=INNERLOOP_HOPPER={}", u8::from(hopper));
        println!("cargo:rustc-env=INNERLOOP_FATBIN={}", fatbin.display());
        if std::env::var_os("DOCS_RS").is_some() {
            // Documentation is built without a CUDA toolkit, and nothing of it is run.
            if let Err(error) = std::fs::write(&fatbin, []) {
                fail(&format!("{}: cannot be written: {error}", fatbin.display()));
            }
            return;
        }
        let nvcc = find();
        check_version(&nvcc);
        let all = out.join("kernels.cu");
        combine(&root, &all);
        let mut command = Command::new(&nvcc);
        command.args(["-std=c++17", "-O3", "-lineinfo", "--fatbin", "--compress-mode=size", "--threads=0"]);
        command.args(targets()).arg("-I").arg(&root).arg("-o").arg(&fatbin).arg(&all);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => fail(&format!("{}: cannot be run: {error}", nvcc.display())),
        };
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            fail(&format!("{} could not compile the kernels: see its messages above", nvcc.display()));
        }
    }

    /// `NVCC`, else `bin/nvcc` under `CUDA_HOME` or `CUDA_PATH`, else on `PATH`, else where the toolkit installs itself.
    fn find() -> PathBuf {
        if let Some(named) = std::env::var_os("NVCC").filter(|v| !v.is_empty()) {
            return named.into();
        }
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).filter(|v| !v.is_empty());
        let mut places: Vec<PathBuf> = homes.map(|home| Path::new(&home).join("bin")).collect();
        places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        places.push("/usr/local/cuda/bin".into());
        let name = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
        places.into_iter().map(|place| place.join(name)).find(|path| path.is_file()).unwrap_or_else(|| {
            fail(&format!("the feature `cuda` needs nvcc, which is not in NVCC, CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda. {WAYS}"))
        })
    }

    /// The ways to get a compiler.
    const WAYS: &str = "Install the CUDA toolkit 12.8 or later, or `pip install nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
                        nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96` and set NVCC to \
                        its nvidia/cu13/bin/nvcc; or build without the feature";

    fn check_version(nvcc: &Path) {
        let text = match Command::new(nvcc).arg("--version").output() {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(output) => fail(&format!("{} --version failed ({}). {WAYS}", nvcc.display(), output.status)),
            Err(error) => fail(&format!("{}: cannot be run: {error}. {WAYS}", nvcc.display())),
        };
        let version = text.split("release ").nth(1).and_then(|rest| {
            let (major, rest) = rest.split_once('.')?;
            let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        match version {
            Some(version) if version >= OLDEST => {}
            Some((major, minor)) => {
                fail(&format!("{} is version {major}.{minor}; 12.8 or later is needed. {WAYS}", nvcc.display()))
            }
            None => fail(&format!("{} does not say which version it is. {WAYS}", nvcc.display())),
        }
    }

    /// Those asked for, or all.
    fn architectures_of(asked: &str) -> Vec<String> {
        let named: Vec<String> = asked.split([',', ' ']).filter(|a| !a.is_empty()).map(String::from).collect();
        if named.is_empty() { ARCHITECTURES.map(String::from).to_vec() } else { named }
    }

    /// Machine code for each architecture, and PTX of the last, which drivers compile for later ones.
    fn targets() -> Vec<String> {
        let architectures = architectures_of(&std::env::var("INNERLOOP_CUDA_ARCHS").unwrap_or_default());
        let known = |a: &&String| a.trim_end_matches('a').parse::<u32>().is_ok_and(|n| n >= 80);
        if let Some(unknown) = architectures.iter().find(|a| !known(a)) {
            fail(&format!("INNERLOOP_CUDA_ARCHS: {unknown:?}; expected numbers of 80 or above, such as 80,90a"));
        }
        if let Some(both) =
            architectures.iter().find(|a| a.ends_with('a') && architectures.iter().any(|b| **b == a[..a.len() - 1]))
        {
            // A GPU would take either, and the plain one's kernels for warpgroups are empty.
            fail(&format!("INNERLOOP_CUDA_ARCHS: {both} and {}; expected one of them", &both[..both.len() - 1]));
        }
        let mut targets: Vec<String> =
            architectures.iter().map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}")).collect();
        // PTX of an `a` target runs nowhere else, so it takes the plain one.
        let last = architectures[architectures.len() - 1].trim_end_matches('a');
        targets.push(format!("-gencode=arch=compute_{last},code=compute_{last}"));
        targets
    }
}
