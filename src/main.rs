//! The `innerloop` command.

fn main() -> std::process::ExitCode {
    innerloop::cli::main()
}
